// The vector-Jacobian product of any function of tensors, by LibTorch's autograd. Layers here write
// their backward out; an operator that is still an experiment need not:
//
//     const VjpResult result = vjp(f, {x, weight});       // result.output = f(x, weight)
//     const auto gradients = result.pullback(dy);         // {dx, dweight}
//
// at the price of autograd's speed and of the memory of what it saves. It is also the judge of
// every written backward. docs/adding-an-operator.md adds one in a dozen lines.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace picotron {

using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

struct VjpResult {
  at::Tensor output;  // detached from autograd's graph
  // dy, of the output's shape → one gradient per input, zeros where the output does not depend on
  // it. May be called once or, until the VjpResult dies, again; from any thread.
  std::function<std::vector<at::Tensor>(const at::Tensor& dy)> pullback;
};

// Runs f on copies-by-reference of `inputs` (floating point, any device) that record, even where
// the caller is under at::NoGradGuard. f must not change its inputs in place.
VjpResult vjp(const TensorFunction& f, const std::vector<at::Tensor>& inputs);

}  // namespace picotron
