// picotron verify: the proof that a config's layout trains the model that one rank trains. A small
// model of the same structure, in the layout (as the ranks the config asks for: processes or
// threads) and on one rank, in float64 with both optimizers and then in the run's own dtype; every
// gradient and every weight is compared (train/verify.h). Exit code 1 where they differ.
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/launch.h"
#include "train/layout.h"
#include "train/verify.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

struct Check {
  DType dtype;
  OptimizerKind optimizer;
  std::string title() const {
    return fmt::format("{}, {}", to_string(dtype), to_string(optimizer));
  }
};

std::vector<Check> checks_of(const Config& config) {
  const DType own = planned_dtype(config);
  std::vector<Check> checks = {{DType::float64, OptimizerKind::adamw},
                               {DType::float64, OptimizerKind::sgd}};
  if (own != DType::float64) checks.push_back({own, config.training.optimizer});
  return checks;
}

// A folder that is gone with this object.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string name = (fs::temp_directory_path() / "picotron-verify-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr)
      throw run_error("cannot make a folder in {}", fs::temp_directory_path().string());
    path = name;
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// One rank of a run whose ranks are processes, or the launcher of all of them.
int run_processes(const ShrunkRun& shrunk, const std::vector<std::string>& argv,
                  const std::string& file) {
  const Run run = rehearse(shrunk);
  const auto timeout = std::chrono::milliseconds(
      static_cast<int64_t>(1000 * shrunk.config.distributed.timeout_seconds));
  return launch({.world_size = static_cast<int>(world_size(shrunk.config)),
                 .ranks = Ranks::processes,
                 .timeout = timeout,
                 .threads_per_rank = 1,
                 .argv = argv,
                 .ends_at_once = true},
                [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
                  const auto device = open_device({.use_cpu = true, .local_rank = local_rank});
                  Trace trace;
                  train(run, rendezvous, *device, tracer(trace, shrunk.detailed_steps()));
                  if (rendezvous.global_rank == 0) write_trace(file, trace);
                  return 0;
                });
}

std::string row(const char* what, double distance, double tolerance, const std::string& where) {
  const std::string limit =
      std::isfinite(tolerance) ? fmt::format("{:.0e}", tolerance) : std::string("-");
  return fmt::format("  {:<22} {:>9.1e} {:>9}  {}{}", what, distance, limit,
                     distance <= tolerance ? "" : "TOO FAR  ", where);
}

std::string at_step(const Distances::Worst& worst) {
  return fmt::format("{}, step {}", worst.name, worst.step);
}

void print_table(const Distances& d, const Tolerance& t) {
  log::print(fmt::format("  {:<22} {:>9} {:>9}", "distance from one rank", "worst", "tolerance"));
  log::print(row("initial value", d.initial.distance, t.initial, d.initial.name));
  log::print(row("loss", d.loss, t.loss, ""));
  log::print(row("gradient norm", d.grad_norm, t.grad_norm, ""));
  log::print(row("gradient", d.gradient.distance, t.gradients, at_step(d.gradient)));
  log::print(row("updated weight", d.weight.distance, t.weights, at_step(d.weight)));
}

// Which ranks hold the element that is furthest off.
std::string shard_of(const Distances::Worst& worst, const Trace& trace, const Config& config) {
  const auto parts = trace.parts.find(worst.name);
  if (parts == trace.parts.end()) return "";
  const std::vector<int64_t> shape = trace.steps.front().weights.at(worst.name).sizes().vec();
  for (const auto& [rank, shard] : parts->second) {
    int64_t inner = 1;
    for (size_t dim = static_cast<size_t>(shard.dim) + 1; dim < shape.size(); ++dim)
      inner *= shape[dim];
    const int64_t place = worst.index / inner % shape[static_cast<size_t>(shard.dim)];
    if (place < shard.begin || place >= shard.end) continue;
    const std::string where = place_of(rank, axis_sizes(config), config.distributed.mesh_order);
    return fmt::format("{} [{}, {}) of dim {}, on rank {}{}", worst.name, shard.begin, shard.end,
                       shard.dim, rank, where.empty() ? "" : " (" + where + ")");
  }
  return "";
}

// What a failure is blamed on: what went wrong first, where it is worst, the axis that brings it.
void print_blame(const ShrunkRun& shrunk, const Trace& mine, const Trace& reference,
                 const Tolerance& tolerance) {
  const FirstWrong first = first_wrong(mine, reference, tolerance);
  log::print(fmt::format("  first wrong: {}{}", first.figure,
                         first.remark.empty() ? "" : " (" + first.remark + ")"));
  if (!first.worst.name.empty()) {
    // A file with a trace does not say who holds what.
    const Trace with_parts = trace_as_threads(shrunk);
    log::print(fmt::format("  furthest: {}", shard_of(first.worst, with_parts, shrunk.config)));
  }
  const std::string cause = likely_cause(shrunk, tolerance);
  log::print(cause.empty()
                 ? std::string("  no single axis mends it when it is taken away")
                 : fmt::format("  likely axis: {} (without it the layout agrees)", cause));
}

}  // namespace

int verify_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  const std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Prove that a config's layout trains the model that one rank trains.", "verify");
  std::string file, trace_file;
  int only = -1;
  app.add_option("--config", file, "The config.json whose layout is tried");
  // How a rank that is a process learns what it is for.
  app.add_option("--check", only)->group("");
  app.add_option("--trace", trace_file)->group("");
  app.footer(short_flags_help());
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;

  const LaidOutModel model = read_layout(file, overrides);
  const Config& config = model.config;
  const LlamaConfig& architecture = model.architecture;
  const std::vector<Check> checks = checks_of(config);
  const auto shrunk_for = [&](const Check& check) {
    return shrink(config, architecture, check.dtype, check.optimizer);
  };
  std::vector<std::string> argv = {"picotron", "verify"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  if (only >= 0) {
    return run_processes(shrunk_for(checks.at(static_cast<size_t>(only))), argv, trace_file);
  }

  const ShrunkRun example = shrunk_for(checks.front());
  const LlamaConfig& small = example.architecture;
  log::print(fmt::format(
      "Layout: {}, {}\nSmall model: {} layers, hidden {}, {} heads ({} key/value), inner {}, "
      "vocabulary {}{}; steps of {} sequences of {} tokens",
      layout_text(config), to_string(config.distributed.ranks), small.num_hidden_layers,
      small.hidden_size, small.num_attention_heads, small.num_key_value_heads,
      small.intermediate_size, small.vocab_size, small.tie_word_embeddings ? ", tied" : "",
      global_batch_size(example.config), example.config.training.seq_length));
  bool agrees = true;
  const Scratch scratch;
  for (size_t i = 0; i < checks.size(); ++i) {
    const ShrunkRun shrunk = shrunk_for(checks[i]);
    const Tolerance tolerance = tolerance_of(checks[i].dtype);
    Trace mine;
    if (config.distributed.ranks == Ranks::threads || world_size(config) == 1) {
      mine = trace_as_threads(shrunk);
    } else {
      const std::string out = scratch.path / fmt::format("{}.safetensors", i);
      std::vector<std::string> child = argv;
      for (const std::string& word :
           {std::string("--check"), std::to_string(i), std::string("--trace"), out})
        child.push_back(word);
      if (const int code = run_processes(shrunk, child, out); code != 0) return code;
      mine = read_trace(out);
    }
    const Trace reference = trace_as_threads(on_one_rank(shrunk));
    const Distances d = distances(mine, reference);
    log::print(fmt::format("\n{}", checks[i].title()));
    print_table(d, tolerance);
    if (d.within(tolerance)) continue;
    agrees = false;
    print_blame(shrunk, mine, reference, tolerance);
  }
  log::print(agrees ? "\nThe layout trains the model that one rank trains."
                    : "\nThe layout does NOT train the model that one rank trains.");
  return agrees ? 0 : 1;
}

}  // namespace picotron
