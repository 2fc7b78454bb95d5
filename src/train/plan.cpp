// Asks the layout, the Parameter lists, the formulas and the schedule's checker, and prints it.
#include "train/plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "dist/collectives.h"
#include "kernels/matmul.h"
#include "train/layout.h"
#include "train/metrics.h"

namespace picotron {
namespace {

int64_t part_of(int64_t size, int64_t parts, int64_t part) {
  return part_begin(size, parts, part + 1) - part_begin(size, parts, part);
}

// "0, 2, 4, 6", "0–7": runs of three and more are drawn together.
std::string listed(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (last < i + 2) last = i;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
    if (last > i) text += fmt::format("–{}", numbers[last]);
    i = last + 1;
  }
  return text;
}

// "dp 0, 1 · tp 0–3": the coordinates of these ranks on axes longer than 1.
std::string places_of(const std::vector<int>& ranks, const AxisSizes& sizes,
                      const std::string& order) {
  constexpr std::pair<const char*, int AxisSizes::*> axes[] = {{"dp", &AxisSizes::dp},
                                                               {"pp", &AxisSizes::pp},
                                                               {"cp", &AxisSizes::cp},
                                                               {"tp", &AxisSizes::tp}};
  std::string text;
  for (const auto& [name, axis] : axes) {
    if (sizes.*axis == 1) continue;
    std::vector<int> coordinates;
    for (const int rank : ranks) coordinates.push_back(coordinates_of(rank, sizes, order).*axis);
    std::ranges::sort(coordinates);
    coordinates.erase(std::unique(coordinates.begin(), coordinates.end()), coordinates.end());
    text += fmt::format("{}{} {}", text.empty() ? "" : " · ", name, listed(coordinates));
  }
  return text;
}

std::string describe_layers(const RankPlan& rank) {
  std::string text = rank.has_embedding ? "embedding, " : "";
  for (const Range& range : rank.layers) {
    text += range.size() == 1 ? fmt::format("layer {}, ", range.begin)
                              : fmt::format("layers {}–{}, ", range.begin, range.end - 1);
  }
  text += rank.has_head ? "norm and head" : "";
  if (text.ends_with(", ")) text.resize(text.size() - 2);
  return text;
}

std::string describe_shard(const RankPlan& rank, const LlamaConfig& c) {
  const auto part = [](const char* what, int64_t here, int64_t all) {
    return here == all ? fmt::format("{} {}", what, all)
                       : fmt::format("{} {} of {}", what, here, all);
  };
  std::string text =
      fmt::format("{} · {} · {}", part("heads", rank.heads, c.num_attention_heads),
                  part("key/value heads", rank.key_value_heads, c.num_key_value_heads),
                  part("inner", rank.intermediate, c.intermediate_size));
  if (rank.has_embedding || rank.has_head)
    text += " · " + part("vocabulary", rank.vocab, c.vocab_size);
  return text;
}

std::string describe_memory(const MemoryEstimate& m) {
  std::string text;
  const std::pair<const char*, double> kinds[] = {
      {"weights", m.weights}, {"master weights", m.master},   {"gradients", m.gradients},
      {"moments", m.moments}, {"activations", m.activations}, {"buffers", m.buffers},
      {"gaps", m.gaps}};
  for (const auto& [name, bytes] : kinds) {
    if (bytes > 0) text += fmt::format("{} {} · ", name, bytes_text(bytes));
  }
  return text + "in all " + bytes_text(m.total());
}

// The first columns of a long timeline.
std::string cut(const std::string& drawing, size_t columns) {
  std::string text;
  for (size_t begin = 0; begin < drawing.size();) {
    const size_t end = drawing.find('\n', begin);
    text.append(drawing, begin, std::min(end - begin, columns));
    if (end - begin > columns) text += "…";
    text += '\n';
    begin = end + 1;
  }
  return text;
}

}  // namespace

std::string bytes_text(double bytes) {
  constexpr const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  for (; bytes >= 1000 && unit + 1 < std::size(units); ++unit) bytes /= 1000;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.3g} {}", bytes, units[unit]);
}

Inventory take_inventory(const Config& config, const LlamaConfig& architecture, int stage,
                         int tp_rank) {
  const AxisSizes sizes = axis_sizes(config);
  const MeshOptions options = mesh_options(config, architecture);
  const int rank =
      global_rank_of({.dp = 0, .pp = stage, .cp = 0, .tp = tp_rank}, sizes, options.order);
  const Mesh mesh = describe_mesh(sizes, rank, options);
  Llama llama(architecture, mesh,
              {.tensors = at::TensorOptions(at::kFloat).device(at::kMeta),
               .max_positions = 1,
               .chunks = layers_of_stage(config, architecture, stage),
               .sequence_parallel = config.distributed.sequence_parallel});
  const Gradients gradients(llama.parameters(), mesh.dp_cp, mesh.world,
                            {.zero_stage = static_cast<int>(config.distributed.zero_stage)});
  Inventory inventory{.elements = llama.parameters().flat_numel()};
  for (const Parameter& parameter : llama.parameters().list())
    inventory.parameters += parameter.numel();
  for (const Range& bucket : gradients.buckets()) {
    inventory.reduced += bucket.size();
    inventory.buckets.push_back(bucket.size());
  }
  return inventory;
}

RankShape rank_shape(const Config& config, const LlamaConfig& c, DType dtype,
                     const Inventory& inventory, int stage, int tp_rank) {
  const Distributed& d = config.distributed;
  const int64_t sharing = mesh_options(config, c).key_value_sharing;
  const bool is_last = stage + 1 == d.pp_size;
  const int64_t replicas = d.dp_size * d.cp_size;
  int64_t owned = 0;  // the first of the replicas has the longest parts
  for (const int64_t bucket : inventory.buckets)
    owned += d.zero_stage == 1 ? part_of(bucket, replicas, 0) : bucket;
  ScheduleOptions schedule = schedule_options(config);
  schedule.stage = stage;
  RankShape shape{
      .elements = inventory.elements,
      .owned = owned,
      .hidden = c.hidden_size,
      .intermediate = part_of(c.intermediate_size, d.tp_size, tp_rank),
      .heads = c.num_attention_heads / d.tp_size,
      .key_value_heads = c.num_key_value_heads * sharing / d.tp_size,
      .head_dim = c.head_dim,
      .vocab = is_last ? part_of(c.vocab_size, d.tp_size, tp_rank) : 0,
      .layers = {},
      .tokens = config.training.micro_batch_size * config.training.seq_length / d.cp_size,
      .tp = d.tp_size,
      .cp = d.cp_size,
      .replicas = replicas,
      .sequence_parallel = d.sequence_parallel,
      .recompute = config.training.recompute,
      .optimizer = config.training.optimizer,
      .dtype = dtype,
      .schedule = schedule,
      .buckets = inventory.buckets};
  for (const Range& range : layers_of_stage(config, c, stage)) shape.layers.push_back(range.size());
  return shape;
}

ActionCosts action_costs(const Config& config, const LlamaConfig& architecture) {
  const Distributed& d = config.distributed;
  const TokenCosts costs = token_costs(architecture, config.training.seq_length);
  std::vector<double> sizes(static_cast<size_t>(d.pp_size * d.pp_chunks));
  for (int stage = 0; stage < d.pp_size; ++stage) {
    const std::vector<Range> chunks = layers_of_stage(config, architecture, stage);
    for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
      sizes[chunk * static_cast<size_t>(d.pp_size) + static_cast<size_t>(stage)] =
          static_cast<double>(chunks[chunk].size()) * costs.layer;
    }
  }
  const double layers = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  sizes.front() += costs.embedding;
  sizes.back() += costs.head;
  const double all = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  for (double& size : sizes) size *= static_cast<double>(sizes.size()) / all;
  // What backward computes again: attention, or all of a layer but its last product.
  const auto inner = static_cast<double>(architecture.hidden_size * architecture.intermediate_size);
  double again = 0;
  if (config.training.recompute == Recompute::selective) again = costs.attention / costs.layer;
  if (config.training.recompute == Recompute::full) again = 1 - inner / costs.layer;
  return {.backward_input = 1 + again * layers / all, .virtual_stages = sizes};
}

Plan make_plan(const Config& config, const LlamaConfig& architecture, DType dtype) {
  const Distributed& d = config.distributed;
  Plan plan{.config = config, .architecture = architecture, .dtype = dtype};
  int64_t reduced = 0;
  std::map<std::pair<int, int>, size_t> group_of;  // (stage, rank of tp) → in plan.ranks
  for (int stage = 0; stage < d.pp_size; ++stage) {
    const size_t first_of_stage = plan.ranks.size();
    for (int tp = 0; tp < d.tp_size; ++tp) {
      const Inventory inventory = take_inventory(config, architecture, stage, tp);
      reduced += inventory.reduced;
      const RankShape shape = rank_shape(config, architecture, dtype, inventory, stage, tp);
      const int64_t vocab = part_of(architecture.vocab_size, d.tp_size, tp);
      size_t group = first_of_stage;
      while (group < plan.ranks.size() && (plan.ranks[group].intermediate != shape.intermediate ||
                                           plan.ranks[group].vocab != vocab))
        ++group;
      group_of[{stage, tp}] = group;
      if (group < plan.ranks.size()) continue;
      plan.ranks.push_back({.global_ranks = {},
                            .stage = stage,
                            .layers = layers_of_stage(config, architecture, stage),
                            .has_embedding = stage == 0,
                            .has_head = stage + 1 == d.pp_size,
                            .heads = shape.heads,
                            .key_value_heads = shape.key_value_heads,
                            .intermediate = shape.intermediate,
                            .vocab = vocab,
                            .inventory = inventory,
                            .memory = estimate_memory(shape)});
    }
  }
  const AxisSizes sizes = axis_sizes(config);
  for (int rank = 0; rank < sizes.world(); ++rank) {
    const AxisSizes my = coordinates_of(rank, sizes, d.mesh_order);
    plan.ranks[group_of.at({my.pp, my.tp})].global_ranks.push_back(rank);
  }
  plan.volumes = communication(config, architecture, scalar_type_of(dtype), reduced);
  const ScheduleOptions options = schedule_options(config);
  plan.schedule = check_schedules(all_stages(options), options, Delivery::buffered,
                                  action_costs(config, architecture));
  return plan;
}

MemoryEstimate most_memory(const Config& config, const LlamaConfig& architecture, DType dtype) {
  MemoryEstimate most;
  for (int stage = 0; stage < config.distributed.pp_size; ++stage) {
    const Inventory inventory = take_inventory(config, architecture, stage, /*tp_rank=*/0);
    const MemoryEstimate memory =
        estimate_memory(rank_shape(config, architecture, dtype, inventory, stage, /*tp_rank=*/0));
    if (memory.total() > most.total()) most = memory;
  }
  return most;
}

std::string describe(const Plan& plan) {
  const Config& config = plan.config;
  const LlamaConfig& model = plan.architecture;
  const Distributed& d = config.distributed;
  const AxisSizes sizes = axis_sizes(config);
  const int64_t world = world_size(config), microbatches = gradient_accumulation_steps(config);
  std::string text = fmt::format(
      "Model     {} parameters, {} layers, hidden {}, {} heads ({} key/value), inner {}, "
      "vocabulary "
      "{}{}, {}\n"
      "Layout    {}\n"
      "Batch     {} sequences of {} tokens a step: {} microbatch{} of {} on each of {} replica{}\n"
      "Compute   {}FLOP a step in products and attention\n",
      human_format(static_cast<double>(count_parameters(model))), model.num_hidden_layers,
      model.hidden_size, model.num_attention_heads, model.num_key_value_heads,
      model.intermediate_size, model.vocab_size, model.tie_word_embeddings ? " (tied)" : "",
      to_string(plan.dtype), layout_text(config), global_batch_size(config),
      config.training.seq_length, microbatches, microbatches == 1 ? "" : "es",
      config.training.micro_batch_size, d.dp_size, d.dp_size == 1 ? "" : "s",
      human_format(hardware_flops_per_token(model, config.training.seq_length) *
                   static_cast<double>(tokens_per_step(config))));

  text += "\nWho holds what\n";
  double all_memory = 0;
  for (const RankPlan& rank : plan.ranks) {
    all_memory += rank.memory.total() * static_cast<double>(rank.global_ranks.size());
    const bool alone = rank.global_ranks.size() == 1;
    const std::string places = places_of(rank.global_ranks, sizes, d.mesh_order);
    const StageReport& stage = plan.schedule.stages[static_cast<size_t>(rank.stage)];
    text += fmt::format(
        "  {} {}{}\n"
        "    {}\n"
        "    {}\n"
        "    {} parameters here; up to {} forward{} kept for backward\n"
        "    memory {}{}\n",
        alone ? "rank" : "ranks", listed(rank.global_ranks),
        places.empty() ? "" : fmt::format("    {}", places), describe_layers(rank),
        describe_shard(rank, model), human_format(static_cast<double>(rank.inventory.parameters)),
        stage.most_saved, stage.most_saved == 1 ? "" : "s", describe_memory(rank.memory),
        alone ? "" : ", each");
  }
  if (world > 1)
    text += fmt::format("  all {} ranks: {} beside what each process takes for itself\n", world,
                        bytes_text(all_memory));

  text += "\nBytes a step, all ranks together\n";
  if (plan.volumes.empty()) text += "  none: a world of one\n";
  const record::Bytes sums = sum_of(plan.volumes);
  for (int axis = 0; axis < record::kAxes; ++axis) {
    if (sums[static_cast<size_t>(axis)] == 0) continue;
    text += fmt::format("  {:<6}{:>16}\n", record::name_of(static_cast<record::Axis>(axis)),
                        sums[static_cast<size_t>(axis)]);
    for (const Volume& volume : plan.volumes) {
      if (static_cast<int>(volume.axis) == axis)
        text +=
            fmt::format("        {:>16}  {:<37} {}\n", volume.bytes, volume.what, volume.formula);
    }
  }

  text +=
      fmt::format("\nTimeline  {} stage{}, {}, bubble {:.1f}%\n", d.pp_size,
                  d.pp_size == 1 ? "" : "s", to_string(d.pp_engine), 100 * plan.schedule.bubble);
  constexpr size_t kColumns = 100;
  text += cut(draw(plan.schedule, /*unit=*/1), kColumns);
  text.pop_back();  // print ends the line
  return text;
}

}  // namespace picotron
