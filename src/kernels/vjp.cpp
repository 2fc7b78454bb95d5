// The only file that includes LibTorch's autograd.
#include "kernels/vjp.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"

namespace picotron {

VjpResult vjp(const TensorFunction& f, const std::vector<at::Tensor>& inputs) {
  const at::AutoGradMode recording(true);
  std::vector<at::Tensor> leaves;
  leaves.reserve(inputs.size());
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().requires_grad_(true));
  const at::Tensor output = f(leaves);
  // A function that leaves ATen (or detaches) would otherwise be given gradients of zero, silently.
  check(output.requires_grad(), "vjp's function must reach its output through ATen operators");
  return {output.detach(), [output, leaves](const at::Tensor& dy) {
            auto gradients = torch::autograd::grad({output}, leaves, {dy}, /*retain_graph=*/true,
                                                   /*create_graph=*/false, /*allow_unused=*/true);
            for (size_t i = 0; i < gradients.size(); ++i) {
              if (!gradients[i].defined()) gradients[i] = at::zeros_like(leaves[i]);
            }
            return gradients;
          }};
}

}  // namespace picotron
