// Which instruction set's table of fused kernels this CPU runs: looked up once, at the first call.
//   DEFAULT  what the compiler targets     AVX2  and FMA
//   AVX512   F, BW, VL, DQ and BF16: the CPUs (Zen 4, Sapphire Rapids, later) that train in bf16
#pragma once
#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "kernels/body.h"
#include "kernels/cpu/kernels.h"

namespace picotron {

// The widest table that this CPU can run, and all that it can (for tests), narrowest first.
const cpu::Kernels& cpu_kernels();
std::vector<const cpu::Kernels*> supported_cpu_kernels();

// Whether the fused body can stand in for the plain one: it is wanted, the tensors lie on a CPU in
// a dtype it has, and autograd is not recording them (it sees ATen's operators, not our loops).
bool runs_fused(Body body, std::initializer_list<at::Tensor> tensors);

// fp32, or fp64 for fp64: the dtype of statistics, tables and sums.
at::ScalarType statistic_dtype(const at::Tensor& x);

}  // namespace picotron
