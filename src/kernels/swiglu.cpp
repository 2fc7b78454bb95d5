// Formulas and sources: swiglu.h; fused loops: cpu/swiglu_kernels.cpp.
// Here: the plain definitions, and the way from tensors to pointers and threads.
#include "kernels/swiglu.h"

#include <ATen/ATen.h>

#include "kernels/fused_call.h"

namespace picotron {
namespace {

at::Tensor plain_swiglu(const at::Tensor& gate_up) {
  const auto parts = gate_up.to(statistic_dtype(gate_up)).chunk(2, -1);
  return (at::silu(parts[0]) * parts[1]).to(gate_up.scalar_type());
}

at::Tensor plain_swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up) {
  const at::ScalarType wide = statistic_dtype(gate_up);
  const auto parts = gate_up.to(wide).chunk(2, -1);
  const at::Tensor d = dy.to(wide);
  const at::Tensor s = at::sigmoid(parts[0]);
  const at::Tensor d_gate = d * parts[1] * s * (1 + parts[0] * (1 - s));
  return at::cat({d_gate, d * parts[0] * s}, -1).to(gate_up.scalar_type());
}

}  // namespace

at::Tensor swiglu(const at::Tensor& gate_up, Body body) {
  if (!runs_fused(body, {gate_up})) return plain_swiglu(gate_up);
  const int64_t tokens = gate_up.size(0), width = gate_up.size(1) / 2;
  check_like(gate_up, gate_up, {tokens, 2 * width});
  at::Tensor y = at::empty({tokens, width}, gate_up.options());
  with_storage_type(gate_up, [&](auto storage) {
    using S = decltype(storage);
    const auto kernel = typed_kernels<S>(gate_up).swiglu;
    for_rows(gate_up, tokens, rows_per_task(width), [&](int64_t begin, int64_t end) {
      kernel(data_as<S>(gate_up), data_as<S>(y), width, begin, end);
    });
  });
  return y;
}

at::Tensor swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up, Body body) {
  if (!runs_fused(body, {dy, gate_up})) return plain_swiglu_backward(dy, gate_up);
  const int64_t tokens = gate_up.size(0), width = gate_up.size(1) / 2;
  check_like(gate_up, gate_up, {tokens, 2 * width});
  check_like(dy, gate_up, {tokens, width});
  at::Tensor d_gate_up = at::empty_like(gate_up);
  with_storage_type(gate_up, [&](auto storage) {
    using S = decltype(storage);
    const auto kernel = typed_kernels<S>(gate_up).swiglu_backward;
    for_rows(gate_up, tokens, rows_per_task(width), [&](int64_t begin, int64_t end) {
      kernel(data_as<S>(dy), data_as<S>(gate_up), data_as<S>(d_gate_up), width, begin, end);
    });
  });
  return d_gate_up;
}

}  // namespace picotron
