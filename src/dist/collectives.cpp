// Each collective twice: over Gloo, out of sends, receives and a sum of ours on the channel's
// thread; over NCCL, by its own operations on their stream. Both leave an entry in the record.
#include "dist/collectives.h"

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "dist/channel.h"

namespace picotron {
namespace {

constexpr int kPointToPointTag = 0;

// An entry of the record that ends when the collective does, on whichever thread that is.
class Open {
 public:
  // `peer`: the rank in the group at the other end; −1: all of them.
  Open(const char* what, record::Kind kind, const at::Tensor& x, int64_t bytes, const Group& group,
       const At& at, int peer = -1)
      : recorder_(record::current()) {
    if (recorder_ == nullptr) return;
    record::Entry entry{.kind = kind,
                        .axis = group.axis,
                        .what = what,
                        .bytes = bytes,
                        .file = at.file_name(),
                        .line = at.line(),
                        .ranks = group.size()};
    if (peer >= 0) entry.peer = group.global_ranks.at(static_cast<size_t>(peer));
    for (int64_t dim = 0; dim < std::min<int64_t>(x.dim(), 4); ++dim) {
      entry.shape[static_cast<size_t>(dim)] = x.size(dim);
    }
    sequence_ = recorder_->begin(entry);
  }
  void end() const {
    if (recorder_ != nullptr) recorder_->end(sequence_);
  }
  uint64_t sequence() const { return sequence_; }

 private:
  record::Recorder* recorder_;
  uint64_t sequence_ = 0;
};

// Parts of a flat tensor, one per rank of the group.
struct Parts {
  at::Tensor flat;
  int64_t ranks;

  int64_t numel(int rank) const {
    return part_begin(flat.numel(), ranks, rank + 1) - part_begin(flat.numel(), ranks, rank);
  }
  at::Tensor of(int rank) const {
    return flat.narrow(0, part_begin(flat.numel(), ranks, rank), numel(rank));
  }
  int64_t bytes_but_mine(int rank) const {
    return (flat.numel() - numel(rank)) * flat.element_size();
  }
};

// out[i] ← Σ_r of part r's element i, in rank order; others[mine] is unused. Accumulator is float
// for bfloat16, so that the sum is rounded once.
constexpr int64_t kBlock = 1024;  // elements; sums that stay in the first cache

template <class Element, class Accumulator>
void sum_in_rank_order(const at::Tensor& mine, const std::vector<at::Tensor>& others,
                       int mine_rank) {
  Element* out = mine.data_ptr<Element>();
  std::vector<const Element*> parts;
  for (int rank = 0; rank < static_cast<int>(others.size()); ++rank) {
    parts.push_back(rank == mine_rank ? out
                                      : others[static_cast<size_t>(rank)].data_ptr<Element>());
  }
  std::array<Accumulator, kBlock> sum;
  const auto add_block = [&](int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<Accumulator>(parts[0][begin + i]);
    for (size_t rank = 1; rank < parts.size(); ++rank) {
      const Element* part = parts[rank] + begin;
      for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<Accumulator>(part[i]);
    }
    for (int64_t i = 0; i < count; ++i) out[begin + i] = static_cast<Element>(sum[i]);
  };
  const int64_t whole = mine.numel() / kBlock * kBlock;
  // A constant count lets the compiler use vector instructions.
  for (int64_t begin = 0; begin < whole; begin += kBlock) add_block(begin, kBlock);
  add_block(whole, mine.numel() - whole);
}

void sum_parts(const at::Tensor& mine, const std::vector<at::Tensor>& others, int mine_rank) {
  if (mine.numel() == 0) return;  // an empty part: nothing was received
  switch (mine.scalar_type()) {
    case at::kFloat:
      return sum_in_rank_order<float, float>(mine, others, mine_rank);
    case at::kDouble:
      return sum_in_rank_order<double, double>(mine, others, mine_rank);
    default:
      return sum_in_rank_order<at::BFloat16, float>(mine, others, mine_rank);
  }
}

void check_summable(const at::Tensor& x) {
  check(x.is_contiguous(), "a collective needs a contiguous tensor");
  check(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble ||
            x.scalar_type() == at::kBFloat16,
        "a collective sums float32, float64 or bfloat16");
}

// Gloo takes no CUDA tensors: `host` is where it works, in pinned memory where x is not on a CPU.
struct Staged {
  at::Tensor x, host;

  explicit Staged(const at::Tensor& tensor)
      : x(tensor),
        host(tensor.is_cpu()
                 ? tensor
                 : at::empty_like(tensor, tensor.options().device(at::kCPU).pinned_memory(true))) {
    if (!x.is_cpu()) host.copy_(x);
  }
  void back() const {
    if (!x.is_cpu()) at::Tensor(x).copy_(host);
  }
};

// A Work whose job runs on the channel's thread; what came to pinned memory is copied back by the
// waiting thread, on its stream.
Work in_background(const Group& group, const Staged& staged, const Open& open,
                   std::function<void()> job) {
  std::shared_future<void> done = group.channel->submit([job = std::move(job), open] {
    job();
    open.end();
  });
  return Work([done, staged, awaited = group.channel->awaited(), sequence = open.sequence()] {
    const Waiting waiting(awaited, sequence);
    done.get();
    staged.back();
  });
}

// A Work of a backend with streams of its own (NCCL): wait() lets the current stream wait. `keep`
// holds what the operation still reads.
Work on_stream(const Group& group, const Open& open, std::vector<at::Tensor> keep,
               const std::function<c10::intrusive_ptr<c10d::Work>(c10d::Backend&)>& start) {
  c10::intrusive_ptr<c10d::Work> work;
  group.channel->guarded([&] { work = start(group.channel->backend()); });
  return Work([channel = group.channel, work, open, keep = std::move(keep)] {
    const Waiting waiting(channel->awaited(), open.sequence());
    channel->guarded([&] { work->wait(); });
    open.end();
  });
}

// The two halves of an all-reduce on Gloo. Each member sends to the next ones first, so that no
// rank is everyone's first target.
struct Exchange {
  Channel* channel;  // not owned: the job that holds this runs on the channel's thread
  Parts parts;
  int rank;
  std::vector<at::Tensor> received = {};  // the peers' copies of my part
  Channel::Pending pending = {};

  int peer(int distance) const { return static_cast<int>((rank + distance) % parts.ranks); }
  void post_reduce_scatter(int tag) {
    received.resize(static_cast<size_t>(parts.ranks));
    const int64_t mine = parts.numel(rank);
    for (int distance = 1; distance < parts.ranks && mine > 0; ++distance) {
      const int from = peer(distance);
      received[static_cast<size_t>(from)] = channel->borrow(mine, parts.flat.scalar_type());
      channel->post_receive(pending, received[static_cast<size_t>(from)], from, tag);
    }
    for (int distance = 1; distance < parts.ranks; ++distance) {
      const int to = peer(distance);
      if (parts.numel(to) > 0) channel->post_send(pending, parts.of(to), to, tag);
    }
  }
  void finish_reduce_scatter() {
    channel->wait_for(pending);
    pending.clear();
    sum_parts(parts.of(rank), received, rank);
    for (const at::Tensor& part : received) {
      if (part.defined()) channel->give_back(part);
    }
    received.clear();
  }
  void post_all_gather(int tag) {
    for (int distance = 1; distance < parts.ranks; ++distance) {
      const int from = peer(distance);
      if (parts.numel(from) > 0) channel->post_receive(pending, parts.of(from), from, tag);
    }
    for (int distance = 1; distance < parts.ranks && parts.numel(rank) > 0; ++distance) {
      channel->post_send(pending, parts.of(rank), peer(distance), tag);
    }
  }
  void finish_all_gather() {
    channel->wait_for(pending);
    pending.clear();
  }
};

std::shared_ptr<Exchange> make_exchange(const Staged& staged, const Group& group) {
  return std::make_shared<Exchange>(Exchange{.channel = group.channel.get(),
                                             .parts = {staged.host.view({-1}), group.size()},
                                             .rank = group.rank});
}

}  // namespace

Work::Work(std::function<void()> finish) : finish_(std::move(finish)) {}

void Work::wait() {
  if (const auto finish = std::exchange(finish_, nullptr)) finish();
}

int64_t part_begin(int64_t numel, int64_t ranks, int64_t rank) {
  return rank * (numel / ranks) + std::min(rank, numel % ranks);
}

Work all_reduce(const at::Tensor& x, const Group& group, At at) {
  check_summable(x);
  if (group.size() == 1) return Work();
  const Parts parts{x.view({-1}), group.size()};
  const int64_t bytes = parts.bytes_but_mine(group.rank) +
                        (group.size() - 1) * parts.numel(group.rank) * x.element_size();
  const Open open("all_reduce", record::Kind::collective, x, bytes, group, at);
  if (!group.channel->on_gloo()) {
    return on_stream(group, open, {x}, [&](c10d::Backend& backend) {
      std::vector<at::Tensor> tensors = {x};
      return backend.allreduce(tensors);
    });
  }
  const Staged staged(x);
  const auto exchange = make_exchange(staged, group);
  exchange->post_reduce_scatter(group.channel->next_tag());
  const int tag = group.channel->next_tag();
  return in_background(group, staged, open, [exchange, tag] {
    exchange->finish_reduce_scatter();
    exchange->post_all_gather(tag);
    exchange->finish_all_gather();
  });
}

Work reduce_scatter(const at::Tensor& x, const Group& group, At at) {
  check_summable(x);
  check(x.dim() == 1, "reduce_scatter needs a flat tensor");
  if (group.size() == 1) return Work();
  const Parts parts{x, group.size()};
  const Open open("reduce_scatter", record::Kind::collective, x, parts.bytes_but_mine(group.rank),
                  group, at);
  if (!group.channel->on_gloo()) {
    std::vector<at::Tensor> outputs = {parts.of(group.rank)};
    std::vector<std::vector<at::Tensor>> inputs(1);
    for (int rank = 0; rank < group.size(); ++rank) inputs[0].push_back(parts.of(rank));
    return on_stream(group, open, {x}, [&](c10d::Backend& backend) {
      return backend.reduce_scatter(outputs, inputs);
    });
  }
  const Staged staged(x);
  const auto exchange = make_exchange(staged, group);
  exchange->post_reduce_scatter(group.channel->next_tag());
  return in_background(group, staged, open, [exchange] { exchange->finish_reduce_scatter(); });
}

Work all_gather(const at::Tensor& x, const Group& group, At at) {
  check(x.is_contiguous() && x.dim() == 1, "all_gather needs a flat, contiguous tensor");
  if (group.size() == 1) return Work();
  const Parts parts{x, group.size()};
  const Open open("all_gather", record::Kind::collective, x,
                  (group.size() - 1) * parts.numel(group.rank) * x.element_size(), group, at);
  if (!group.channel->on_gloo()) {
    std::vector<std::vector<at::Tensor>> outputs(1);
    for (int rank = 0; rank < group.size(); ++rank) outputs[0].push_back(parts.of(rank));
    std::vector<at::Tensor> inputs = {parts.of(group.rank)};
    return on_stream(group, open, {x},
                     [&](c10d::Backend& backend) { return backend.allgather(outputs, inputs); });
  }
  const Staged staged(x);
  const auto exchange = make_exchange(staged, group);
  exchange->post_all_gather(group.channel->next_tag());
  return in_background(group, staged, open, [exchange] { exchange->finish_all_gather(); });
}

Work broadcast(const at::Tensor& x, int root, const Group& group, At at) {
  check(x.is_contiguous(), "broadcast needs a contiguous tensor");
  if (group.size() == 1 || x.numel() == 0) return Work();
  const bool is_root = group.rank == root;
  const Open open("broadcast", record::Kind::collective, x,
                  is_root ? (group.size() - 1) * static_cast<int64_t>(x.nbytes()) : 0, group, at);
  if (!group.channel->on_gloo()) {
    return on_stream(group, open, {x}, [&](c10d::Backend& backend) {
      std::vector<at::Tensor> tensors = {x};
      return backend.broadcast(tensors, {.rootRank = root});
    });
  }
  const Staged staged(x);
  Channel::Pending pending;
  const int tag = group.channel->next_tag();
  if (!is_root) group.channel->post_receive(pending, staged.host, root, tag);
  for (int to = 0; is_root && to < group.size(); ++to) {
    if (to != root) group.channel->post_send(pending, staged.host, to, tag);
  }
  return in_background(group, staged, open,
                       [channel = group.channel.get(), pending] { channel->wait_for(pending); });
}

void barrier(const Group& group, At at) {
  if (group.size() == 1) return;
  const at::Tensor token = at::zeros({group.size()}, at::kByte);
  const Open open("barrier", record::Kind::collective, token, group.size() - 1, group, at);
  if (!group.channel->on_gloo()) {
    on_stream(group, open, {}, [](c10d::Backend& backend) { return backend.barrier(); }).wait();
    return;
  }
  const Staged staged(token);
  const auto exchange = make_exchange(staged, group);
  exchange->post_all_gather(group.channel->next_tag());
  in_background(group, staged, open, [exchange] { exchange->finish_all_gather(); }).wait();
}

Work send(const at::Tensor& x, int to, const Group& group, At at) {
  check(x.is_contiguous() && to != group.rank, "send needs a contiguous tensor and another rank");
  if (x.numel() == 0) return Work();
  const Open open("send", record::Kind::send_receive, x, static_cast<int64_t>(x.nbytes()), group,
                  at, to);
  if (!group.channel->on_gloo()) {
    return on_stream(group, open, {x}, [&](c10d::Backend& backend) {
      std::vector<at::Tensor> tensors = {x};
      return backend.send(tensors, to, kPointToPointTag);
    });
  }
  const Staged staged(x);
  Channel::Pending pending;
  group.channel->post_send(pending, staged.host, to, kPointToPointTag);
  return Work([channel = group.channel, pending, staged, open] {
    const Waiting waiting(channel->awaited(), open.sequence());
    channel->wait_for(pending);
    open.end();
  });
}

Work receive(const at::Tensor& x, int from, const Group& group, At at) {
  check(x.is_contiguous() && from != group.rank,
        "receive needs a contiguous tensor and another rank");
  if (x.numel() == 0) return Work();
  const Open open("receive", record::Kind::send_receive, x, 0, group, at, from);
  if (!group.channel->on_gloo()) {
    return on_stream(group, open, {x}, [&](c10d::Backend& backend) {
      std::vector<at::Tensor> tensors = {x};
      return backend.recv(tensors, from, kPointToPointTag);
    });
  }
  const Staged staged(x);
  Channel::Pending pending;
  group.channel->post_receive(pending, staged.host, from, kPointToPointTag);
  return Work([channel = group.channel, pending, staged, open] {
    const Waiting waiting(channel->awaited(), open.sequence());
    channel->wait_for(pending);
    staged.back();
    open.end();
  });
}

Work send_receive(const SendReceive& messages, const Group& group, At at) {
  const auto& [sent, to, received, from] = messages;
  check(sent.is_contiguous() && received.is_contiguous() && sent.numel() > 0 &&
            received.numel() > 0 && to != group.rank && from != group.rank,
        "send_receive needs contiguous tensors that are not empty, and other ranks");
  const Open send_open("send", record::Kind::send_receive, sent,
                       static_cast<int64_t>(sent.nbytes()), group, at, to);
  const Open receive_open("receive", record::Kind::send_receive, received, 0, group, at, from);
  const auto end = [send_open, receive_open] {
    send_open.end();
    receive_open.end();
  };
  const uint64_t sequence = receive_open.sequence();
  const std::shared_ptr<Channel> channel = group.channel;
  if (!channel->on_gloo()) {
    c10::intrusive_ptr<c10d::Work> work;
    channel->guarded([&] {
      std::vector<at::Tensor> out = {messages.sent}, in = {messages.received};
      channel->backend().startCoalescing();
      channel->backend().send(out, messages.to, kPointToPointTag);
      channel->backend().recv(in, messages.from, kPointToPointTag);
      work = channel->backend().endCoalescing();
    });
    return Work([channel, work, end, messages, sequence] {
      const Waiting waiting(channel->awaited(), sequence);
      channel->guarded([&] { work->wait(); });
      end();
    });
  }
  const Staged staged_out(sent), staged_in(received);
  Channel::Pending pending;
  channel->post_receive(pending, staged_in.host, from, kPointToPointTag);
  channel->post_send(pending, staged_out.host, to, kPointToPointTag);
  return Work([channel = channel.get(), pending, staged_out, staged_in, end, sequence] {
    const Waiting waiting(channel->awaited(), sequence);
    channel->wait_for(pending);
    staged_in.back();
    end();
  });
}

}  // namespace picotron
