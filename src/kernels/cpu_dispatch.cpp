// Asks the CPU what it has, once, and takes the widest table of kernels that it can run.
#include "kernels/cpu_dispatch.h"

#include <ATen/core/grad_mode.h>

namespace picotron {

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
    if (!tensor.is_cpu()) return false;
    const at::ScalarType dtype = tensor.scalar_type();
    if (dtype != at::kBFloat16 && dtype != at::kFloat && dtype != at::kDouble) return false;
    if (at::GradMode::is_enabled() && tensor.requires_grad()) return false;
  }
  return true;
}

at::ScalarType statistic_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace picotron
