// Matrix products: the only place in the program that multiplies matrices.
//
// A linear layer y = x wᵀ needs three products, of equal cost:
//
//     forward          y[m,n]  = x[m,k] · w[n,k]ᵀ
//     input gradient   dx[m,k] = dy[m,n] · w[n,k]
//     weight gradient  dw[n,k] += dy[m,n]ᵀ · x[m,k]     accumulated over microbatches, in fp32
//
// On a CPU oneDNN computes bf16 and fp32: its product adds into an fp32 buffer by itself, which
// ATen's cannot express (there: a temporary and one more pass over memory). Where the CPU has AMX,
// bf16 is ours, but for the smallest (amx/product.h). float64, which oneDNN lacks, and GPUs go
// through ATen. Each product leaves an entry with its floating point operations in the record
// (core/record.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <source_location>

namespace picotron {

using At = std::source_location;

// y = x wᵀ. x [m, k], w [n, k], both of one dtype (bf16, fp32, fp64), rows contiguous;
// returns [m, n] of that dtype.
at::Tensor linear_forward(const at::Tensor& x, const at::Tensor& w, At at = At::current());

// dx = dy w. dy [m, n], w [n, k]; returns [m, k].
at::Tensor linear_input_gradient(const at::Tensor& dy, const at::Tensor& w, At at = At::current());

// dw += dyᵀ x, or dw = dyᵀ x whatever was there. dy [m, n], x [m, k] of the compute dtype; dw
// [n, k] contiguous, fp32 (fp64 for fp64 inputs).
void linear_weight_gradient(const at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x,
                            bool accumulate = true, At at = At::current());

// Operations per second of a large product in this dtype on this machine with the calling thread's
// number of threads, the best of a few tries (about 0.2 s): the "peak" that MFU is over on a CPU.
double measure_product_rate(at::ScalarType dtype);

// bf16 is faster than fp32 here (AVX512-BF16 or AMX).
bool cpu_has_fast_bfloat16();

}  // namespace picotron
