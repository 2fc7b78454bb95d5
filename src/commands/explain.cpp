// picotron explain: one training step in a config's layout, told in the order it happened, each
// line with its place in the source. It runs the small model of `picotron verify`
// (train/verify.h) as threads of this process; train/explain.h puts the record into words.
#include <fmt/format.h>
#include <stdlib.h>

#include <charconv>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "train/explain.h"
#include "train/layout.h"

namespace picotron {
namespace {

constexpr int64_t kMostSteps = 1000;

// --rank R, or "all" → the ranks to tell of.
std::vector<int64_t> chosen_ranks(const std::string& text, int64_t ranks) {
  std::vector<int64_t> chosen;
  if (text == "all") {
    for (int64_t rank = 0; rank < ranks; ++rank) chosen.push_back(rank);
    return chosen;
  }
  int64_t rank = -1;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, rank);
  if (error != std::errc() || stop != end || rank < 0 || rank >= ranks)
    throw user_error("--rank {}: the layout has the ranks 0 to {}; name one, or \"all\"",
                     text.substr(0, 100), ranks - 1);
  return {rank};
}

}  // namespace

int explain_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  const std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Tell one training step of a small model in a config's layout, as it happened.",
               "explain");
  std::string file, rank = "0";
  int64_t step = 1;
  app.add_option("--config", file, "The config.json whose layout is told");
  app.add_option("--step", step, "Which step, from 1")->check(CLI::Range(int64_t{1}, kMostSteps));
  app.add_option("--rank", rank, "Whose story: a rank from 0 on, or \"all\"");
  app.footer(short_flags_help());
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;

  const LaidOutModel model = read_layout(file, overrides);
  const Config& config = model.config;
  const LlamaConfig& architecture = model.architecture;
  const std::vector<int64_t> ranks = chosen_ranks(rank, world_size(config));
  const DType dtype = planned_dtype(config);
  const ShrunkRun shrunk = shrink(config, architecture, dtype, config.training.optimizer);

  const LlamaConfig& small = shrunk.architecture;
  log::print(fmt::format(
      "Step {} of a small model in this layout: {} layers, hidden {}, {} heads ({} key/value), "
      "inner {}, vocabulary {}{}, {};\n{} sequences of {} tokens. \"4 of 8\": this rank has 4 of "
      "the 8 that the whole tensor has. partial(tp): each rank of tp has a summand.",
      step, small.num_hidden_layers, small.hidden_size, small.num_attention_heads,
      small.num_key_value_heads, small.intermediate_size, small.vocab_size,
      small.tie_word_embeddings ? ", tied" : "", to_string(dtype), global_batch_size(shrunk.config),
      shrunk.config.training.seq_length));
  const std::vector<RankStory> stories = explain_step(shrunk, step);
  for (const int64_t which : ranks) {
    const RankStory& story = stories[static_cast<size_t>(which)];
    log::print(fmt::format("\nRank {}{}", which,
                           story.place.empty() ? "" : fmt::format(" ({})", story.place)));
    for (const std::string& line : tell(story)) log::print(line);
  }
  return 0;
}

}  // namespace picotron
