// The optimizer's state, sharded as ZeRO-1 says: this rank keeps fp32 master weights and moments
// for the ranges that Gradients::owned() names, updates those, and the all-gather brings it what
// the other ranks have updated.
//
//     flat values (bf16)   | bucket 1          | bucket 0          |
//     owned by dp rank 1   |         ######    |         ######    |
//     master, m, v         [ ###### ###### ]     one after the other, fp32
//
// In float32 and float64 the values are their own master. Clip factor, update and bf16 copy are one
// pass over memory (kernels/adamw.h). Weight decay as PyTorch has it (`all`), or on matrices alone
// (`matrices`: not on norms and biases).
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "core/config.h"
#include "kernels/body.h"
#include "parallel/data_parallel.h"
#include "parallel/parameter.h"

namespace picotron {

class ShardedOptimizer {
 public:
  // `initial`: the values in the dtype of the masters, in the layout of parameters.flat().
  // `parameters` and `gradients` outlive this object.
  ShardedOptimizer(Parameters& parameters, const Gradients& gradients, const at::Tensor& initial,
                   const Training& training, Body body);

  // Update number `step`, from 1, of every parameter. clip_factor: 0-dim, of the master's dtype;
  // where it is not finite nothing changes.
  void step(int64_t step, double learning_rate, const at::Tensor& clip_factor);

  int64_t state_bytes() const;

  // What a checkpoint keeps: "master" (where the values are not their own), "exp_avg",
  // "exp_avg_sq", as PyTorch names them. [owned elements], one range after the other.
  struct State {
    const char* name;
    at::Tensor values;
  };
  std::vector<State> states() const;
  // The view of a state that belongs to `numel` elements of the flat buffers, all owned, from
  // `begin` on.
  at::Tensor within(const at::Tensor& state, int64_t begin, int64_t numel) const;

 private:
  // A run of elements with one weight decay: where it is in the flat buffers and in the state.
  struct Segment {
    Range flat;
    int64_t state_offset = 0;
    double weight_decay = 0;
  };
  Parameters& parameters_;
  const Gradients& gradients_;
  const Training training_;
  const Body body_;
  std::vector<Segment> segments_;
  at::Tensor master_, m_, v_;  // [owned elements]; master_ undefined where the values are their own
};

// The factor that brings a gradient of this norm down to max_norm, as
// torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6)); 1 where max_norm is 0; NaN
// where the norm is not finite. 0-dim, dtype of `like`.
at::Tensor clip_factor(const at::Tensor& norm, double max_norm, at::ScalarType dtype);

}  // namespace picotron
