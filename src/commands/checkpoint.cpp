// picotron checkpoint: what lies in a save_dir, whether it is sound, how far two are apart; and
// what is old goes away. Each word after it is a command of its own, in the table below.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <numeric>

#include "checkpoint/difference.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/save_dir.h"
#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/error.h"
#include "core/log.h"
#include "train/metrics.h"
#include "train/plan.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

std::string size_text(int64_t bytes) {
  return bytes_text(static_cast<double>(bytes));
}

std::string time_text(std::time_t time) {
  std::tm local{};
  std::array<char, 32> text{};
  ::localtime_r(&time, &local);
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M", &local)};
}

std::string kind_text(FolderKind kind) {
  switch (kind) {
    case FolderKind::complete:
      return "complete";
    case FolderKind::unreadable:
      return "state.json cannot be used";
    case FolderKind::half_written:
      return "half written";
    case FolderKind::set_aside:
      return "set aside";
  }
  return "";
}

int list(const Arguments& arguments) {
  CLI::App app("List what lies in a save_dir, the newest last.", "checkpoint ls");
  std::string save_dir;
  app.add_option("SAVE_DIR", save_dir, "The folder of a run's checkpoints")->required();
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  const std::vector<SavedFolder> all = look_into(save_dir);
  if (all.empty()) {
    log::print(fmt::format("{} holds no checkpoint", save_dir));
    return 0;
  }
  constexpr const char* kRow = "{:<14} {:>8} {:>9}  {:<9} {:<16}  {:<25} {}";
  log::print(fmt::format(kRow, "folder", "tokens", "size", "dtype", "written", "state", "layout"));
  for (const SavedFolder& found : all) {
    const CheckpointState state = found.state.value_or(CheckpointState());
    const auto tokens = static_cast<double>(state.train.trained_tokens);
    log::print(fmt::format(kRow, found.folder.filename().string(),
                           found.state ? human_format(tokens) : "", size_text(found.bytes),
                           state.dtype, time_text(found.written), kind_text(found.kind),
                           state.layout));
  }
  return 0;
}

// Keys of a config that say what was trained and how; null ones are left out.
std::string main_keys(const nlohmann::ordered_json& config) {
  std::string text;
  for (const auto& [section, keys] : config.items()) {
    if (!keys.is_object() || (section != "model" && section != "training" && section != "dataset"))
      continue;
    for (const auto& [key, value] : keys.items())
      if (!value.is_null()) text += fmt::format("\n  {}.{} {}", section, key, value.dump());
  }
  return text;
}

int show(const Arguments& arguments) {
  CLI::App app("Show what a checkpoint is.", "checkpoint show");
  std::string path;
  app.add_option("DIR", path, "A checkpoint, or a save_dir (its newest complete one)")->required();
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  const fs::path checkpoint = find_checkpoint(path);
  const CheckpointState state = read_state(checkpoint);
  const TrainState& train = state.train;
  const DataPosition& data = train.data;
  const auto size_of = [&](std::string_view folder) {
    int64_t bytes = 0;
    for (const auto& [file, record] : state.files)
      if (file.starts_with(folder)) bytes += record.bytes;
    return size_text(bytes);
  };
  const SafetensorsFolder weights(checkpoint / "model");
  int64_t parameters = 0;
  for (const auto& [name, tensor] : weights.tensors())
    parameters +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  log::print(fmt::format(
      "{}\n"
      "step        {}, of {} sequences; {} tokens trained\n"
      "data        {}: {} rows of {} tokens, {}\n"
      "            goes on at row {} of epoch {}\n"
      "layout      {}\n"
      "dtype       {}, optimizer {} with {} updates\n"
      "written by  picotron {}\n"
      "model       {} in {} tensors, {} parameters\n"
      "optimizer   {}\n"
      "files       {}\n"
      "config{}",
      checkpoint.string(), train.step, train.global_batch_size, train.trained_tokens, data.name,
      data.num_rows, data.seq_length,
      data.shuffle ? fmt::format("shuffled by seed {}", data.seed) : "in their order",
      data.num_rows > 0 ? data.position % data.num_rows : 0,
      data.num_rows > 0 ? data.position / data.num_rows + 1 : 1, state.layout, state.dtype,
      state.optimizer, train.updates, state.program, size_of("model/"), weights.tensors().size(),
      parameters, size_of("optimizer/"), state.files.size(), main_keys(state.config)));
  return 0;
}

int verify(const Arguments& arguments) {
  CLI::App app("Read every file of a checkpoint against its checksum.", "checkpoint verify");
  std::string path;
  app.add_option("DIR", path, "A checkpoint, or a save_dir (all of its checkpoints)")->required();
  app.footer("Exit code: 0 where all are sound, 1 where a file is missing or damaged.");
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  bool all_sound = true;
  for (const fs::path& checkpoint : checkpoints_meant(path)) {
    const Soundness found = check_soundness(checkpoint);
    all_sound = all_sound && found.damage.empty();
    for (const std::string& sentence : found.damage) log::print("damaged: " + sentence);
    if (found.damage.empty())
      log::print(fmt::format("{} is sound: {} files, {}", checkpoint.string(), found.files,
                             size_text(found.bytes)));
  }
  return all_sound ? 0 : 1;
}

int export_model(const Arguments& arguments) {
  CLI::App app("Write a checkpoint's model as a Hugging Face folder, its files verified first.",
               "checkpoint export");
  std::string path, out, dtype_name;
  app.add_option("DIR", path, "A checkpoint, or a save_dir (its newest complete one)")->required();
  app.add_option("--out_dir", out, "The folder to write; it must be absent or empty")->required();
  app.add_option("--dtype", dtype_name,
                 "float32 or bfloat16; without it the weights stay as they are");
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  write_export([&] { return sound_model_folder(path); }, out, dtype_name);
  return 0;
}

int compare(const Arguments& arguments) {
  CLI::App app("Compare two checkpoints, tensor by tensor.", "checkpoint diff");
  std::string a, b;
  bool all = false;
  app.add_option("A", a, "A checkpoint, or a save_dir (its newest complete one)")->required();
  app.add_option("B", b, "Another")->required();
  app.add_flag("--all", all, "Show every tensor, not only the ten worst that differ");
  app.footer("Exit code: 0 where all tensors are equal bit for bit, 1 where not.");
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  const fs::path left = find_checkpoint(a), right = find_checkpoint(b);
  const std::vector<std::string> states = compare_states(left, right);
  const std::vector<TensorDifference> tensors = compare_tensors(left, right);
  const auto equal = std::count_if(tensors.begin(), tensors.end(),
                                   [](const TensorDifference& d) { return d.equal_bits; });
  const int64_t different = std::ssize(tensors) - equal;
  constexpr int64_t kShown = 10;

  log::print(fmt::format("A {}\nB {}", left.string(), right.string()));
  for (const std::string& line : states) log::print("  " + line);
  log::print(fmt::format("{} of {} tensors are equal bit for bit", equal, tensors.size()));
  if (all || different > 0)
    log::print(fmt::format("  {:>14} {:>10}", "max|a-b|/max|b|", "max|a-b|"));
  for (int64_t i = 0; i < (all ? std::ssize(tensors) : std::min(different, kShown)); ++i) {
    const TensorDifference& d = tensors[static_cast<size_t>(i)];
    log::print(d.what.empty()
                   ? fmt::format("  {:>15.3e} {:>10.3e}  {}{}", d.distance, d.largest, d.tensor,
                                 d.equal_bits      ? ", equal bits"
                                 : d.distance == 0 ? ", equal numbers"
                                                   : "")
                   : fmt::format("  {:>26}  {}: {}", "", d.tensor, d.what));
  }
  if (!all && different > kShown)
    log::print(fmt::format("  and {} more; --all shows them", different - kShown));
  return different == 0 ? 0 : 1;
}

int prune(const Arguments& arguments) {
  CLI::App app("Remove all but the newest checkpoints of a save_dir.", "checkpoint prune");
  std::string save_dir;
  int64_t keep_last = 0;
  bool dry_run = false, half_written = false;
  app.add_option("SAVE_DIR", save_dir, "The folder of a run's checkpoints")->required();
  app.add_option("--keep_last", keep_last, "How many complete checkpoints stay")
      ->required()
      ->check(CLI::Range(1, 1 << 30));
  app.add_flag("--half_written", half_written,
               "Remove half-written ones too: not while a run saves there");
  app.add_flag("--dry_run", dry_run, "Say what would be removed, and remove nothing");
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  const std::vector<SavedFolder> removed = beyond_the_newest(save_dir, keep_last, half_written);
  for (const SavedFolder& found : removed) {
    if (!dry_run) remove(found);
    log::print(fmt::format("{} {} ({}, {})", dry_run ? "would remove" : "removed",
                           found.folder.string(), kind_text(found.kind), size_text(found.bytes)));
  }
  if (removed.empty()) log::print("nothing to remove");
  for (const SavedFolder& found : look_into(save_dir))
    if (found.kind == FolderKind::half_written && !half_written)
      log::print(
          fmt::format("{} is half written ({}): --half_written removes it too, if no run "
                      "is writing it",
                      found.folder.string(), size_text(found.bytes)));
  return 0;
}

constexpr Command kCommands[] = {
    {"ls", "SAVE_DIR: the checkpoints of a run, the newest last", list},
    {"show", "DIR: what a checkpoint is", show},
    {"verify", "DIR: every file against its checksum", verify},
    {"export", "DIR --out_dir OUT: its model, as a Hugging Face folder", export_model},
    {"diff", "A B: how far two checkpoints are apart, tensor by tensor", compare},
    {"prune", "SAVE_DIR --keep_last N: away with the others", prune},
};

}  // namespace

int checkpoint_command(const std::vector<std::string>& arguments) {
  std::string help = "Look at checkpoints, and tidy up.\n\nusage: picotron checkpoint COMMAND …\n";
  std::string known;
  for (const Command& command : kCommands) {
    if (!arguments.empty() && arguments[0] == command.name)
      return command.run({arguments.begin() + 1, arguments.end()});
    help += fmt::format("\n  {:<8} {}", command.name, command.summary);
    known += (known.empty() ? "" : ", ") + std::string(command.name);
  }
  if (!arguments.empty() && (arguments[0] == "--help" || arguments[0] == "-h")) {
    log::print(help + "\n\nEach has a --help of its own.");
    return 0;
  }
  throw user_error(
      "checkpoint: {}; use one of {}",
      arguments.empty() ? "a command is missing" : fmt::format("there is no '{}'", arguments[0]),
      known);
}

}  // namespace picotron
