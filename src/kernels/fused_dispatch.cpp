// Asks the CPU what it has, once, and takes the widest table of kernels that it can run; a GPU has
// one, where the plug-in is loaded.
#include "kernels/fused_dispatch.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>

namespace picotron {
namespace {

// The address that the plug-in's operator answers (src/cuda/plugin.cpp): as everything of CUDA, it
// is reached without a symbol of it. Asked only when there is a tensor on a GPU, so after loading.
const fused::Table* gpu_table() {
  static const fused::Table* const table = [] {
    const auto answer = c10::Dispatcher::singleton().findSchema({"picotron::gpu_kernels", ""});
    return answer ? reinterpret_cast<const fused::Table*>(answer->typed<int64_t()>().call())
                  : nullptr;
  }();
  return table;
}

bool has_fused(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kBFloat16:
    case at::kFloat:
      return x.is_cpu() || (x.is_cuda() && gpu_table() != nullptr);
    case at::kDouble:
      return x.is_cpu();
    default:
      return false;
  }
}

// Before main(), when there is no second thread yet.
[[maybe_unused]] const bool kVectorMathIsSettled = (settle_vector_math(), true);

}  // namespace

void settle_vector_math() {
  const at::NoGradGuard no_grad;
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor x = at::full({1}, 0.5, dtype);
    for (const auto f :
         {at::acos, at::asin, at::atan, at::cos, at::erf, at::erfc, at::erfinv, at::exp, at::log,
          at::log10, at::log2, at::sin, at::sqrt, at::tan, at::tanh, at::trunc}) {
      f(x);
    }
  }
}

std::vector<const cpu::Kernels*> supported_cpu_kernels() {
  std::vector<const cpu::Kernels*> tables = {&cpu::DEFAULT::kernels};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&cpu::AVX2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bf16")) {
      tables.push_back(&cpu::AVX512::kernels);
    }
  }
  return tables;
}

const cpu::Kernels& cpu_kernels() {
  static const cpu::Kernels& best = *supported_cpu_kernels().back();
  return best;
}

bool runs_fused(Body body, std::initializer_list<at::Tensor> tensors) {
  if (body == Body::plain) return false;
  for (const at::Tensor& tensor : tensors) {
    if (!has_fused(tensor)) return false;
    if (at::GradMode::is_enabled() && tensor.requires_grad()) return false;
  }
  return true;
}

const fused::Table& fused_table(const at::Tensor& x) {
  return x.is_cpu() ? cpu_kernels().fused : *gpu_table();
}

at::ScalarType statistic_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace picotron
