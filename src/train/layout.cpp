// Plain arithmetic on a config's sizes; the costs that `balance: "flops"` weighs.
#include "train/layout.h"

#include <algorithm>

namespace picotron {
namespace {

// Multiply-adds of a token in the forward pass; backward has twice as many of each.
struct Costs {
  double layer, embedding, head;
};

Costs costs_of(const LlamaConfig& c, int64_t seq_length) {
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  const double hidden = real(c.hidden_size), queries = real(c.num_attention_heads * c.head_dim);
  const double keys = real(c.num_key_value_heads * c.head_dim);
  const double products =
      hidden * (2 * queries + 2 * keys) + 3 * hidden * real(c.intermediate_size);
  const double attention = queries * real(seq_length);  // q·k and p·v, half of each under the mask
  return {products + attention, hidden, hidden * real(c.vocab_size)};
}

}  // namespace

AxisSizes axis_sizes(const Config& config) {
  const Distributed& d = config.distributed;
  return {static_cast<int>(d.dp_size), static_cast<int>(d.pp_size), static_cast<int>(d.cp_size),
          static_cast<int>(d.tp_size)};
}

MeshOptions mesh_options(const Config& config, const LlamaConfig& architecture) {
  const Distributed& d = config.distributed;
  const int64_t sharing = std::max<int64_t>(1, d.tp_size / architecture.num_key_value_heads);
  return {.order = d.mesh_order,
          .key_value_sharing = static_cast<int>(sharing),
          .pp_chunks = static_cast<int>(d.pp_chunks)};
}

std::vector<Range> layers_of_stage(const Config& config, const LlamaConfig& architecture,
                                   int stage) {
  const Distributed& d = config.distributed;
  const auto stages = static_cast<int>(d.pp_size), chunks = static_cast<int>(d.pp_chunks);
  const Costs costs = costs_of(architecture, config.training.seq_length);
  const bool weighs = d.balance == Balance::flops;
  const std::vector<int64_t> layers = split_layers(architecture.num_hidden_layers, stages * chunks,
                                                   weighs ? costs.embedding / costs.layer : 0,
                                                   weighs ? costs.head / costs.layer : 0);
  std::vector<Range> mine;
  int64_t begin = 0;
  for (int virtual_stage = 0; virtual_stage < stages * chunks; ++virtual_stage) {
    const int64_t end = begin + layers[static_cast<size_t>(virtual_stage)];
    if (virtual_stage % stages == stage) mine.push_back({begin, end});
    begin = end;
  }
  return mine;
}

Schedule schedule_of_stage(const Config& config, int stage, bool forward_only) {
  const Distributed& d = config.distributed;
  return make_schedule({.engine = d.pp_engine,
                        .stage = stage,
                        .stages = static_cast<int>(d.pp_size),
                        .chunks = static_cast<int>(d.pp_chunks),
                        .microbatches = gradient_accumulation_steps(config),
                        .forward_only = forward_only});
}

Llama::Options llama_options(const Run& run, int stage, c10::Device device) {
  const Config& config = run.config;
  return {.tensors = at::TensorOptions(run.dtype).device(device),
          .max_positions = config.training.seq_length,
          .body = config.kernels.fused ? Body::fused : Body::plain,
          .chunks = layers_of_stage(config, run.architecture, stage),
          .sequence_parallel = config.distributed.sequence_parallel,
          .recompute = config.training.recompute};
}

}  // namespace picotron
