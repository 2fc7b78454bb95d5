// picotron plan: who holds what, memory, bytes and waiting, before anything runs (train/plan.h);
// or, with --search, the layouts of N ranks by the time a step would take (train/plan_search.h).
#include <fmt/format.h>

#include <cstdlib>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "kernels/matmul.h"
#include "train/hub_names.h"
#include "train/layout.h"
#include "train/metrics.h"
#include "train/plan_search.h"
#include "train/run.h"

namespace picotron {
namespace {

struct Search {
  bool on = false;
  int world = 0;                                    // 0: the config's
  double teraflops = 0, link = 1, most_memory = 0;  // gigabytes; 0: measured; any
};

void search(const Config& config, const LlamaConfig& architecture, DType dtype,
            const Search& asked) {
  SearchOptions options{
      .world = asked.world > 0 ? asked.world : static_cast<int>(world_size(config)),
      .flops = asked.teraflops * 1e12,
      .link = asked.link * 1e9,
      .most_memory = asked.most_memory * 1e9};
  std::string rate = "given";
  if (options.flops == 0) {
    const double measured = measure_product_rate(scalar_type_of(dtype));
    options.flops = measured / options.world;
    rate = fmt::format("this machine's {}FLOP/s, measured, shared by {}; --teraflops gives another",
                       human_format(measured), options.world);
  }
  const std::vector<Candidate> candidates = search_layouts(config, architecture, dtype, options);
  if (candidates.empty()) {
    throw user_error(
        "no layout of {} ranks suits this model, batch and memory; try another --world, "
        "micro_batch_size or global_batch_size",
        options.world);
  }
  log::print(
      fmt::format("Layouts of {} ranks, {} sequences of {} tokens a step, {}\n"
                  "A rank computes {}FLOP/s ({}) and sends {}/s (assumed; --link gives another)\n",
                  options.world, global_batch_size(config), config.training.seq_length,
                  to_string(dtype), human_format(options.flops), rate, bytes_text(options.link)));
  log::print(describe(candidates));
}

}  // namespace

int plan_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  const std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Say, before anything runs, who holds what, how much memory, how many bytes.",
               "plan");
  std::string file;
  Search asked;
  app.add_option("--config", file, "The config.json to plan");
  app.add_flag("--search", asked.on, "Rank the layouts of --world ranks instead");
  app.add_option("--world", asked.world, "Ranks to search for (the config's)")
      ->check(CLI::Range(1, 65536));
  app.add_option("--teraflops", asked.teraflops,
                 "What a rank computes in a second, for --search (measured here)")
      ->check(CLI::PositiveNumber);
  app.add_option("--link", asked.link, "Gigabytes that a rank sends in a second, for --search")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--most_memory", asked.most_memory,
                 "Gigabytes of a rank: --search leaves out what needs more")
      ->check(CLI::PositiveNumber);
  app.footer(short_flags_help());
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;
  if (!asked.on && asked.world > 0)
    throw user_error(
        "--world is for --search; without it the config says how many ranks there are");

  const SizesOf sizes_of = asked.on ? SizesOf() : known_layout_sizes;
  Config config = file.empty() ? config_from_flags(overrides, sizes_of)
                               : load_config(file, overrides, sizes_of);
  resolve_environment(config, [](const char* name) -> const char* { return std::getenv(name); });
  const LlamaConfig architecture = resolve_named_architecture(config, vocabulary_of_data(config));
  const DType dtype = planned_dtype(config);
  if (asked.on) {
    search(config, architecture, dtype, asked);
  } else {
    check_layout(config, layout_sizes(architecture));
    log::print(describe(make_plan(config, architecture, dtype)));
  }
  return 0;
}

}  // namespace picotron
