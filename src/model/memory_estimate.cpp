// The table of memory_estimate.h, multiplied out and walked through a schedule.
#include "model/memory_estimate.h"

#include <algorithm>

namespace picotron {
namespace {

struct Bytes {
  double compute, gradient, master, moment;  // of a number
  double statistic;                          // log-sum-exp and norms are never bf16
};

Bytes bytes_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return {2, 4, 4, 4, 4};
    case DType::float32:
      return {4, 4, 0, 4, 4};
    case DType::float64:
      return {8, 8, 0, 8, 8};
  }
  return {};
}

constexpr double kGaps = 0.15;

double real(int64_t value) {
  return static_cast<double>(value);
}

// What a rank's tensors take, in bytes.
struct Sizes {
  const RankShape& shape;
  const Bytes bytes = bytes_of(shape.dtype);
  const double tokens = real(shape.tokens);
  const double stream = tokens / (shape.sequence_parallel ? real(shape.tp) : 1);
  const double hidden = real(shape.hidden);
  const double query = real(shape.heads) * real(shape.head_dim);
  const double keys = 2 * real(shape.key_value_heads) * real(shape.head_dim);
  const double intermediate = real(shape.intermediate);

  double of(double rows, double columns) const { return bytes.compute * rows * columns; }
  // attention's output and statistics, and act
  double computed_again() const {
    return of(tokens, query + intermediate) + bytes.statistic * tokens * real(shape.heads);
  }
  double layer() const {
    return of(stream, 4 * hidden) + of(tokens, query + keys + 2 * intermediate) +
           bytes.statistic * 2 * stream + computed_again();
  }
  double kept_layer() const {
    switch (shape.recompute) {
      case Recompute::none:
        return layer();
      case Recompute::selective:
        return layer() - computed_again();
      case Recompute::full:
        return of(stream, hidden);
    }
    return 0;
  }
  bool ends_with_loss(size_t chunk) const {
    return shape.vocab > 0 && chunk + 1 == shape.layers.size();
  }
  double last_norm() const { return of(stream, 2 * hidden) + bytes.statistic * stream; }
  double kept(size_t chunk) const {
    return real(shape.layers[chunk]) * kept_layer() + (ends_with_loss(chunk) ? last_norm() : 0);
  }
  // (dy, x) of every product, until the weight half of the backward.
  double queued(size_t chunk) const {
    const double layer_queue =
        of(tokens, 2 * query + keys + 3 * intermediate) + of(tokens, 4 * hidden);
    return real(shape.layers[chunk]) * layer_queue;
  }
  // Beside what is kept: dact, dgate_up, dout, dqkv and five gradients of the stream; what is
  // computed again; the tokens of the others, gathered; on the ring, blocks and sums of keys and
  // values, here and arriving, and the sum of dq.
  double layer_backward() const {
    double most = of(tokens, 3 * intermediate + 2 * query + keys) + of(stream, 5 * hidden) +
                  layer() - kept_layer();
    if (shape.sequence_parallel && shape.tp > 1) most += of(tokens, 2 * hidden);
    if (shape.cp > 1) most += of(tokens, 2 * keys) + bytes.gradient * tokens * (2 * keys + query);
    return most;
  }
  // The head works on chunks of tokens whose logits take about 64 MB (vocab_parallel.cpp).
  double head_backward() const {
    const double most = std::clamp(double{32 << 20} / real(shape.vocab), 256.0, 4096.0);
    const double chunk = std::min(tokens, most);
    const double gathered = shape.sequence_parallel && shape.tp > 1 ? 1 : 0;
    return of(chunk, real(shape.vocab) + hidden) + of(tokens, (1 + gathered) * hidden);
  }
  double backward(size_t chunk) const {
    const double layer_part = shape.layers[chunk] > 0 ? layer_backward() : 0;
    if (!ends_with_loss(chunk)) return layer_part;
    return std::max(head_backward(), layer_part - last_norm());
  }
};

// The most that is kept at once, and what the backward that meets it needs beside.
double activations(const Sizes& sizes) {
  ScheduleOptions options = sizes.shape.schedule;
  const size_t chunks = sizes.shape.layers.size();
  double every_chunk = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk) every_chunk += sizes.kept(chunk);
  if (options.engine == PpEngine::afab)
    return real(options.microbatches) * every_chunk + sizes.backward(chunks - 1);
  // The others are as deep after a few rounds as they will ever be.
  options.microbatches =
      std::min<int64_t>(options.microbatches, int64_t{4} * options.virtual_stages());
  double now = 0, most = 0;
  for (const Action& action : make_schedule(options)) {
    const auto chunk = static_cast<size_t>(action.chunk);
    switch (action.kind) {
      case ActionKind::forward:
        now += sizes.kept(chunk);
        most = std::max(most, now);
        break;
      case ActionKind::backward:
        most = std::max(most, now + sizes.backward(chunk));
        now -= sizes.kept(chunk);
        break;
      case ActionKind::backward_input:
        most = std::max(most, now + sizes.backward(chunk));
        now += sizes.queued(chunk) - sizes.kept(chunk);
        break;
      case ActionKind::backward_weight:
        now -= sizes.queued(chunk);
        break;
      default:
        break;
    }
  }
  return most;
}

double buffers(const Sizes& sizes) {
  const RankShape& shape = sizes.shape;
  double total = 0;
  if (shape.replicas > 1) {
    // The other replicas' copies of my part of each bucket. At worst the network lags so far behind
    // backward that all are on their way at once, which two cores for eight ranks have shown.
    for (const int64_t bucket : shape.buckets)
      total += sizes.bytes.gradient * real(bucket) * (1 - 1 / real(shape.replicas));
  }
  const double stream = sizes.of(sizes.stream, sizes.hidden);
  // A receive under way in each direction, and as many sends as may be.
  if (shape.schedule.stages > 1) total += 2 * (1 + real(kSendsUnderWay)) * stream;
  if (shape.tp > 1) total += sizes.of(sizes.tokens, sizes.hidden);
  return total;
}

}  // namespace

MemoryEstimate estimate_memory(const RankShape& shape) {
  const Sizes sizes{shape};
  const Bytes& bytes = sizes.bytes;
  const double elements = real(shape.elements), owned = real(shape.owned);
  const int moments = shape.optimizer == OptimizerKind::adamw ? 2 : 0;
  const double kept = activations(sizes);
  return {.weights = bytes.compute * elements,
          .master = bytes.master * owned,
          .gradients = bytes.gradient * elements,
          .moments = moments * bytes.moment * owned,
          .activations = kept,
          .buffers = buffers(sizes),
          .gaps = kGaps * kept};
}

}  // namespace picotron
