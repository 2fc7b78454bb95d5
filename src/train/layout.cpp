// Plain arithmetic on a config's sizes; the costs that `balance: "flops"` weighs.
#include "train/layout.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace picotron {

LayoutSizes layout_sizes(const LlamaConfig& architecture) {
  return {.num_attention_heads = architecture.num_attention_heads,
          .num_key_value_heads = architecture.num_key_value_heads,
          .num_hidden_layers = architecture.num_hidden_layers,
          .intermediate_size = architecture.intermediate_size,
          .vocab_size = architecture.vocab_size};
}

std::optional<LayoutSizes> known_layout_sizes(const ModelKeys& keys) {
  constexpr int64_t kAnyVocabulary = int64_t{1} << 30;
  try {
    return layout_sizes(resolve_architecture(
        keys, keys.vocab_size ? std::nullopt : std::optional<int64_t>(kAnyVocabulary)));
  } catch (const UserError&) {
    return std::nullopt;  // said by whoever needs the architecture
  }
}

TokenCosts token_costs(const LlamaConfig& c, int64_t seq_length) {
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  const double hidden = real(c.hidden_size), queries = real(c.num_attention_heads * c.head_dim);
  const double keys = real(c.num_key_value_heads * c.head_dim);
  const double products =
      hidden * (2 * queries + 2 * keys) + 3 * hidden * real(c.intermediate_size);
  const double attention = queries * real(seq_length);  // q·k and p·v, half of each under the mask
  return {.layer = products + attention,
          .attention = attention,
          .embedding = hidden,
          .head = hidden * real(c.vocab_size)};
}

std::string layout_text(const Config& config) {
  const Distributed& d = config.distributed;
  std::string text =
      fmt::format("dp {} · tp {} · pp {} · cp {}", d.dp_size, d.tp_size, d.pp_size, d.cp_size);
  if (d.pp_size > 1) text += fmt::format(", {}", to_string(d.pp_engine));
  if (d.pp_chunks > 1) text += fmt::format(", {} chunks", d.pp_chunks);
  if (d.sequence_parallel) text += ", sequence parallel";
  if (config.training.recompute != Recompute::none)
    text += fmt::format(", recompute {}", to_string(config.training.recompute));
  return text + fmt::format(", zero {}", d.zero_stage);
}

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
  const TokenCosts costs = token_costs(architecture, config.training.seq_length);
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

ScheduleOptions schedule_options(const Config& config, int stage, bool forward_only) {
  const Distributed& d = config.distributed;
  return {.engine = d.pp_engine,
          .stage = stage,
          .stages = static_cast<int>(d.pp_size),
          .chunks = static_cast<int>(d.pp_chunks),
          .microbatches = gradient_accumulation_steps(config),
          .forward_only = forward_only};
}

Schedule schedule_of_stage(const Config& config, int stage, bool forward_only) {
  return make_schedule(schedule_options(config, stage, forward_only));
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
