// Internal to kernels/*.cpp: from tensors to the pointers and ranges that fused kernels take.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "kernels/fused_dispatch.h"

namespace picotron {

// A row's worth of work is handed to another thread only in pieces of about this many elements.
inline constexpr int64_t kElementsPerTask = 16384;

inline int64_t rows_per_task(int64_t row_elements) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_elements));
}

// Calls kernel(begin, end) for all rows: on a CPU from its threads, each with a range of them, on a
// GPU once. x: any of the kernel's tensors.
template <class F>
void for_rows(const at::Tensor& x, int64_t rows, int64_t rows_per_task, F kernel) {
  if (x.is_cpu())
    at::parallel_for(0, rows, rows_per_task, kernel);
  else
    kernel(int64_t{0}, rows);
}

// The kernels for x's device and storage type S.
template <class S>
const fused::TypedKernels<S>& typed_kernels(const at::Tensor& x) {
  const fused::Table& table = fused_table(x);
  if constexpr (std::is_same_v<S, fused::bf16>)
    return table.of_bf16;
  else if constexpr (std::is_same_v<S, float>)
    return table.of_float;
  else
    return table.of_double;
}

// Calls body with a value of the storage type of x: bf16's bits, float or double.
template <class F>
decltype(auto) with_storage_type(const at::Tensor& x, F body) {
  switch (x.scalar_type()) {
    case at::kBFloat16:
      return body(fused::bf16{});
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    default:
      throw BrokenInvariant("the fused kernels take bf16, fp32 and fp64");
  }
}

// The data of a tensor as S; null for an undefined one.
template <class S>
S* data_as(const at::Tensor& x) {
  return x.defined() ? static_cast<S*>(x.data_ptr()) : nullptr;
}

// What the fused bodies take for granted of a tensor beside x.
inline void check_like(const at::Tensor& other, const at::Tensor& x, at::IntArrayRef sizes) {
  check(other.is_contiguous() && other.scalar_type() == x.scalar_type() && other.sizes() == sizes,
        "a kernel's tensors are contiguous, of one dtype, and fit each other's shape");
}

}  // namespace picotron
