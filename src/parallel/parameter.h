// Parameters: the one type that knows a shard.
//
// A Parameter is one tensor of the Hugging Face checkpoint, or the part of it that lives on this
// rank. Initial values, norm, weight decay and the readers and writers of checkpoints go by this
// list, and nothing else in the program knows how a tensor is cut.
//
// A Weight is what a matrix product uses: one or more Parameters that lie side by side (q, k, v;
// gate, up), so that one product serves all of them and each Parameter is a view of its rows.
//
//     flat buffer   | embed | q k v | o | gate up | down | … | norm | head |   in forward order
//     Parameter      [=====] [=|=|=] [=] [====|==] [====]     [====] [====]    of a checkpoint
//     Weight         [=====] [=====] [=] [=======] [====]     [====] [====]    of a product
//
// The flat buffer is one allocation, in the order of the forward pass; gradients are a second of
// the same layout (parallel/data_parallel.h), so that reductions and the optimizer are loops over
// plain ranges of memory.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace picotron {

struct Group;  // dist/mesh.h

// Which part of a full tensor is here: [begin, end) along `dim`; of a whole one dim 0, [0, size).
struct Shard {
  int64_t dim = 0, begin = 0, end = 0;
};

// Decides initial values and weight decay.
enum class Role : uint8_t { embedding, linear, bias, norm };

struct Parameter {
  std::string name;                 // Hugging Face's: "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> full_shape;  // of the whole, unsharded tensor
  Shard shard;
  Role role = Role::linear;
  int64_t fan_in = 0;  // inputs of the layer it belongs to, the whole of it: for initial values
  bool counts_in_norm = true;  // of the ranks that hold the same elements, one counts them
  // Ranks of which each computes only a part of the gradient of these elements, because it sees a
  // part of the tokens or heads: the parts are summed over it, and then over dp×cp. Null: none.
  const Group* partial_over = nullptr;
  int64_t offset = 0;   // of its first element in the flat buffers
  at::Tensor value;     // [local shape], compute dtype, a view of the flat buffer
  at::Tensor gradient;  // [local shape], fp32 (float64: fp64), set by Gradients; before: undefined
  std::vector<int64_t> local_shape() const;
  int64_t numel() const;  // of the local part
};

struct Weight {
  size_t index = 0;             // in Parameters::weights
  size_t first = 0, count = 0;  // its Parameters in Parameters::list
  int uses = 1;                 // gradient contributions per microbatch (a tied embedding has two)
  // Null, or the stages that both use this tied embedding. Rank 0 of them owns it, steps on it and
  // hands its values on to the other, which sends it its gradient.
  const Group* tied = nullptr;
  bool is_borrowed() const;
  int64_t offset = 0, numel = 0;  // in the flat buffers
  int64_t end = 0;                // where the next Weight begins: offset + numel + padding
  at::Tensor value;               // [Σ rows, columns] or [Σ rows]
  at::Tensor gradient;            // same shape, set by Gradients
};

// The parameters of one rank. Declared by the model in forward order, then allocated once.
class Parameters {
 public:
  // Declares Parameters that lie side by side along dim 0. Names, shapes, shard and role must be
  // filled in. The returned pointer stays valid for the life of this object; its tensors are set by
  // allocate().
  Weight* declare(std::vector<Parameter> side_by_side);
  // Allocates the flat buffer, zeroed, and sets every view. `options`: dtype and device of the
  // computation.
  void allocate(const at::TensorOptions& options);
  // Points every view's gradient into `flat`, a buffer of flat_numel() elements.
  void set_gradients(const at::Tensor& flat);

  const at::Tensor& flat() const { return flat_; }  // [flat_numel], padding between Weights is zero
  int64_t flat_numel() const { return flat_numel_; }
  std::vector<Parameter>& list() { return list_; }
  const std::vector<Parameter>& list() const { return list_; }
  std::deque<Weight>& weights() { return weights_; }
  const std::deque<Weight>& weights() const { return weights_; }

 private:
  at::Tensor flat_;
  int64_t flat_numel_ = 0;
  std::vector<Parameter> list_;
  std::deque<Weight> weights_;  // a deque: pointers to its elements stay valid
};

}  // namespace picotron
