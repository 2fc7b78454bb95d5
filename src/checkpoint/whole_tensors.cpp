// A table of who holds what, then one question and its answers at a time.
#include "checkpoint/whole_tensors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "dist/collectives.h"

namespace picotron {
namespace {

constexpr int64_t kNoMore = -1;

}  // namespace

WholeTensors::WholeTensors(const std::map<std::string, std::vector<int64_t>>& shapes,
                           const Parameters& parameters, const at::Tensor& flat, const Mesh& mesh)
    : shapes_(shapes), flat_(flat), mesh_(mesh), mine_(shapes.size(), nullptr) {
  const at::TensorOptions table_options = flat.options().dtype(at::kLong);
  const auto names = static_cast<int64_t>(shapes.size());
  const at::Tensor table = at::zeros({names, kColumns}, at::kLong);
  for (const Parameter& parameter : parameters.list()) {
    const bool is_first_replica = mesh.my.dp == 0 && mesh.my.cp == 0;
    if (!is_first_replica || !parameter.counts_in_norm || !shapes.contains(parameter.name))
      continue;
    const int64_t index = index_of(parameter.name);
    const Shard& shard = parameter.shard;
    mine_[static_cast<size_t>(index)] = &parameter;
    table[index].copy_(at::tensor({shard.dim, shard.begin, shard.end}, at::kLong));
  }
  if (mesh.global_rank != 0) {
    send(table.to(table_options.device()), 0, mesh.world).wait();
    return;
  }
  holders_.push_back(table);
  for (int rank = 1; rank < mesh.world_size; ++rank) {
    const at::Tensor received = at::empty({names, kColumns}, table_options);
    receive(received, rank, mesh.world).wait();
    holders_.push_back(received.to(at::kCPU));
  }
}

int64_t WholeTensors::index_of(const std::string& name) const {
  const auto found = shapes_.find(name);
  check(found != shapes_.end(), "a tensor of the model");
  return std::distance(shapes_.begin(), found);
}

at::Tensor WholeTensors::local_part(int64_t index) const {
  const Parameter& parameter = *mine_[static_cast<size_t>(index)];
  return flat_.narrow(0, parameter.offset, parameter.numel()).view(parameter.local_shape());
}

std::vector<WholeTensors::Part> WholeTensors::parts_of(const std::string& name) const {
  const int64_t index = index_of(name);
  std::vector<Part> parts;
  for (size_t rank = 0; rank < holders_.size(); ++rank) {
    const int64_t* row = holders_[rank].const_data_ptr<int64_t>() + kColumns * index;
    if (row[2] > 0) parts.push_back({static_cast<int>(rank), {row[0], row[1], row[2]}});
  }
  return parts;
}

at::Tensor WholeTensors::whole(const std::string& name) {
  const int64_t index = index_of(name);
  broadcast(at::full({1}, index, flat_.options().dtype(at::kLong)), 0, mesh_.world).wait();
  const at::Tensor result = at::empty(shapes_.at(name), flat_.options());
  int64_t numel = 0;
  for (const auto& [rank, shard] : parts_of(name)) {
    const at::Tensor into = result.narrow(shard.dim, shard.begin, shard.end - shard.begin);
    numel += into.numel();
    if (rank == 0) {
      into.copy_(local_part(index));
      continue;
    }
    const at::Tensor part = at::empty(into.sizes(), flat_.options());
    receive(part, rank, mesh_.world).wait();
    into.copy_(part);
  }
  check(numel == result.numel(),
        fmt::format("the shards of {} make the whole of it: of its {} elements, the ranks that "
                    "count it in the norm hold {}",
                    name, result.numel(), numel));
  return result;
}

void WholeTensors::finish() {
  broadcast(at::full({1}, kNoMore, flat_.options().dtype(at::kLong)), 0, mesh_.world).wait();
}

void WholeTensors::serve() {
  const at::Tensor question = at::empty({1}, flat_.options().dtype(at::kLong));
  for (;;) {
    broadcast(question, 0, mesh_.world).wait();
    const auto index = question.item<int64_t>();
    if (index == kNoMore) return;
    if (mine_[static_cast<size_t>(index)] != nullptr)
      send(local_part(index), 0, mesh_.world).wait();
  }
}

}  // namespace picotron
