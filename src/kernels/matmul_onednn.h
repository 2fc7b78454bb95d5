// oneDNN's product for other files of kernels/: matmul_floor.cpp, and attention_cpu.cpp, whose
// products are part of one entry in the record. Everybody else uses matmul.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

namespace picotron {

// Whether products of x are oneDNN's: bf16 and fp32 on a CPU that has the instructions.
bool onednn_computes(const at::Tensor& x);

// c = a b, or c += a b. a [m, k] and b [k, n] of one dtype, transposed where their strides say so;
// c [m, n] contiguous, of that dtype or fp32.
void onednn_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool accumulate);

// c = a b with b copied, here and now, into the layout that oneDNN likes best. The returned
// function multiplies; it holds all it needs.
std::function<void()> onednn_packed_product(const at::Tensor& c, const at::Tensor& a,
                                            const at::Tensor& b);

}  // namespace picotron
