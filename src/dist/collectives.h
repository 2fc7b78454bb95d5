// Collectives: the only caller of c10d's process groups. What every rank of a group does together.
//
//   all_reduce      every rank ends with the sum of all                  x_r ← Σ_s x_s
//   reduce_scatter  rank r ends with part r of the sum                   y_r ← Σ_s x_s[part r]
//   all_gather      every rank ends with all parts, in rank order        y   ← concat_s x_s
//   broadcast       every rank ends with the root's
//
// A group of size 1 makes each a no-op, inside the operation. Each starts at once, goes on in the
// background (dist/channel.h) and returns a Work, which holds its tensors; wait() before touching
// them. Destroying a Work that was not waited for is safe, but its tensors are then undefined. Each
// leaves an Entry in the record.
//
// Gloo: reduce-scatter is an all-to-all of exact, uneven parts and a sum in rank order, in fp32
// (bf16 and fp32 tensors) or fp64, rounded once; all-reduce adds an all-gather. So the bits do not
// depend on timing and match between the two, and c10d Gloo's own reduce-scatter (a clone and an
// all-reduce, twice the bytes) is not used.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <source_location>
#include <vector>

#include "dist/mesh.h"

namespace picotron {

// A collective under way. Movable; wait() returns when the result is in the output tensor, throws
// RunError naming the rank that is lost or behind if the group's timeout passes (dist/heartbeat.h).
// wait() twice is harmless.
class [[nodiscard]] Work {
 public:
  Work() = default;  // already done
  explicit Work(std::function<void()> finish);
  Work(Work&&) noexcept = default;
  Work& operator=(Work&&) noexcept = default;
  void wait();

 private:
  std::function<void()> finish_;
};

using At = std::source_location;

// Part r of a buffer of `numel` elements over `ranks` ranks is [part_begin(numel, ranks, r),
// part_begin(…, r + 1)): as torch.tensor_split, the first numel % ranks parts are one longer.
int64_t part_begin(int64_t numel, int64_t ranks, int64_t rank);

// Sums are of float32, float64 and bfloat16 tensors.
// x: contiguous, same numel on every rank; summed in place.
Work all_reduce(const at::Tensor& x, const Group& group, At at = At::current());
// x: contiguous 1-D; on return my part of x (part_begin) holds the sum, the others are undefined.
Work reduce_scatter(const at::Tensor& x, const Group& group, At at = At::current());
// x: contiguous 1-D; on entry my part (part_begin) is filled, on return all are.
Work all_gather(const at::Tensor& x, const Group& group, At at = At::current());
// x: contiguous, same numel on every rank.
Work broadcast(const at::Tensor& x, int root, const Group& group, At at = At::current());
// Returns when every rank of the group has called it.
void barrier(const Group& group, At at = At::current());
// Point to point between ranks of a group; messages between two ranks arrive in the order sent.
Work send(const at::Tensor& x, int to, const Group& group, At at = At::current());
Work receive(const at::Tensor& x, int from, const Group& group, At at = At::current());

// A send and a receive that go on together, each with its entry in the record. In a ring every rank
// sends before it receives, and a send of NCCL ends only when its receive has started: one after
// the other, all would wait for all.
struct SendReceive {
  at::Tensor sent;  // contiguous, not empty, as `received`
  int to = 0;
  at::Tensor received;
  int from = 0;
};
Work send_receive(const SendReceive& messages, const Group& group, At at = At::current());

}  // namespace picotron
