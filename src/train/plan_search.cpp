// Every way to write N as dp · tp · pp · cp, every engine and option; what many share is computed
// once.
#include "train/plan_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "core/error.h"
#include "train/layout.h"

namespace picotron {
namespace {

std::vector<AxisSizes> meshes_of(int world) {
  std::vector<AxisSizes> meshes;
  for (int tp = 1; tp <= world; ++tp) {
    if (world % tp != 0) continue;
    for (int pp = 1; pp <= world / tp; ++pp) {
      if (world / tp % pp != 0) continue;
      const int replicas = world / tp / pp;
      for (int cp = 1; cp <= replicas; ++cp)
        if (replicas % cp == 0)
          meshes.push_back({.dp = replicas / cp, .pp = pp, .cp = cp, .tp = tp});
    }
  }
  return meshes;
}

struct Engine {
  PpEngine engine;
  int64_t chunks;
};

// Options that change nothing on a mesh are not tried there.
std::vector<Config> variants_on(const AxisSizes& mesh, const Config& config) {
  std::vector<Engine> engines = {{PpEngine::one_f_one_b, 1}};
  if (mesh.pp > 1)
    engines.insert(engines.end(), {{PpEngine::zb_h1, 1},
                                   {PpEngine::interleaved, 2},
                                   {PpEngine::interleaved, 4},
                                   {PpEngine::afab, 1}});
  std::vector<Config> variants;
  for (const auto& [engine, chunks] : engines) {
    for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
      for (const bool cuts_tokens : {false, true}) {
        for (const int64_t zero_stage : {1, 0}) {
          if ((cuts_tokens && mesh.tp == 1) || (zero_stage == 0 && mesh.dp * mesh.cp == 1))
            continue;
          Config& variant = variants.emplace_back(config);
          variant.distributed.dp_size = mesh.dp, variant.distributed.tp_size = mesh.tp;
          variant.distributed.pp_size = mesh.pp, variant.distributed.cp_size = mesh.cp;
          variant.distributed.pp_engine = engine;
          variant.distributed.pp_chunks = chunks;
          variant.distributed.sequence_parallel = cuts_tokens;
          variant.distributed.zero_stage = zero_stage;
          variant.training.recompute = recompute;
          variant.training.global_batch_size = global_batch_size(config);
        }
      }
    }
  }
  return variants;
}

bool is_valid(const Config& config, const LlamaConfig& architecture) {
  try {
    check(config, layout_sizes(architecture));
    return true;
  } catch (const UserError&) {
    return false;
  }
}

// What variants have in common.
class Shared {
 public:
  Shared(const LlamaConfig& architecture, DType dtype)
      : architecture_(architecture), dtype_(dtype) {}

  struct Holdings {
    std::vector<Inventory> stages;  // of the first rank of tp, which has the largest shards
    int64_t reduced = 0;            // by all ranks of a replica
  };
  const Holdings& holdings(const Config& config) {
    const Distributed& d = config.distributed;
    const auto [at, is_new] = holdings_.try_emplace({d.tp_size, d.pp_size, d.pp_chunks});
    for (int stage = 0; is_new && stage < d.pp_size; ++stage) {
      for (int tp = 0; tp < d.tp_size; ++tp) {
        const Inventory inventory = take_inventory(config, architecture_, stage, tp);
        at->second.reduced += inventory.reduced;
        if (tp == 0) at->second.stages.push_back(inventory);
      }
    }
    return at->second;
  }

  struct Time {
    double makespan, bubble;
  };
  Time time(const Config& config) {
    const ScheduleOptions options = schedule_options(config);
    const auto [at, is_new] = times_.try_emplace({options.engine, options.stages, options.chunks,
                                                  options.microbatches, config.training.recompute});
    if (is_new) {
      const ScheduleReport report = check_schedules(
          all_stages(options), options, Delivery::buffered, action_costs(config, architecture_));
      at->second = {report.makespan, report.bubble};
    }
    return at->second;
  }

  double most_memory(const Config& config) {
    double most = 0;
    const Holdings& all = holdings(config);
    for (size_t stage = 0; stage < all.stages.size(); ++stage) {
      const RankShape shape = rank_shape(config, architecture_, dtype_, all.stages[stage],
                                         static_cast<int>(stage), /*tp_rank=*/0);
      most = std::max(most, estimate_memory(shape).total());
    }
    return most;
  }

 private:
  const LlamaConfig& architecture_;
  const DType dtype_;
  std::map<std::tuple<int64_t, int64_t, int64_t>, Holdings> holdings_;
  std::map<std::tuple<PpEngine, int, int, int64_t, Recompute>, Time> times_;
};

// Operations of one microbatch's forward through an average virtual stage, on one rank.
double forward_flops(const Config& config, const LlamaConfig& architecture) {
  const Distributed& d = config.distributed;
  const TokenCosts costs = token_costs(architecture, config.training.seq_length);
  const double macs = static_cast<double>(architecture.num_hidden_layers) * costs.layer +
                      costs.embedding + costs.head;
  const auto tokens =
      static_cast<double>(config.training.micro_batch_size * config.training.seq_length);
  return 2 * macs * tokens / static_cast<double>(d.cp_size * d.tp_size * d.pp_size * d.pp_chunks);
}

// Leaves out what is slower and not a tenth smaller than another. `variants` are of one mesh.
void keep_best(std::vector<Candidate>& variants) {
  std::ranges::stable_sort(variants, [](const Candidate& a, const Candidate& b) {
    return std::tuple(a.seconds(), a.memory) < std::tuple(b.seconds(), b.memory);
  });
  double least = 0;
  std::erase_if(variants, [&](const Candidate& candidate) {
    if (least > 0 && candidate.memory > 0.9 * least) return true;
    least = candidate.memory;
    return false;
  });
}

}  // namespace

std::vector<Candidate> search_layouts(const Config& config, const LlamaConfig& architecture,
                                      DType dtype, const SearchOptions& options) {
  Shared shared(architecture, dtype);
  std::vector<Candidate> all;
  for (const AxisSizes& mesh : meshes_of(options.world)) {
    std::vector<Candidate> variants;
    for (const Config& variant : variants_on(mesh, config)) {
      if (!is_valid(variant, architecture)) continue;
      const double memory = shared.most_memory(variant);
      if (options.most_memory > 0 && memory > options.most_memory) continue;
      const Shared::Time time = shared.time(variant);
      const double seconds = time.makespan * forward_flops(variant, architecture) / options.flops;
      const record::Bytes sent = sum_of(communication(variant, architecture, scalar_type_of(dtype),
                                                      shared.holdings(variant).reduced));
      int64_t bytes = 0;
      for (const int64_t of_axis : sent) bytes += of_axis;
      variants.push_back({.config = variant,
                          .compute = seconds * (1 - time.bubble),
                          .waiting = seconds * time.bubble,
                          .messages = static_cast<double>(bytes) / options.world / options.link,
                          .bubble = time.bubble,
                          .memory = memory,
                          .bytes = bytes});
    }
    keep_best(variants);
    all.insert(all.end(), variants.begin(), variants.end());
  }
  std::ranges::stable_sort(all, [](const Candidate& a, const Candidate& b) {
    return std::tuple(a.seconds(), a.memory) < std::tuple(b.seconds(), b.memory);
  });
  return all;
}

std::string describe(const std::vector<Candidate>& candidates, size_t most) {
  std::string text = fmt::format("{:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9}  layout\n", "a step",
                                 "compute", "waiting", "messages", "bubble", "a rank", "sent");
  const auto seconds = [](double value) { return fmt::format("{:.3g} s", value); };
  for (size_t i = 0; i < std::min(most, candidates.size()); ++i) {
    const Candidate& c = candidates[i];
    text += fmt::format("{:>9} {:>9} {:>9} {:>9} {:>6.1f}% {:>9} {:>9}  {}\n", seconds(c.seconds()),
                        seconds(c.compute), seconds(c.waiting), seconds(c.messages), 100 * c.bubble,
                        bytes_text(c.memory), bytes_text(static_cast<double>(c.bytes)),
                        layout_text(c.config));
  }
  if (candidates.size() > most) text += fmt::format("and {} more\n", candidates.size() - most);
  text.pop_back();  // print ends the line
  return text;
}

}  // namespace picotron
