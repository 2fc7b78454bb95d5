// Whole tensors, wherever their shards lie: rank 0 asks for one by name, the ranks that hold a part
// of it send theirs, and rank 0 lays the parts side by side. One tensor at a time, so that no rank
// ever needs memory for the whole model.
//
//     rank 0        whole("…q_proj.weight")  ── which one? ──▶ everyone
//     tp 0, tp 1    rows [0, 32)  rows [32, 64)  ── parts ──▶ rank 0
//
// Who holds what is gathered once, from each rank's list of Parameters; so this knows nothing of
// layouts. Of the replicas in dp×cp, and of ranks that hold the same elements, one sends.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dist/mesh.h"
#include "parallel/parameter.h"

namespace picotron {

class WholeTensors {
 public:
  // Collective over the world. `shapes`: every tensor of the model by name, equal on every rank.
  // `flat`: a buffer of the layout of parameters.flat(), of one dtype everywhere, whose values are
  // complete on this rank. All outlive this object.
  WholeTensors(const std::map<std::string, std::vector<int64_t>>& shapes,
               const Parameters& parameters, const at::Tensor& flat, const Mesh& mesh);

  // On rank 0: the whole tensor, on flat's device. BrokenInvariant where its parts leave a gap.
  at::Tensor whole(const std::string& name);
  // On rank 0: which ranks hold which part of it, of replicas the first.
  struct Part {
    int global_rank;
    Shard shard;
  };
  std::vector<Part> parts_of(const std::string& name) const;
  // On rank 0: no more questions.
  void finish();
  // On every other rank: answers until rank 0 has finished.
  void serve();

 private:
  // Part of a tensor, as a row of a table that is sent: dim, begin, end; end 0 where there is none.
  static constexpr int64_t kColumns = 3;
  int64_t index_of(const std::string& name) const;
  at::Tensor local_part(int64_t index) const;

  const std::map<std::string, std::vector<int64_t>>& shapes_;
  const at::Tensor& flat_;
  const Mesh& mesh_;
  std::vector<const Parameter*> mine_;  // by index of the name: what this rank sends, or null
  std::vector<at::Tensor> holders_;     // on rank 0, by global rank: int64 [names, 3]
};

}  // namespace picotron
