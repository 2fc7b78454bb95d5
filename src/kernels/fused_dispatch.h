// Which table of fused kernels runs, looked up once, at the first call. On a CPU by its instruction
// set:
//   DEFAULT  what the compiler targets     AVX2  and FMA
//   AVX512   F, BW, VL, DQ and BF16: the CPUs (Zen 4, Sapphire Rapids, later) that train in bf16
// On a GPU the plug-in's, which registers it with ATen's dispatcher as it is loaded.
#pragma once
#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "kernels/body.h"
#include "kernels/cpu/kernels.h"

namespace picotron {

// Calls each function that ATen takes from MKL's vector mathematics once, on one element, in fp32
// and fp64; done before main() in every program that links this. MKL looks for a function's kernel
// at its first call, and a thread that does so beside another may get, for that call, one of half
// the digits (pytorch/pytorch#188792): RoPE's tables, say, would then be slightly wrong in a run.
void settle_vector_math();

// The widest table that this CPU can run, and all that it can (for tests), narrowest first.
const cpu::Kernels& cpu_kernels();
std::vector<const cpu::Kernels*> supported_cpu_kernels();

// Whether the fused body can stand in for the plain one: it is wanted, the tensors lie on a device
// that has kernels for their dtype, and autograd is not recording them (it sees ATen's operators,
// not our loops).
bool runs_fused(Body body, std::initializer_list<at::Tensor> tensors);

// The table of the device on which x lies, of which runs_fused holds.
const fused::Table& fused_table(const at::Tensor& x);

// fp32, or fp64 for fp64: the dtype of statistics, tables and sums.
at::ScalarType statistic_dtype(const at::Tensor& x);

}  // namespace picotron
