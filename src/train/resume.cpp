// Which checkpoint, what it decides, and what becomes of files that are in the way.
#include "train/resume.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "data/mixture.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Keys in which two runs of one training may differ without a word: where files are, what is shown.
bool is_of_the_run(const std::string& section) {
  return section == "checkpoint" || section == "logging" || section == "environment";
}

// "training.learning_rate is 0.001, was 0.0003", for each key.
void say_differences(const ordered_json& saved, const ordered_json& now,
                     std::vector<std::string>& lines) {
  for (const auto& [section, keys] : now.items()) {
    if (!keys.is_object() || is_of_the_run(section) || !saved.contains(section)) continue;
    for (const auto& [key, value] : keys.items()) {
      if (!saved[section].is_object() || !saved[section].contains(key)) continue;
      const ordered_json& before = saved[section][key];
      if (before != value)
        lines.push_back(
            fmt::format("{}.{} is {}, was {}", section, key, value.dump(), before.dump()));
    }
  }
}

// The micro batch sizes with which the layout makes the global batch.
std::string sizes_that_do(int64_t global_batch, int64_t dp_size) {
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size * dp_size <= global_batch; ++size)
    if (global_batch % (size * dp_size) == 0) sizes.push_back(size);
  if (!sizes.empty())
    return fmt::format("with dp_size {} use micro_batch_size {}", dp_size, fmt::join(sizes, ", "));
  for (int64_t size = 1; size <= global_batch; ++size)
    if (global_batch % size == 0) sizes.push_back(size);
  return fmt::format("use dp_size {}", fmt::join(sizes, ", "));
}

// A data set's name by its last parts, with the weights of a mixture: the files may have moved.
std::string last_names(const std::string& name) {
  std::string names;
  for (const Ingredient& part : parse_mixture(name)) {
    const fs::path path = fs::path(part.name) / "";  // "code" and "code/" are one folder
    names += fmt::format("{} {} ", part.weight, path.parent_path().filename().string());
  }
  return names;
}

// Lines of metrics.jsonl up to a step; a last line that was cut short is left out too.
void cut_metrics(const fs::path& file, int64_t last_step) {
  const std::string text = read_text_file(file);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end + 1 - begin);
    begin = end + 1;
    const ordered_json json = ordered_json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
        json["step"].get<int64_t>() <= last_step)
      kept += line;
  }
  if (kept != text) write_text_file(file, kept);
}

}  // namespace

std::optional<Start> find_start(const Config& config) {
  const Checkpoint& keys = config.checkpoint;
  std::optional<fs::path> found;
  if (keys.resume == Resume::automatic) {
    const std::vector<CheckpointEntry> all = list_checkpoints(keys.save_dir);
    if (!all.empty()) found = all.back().folder;
  }
  if (!found && !keys.load_path.empty()) found = find_checkpoint(keys.load_path);
  if (!found) return std::nullopt;
  return Start{*found, read_state(*found)};
}

std::vector<std::string> take_over(const Start& start, Config& config) {
  std::vector<std::string> lines;
  const int64_t saved = start.state.train.global_batch_size;
  Training& training = config.training;
  const int64_t asked = global_batch_size(config), dp_size = config.distributed.dp_size;
  if (saved % (training.micro_batch_size * dp_size) != 0) {
    throw user_error(
        "the global batch of {} is {} sequences and stays so, and micro_batch_size {} · dp_size {} "
        "does not divide it; {}",
        start.checkpoint.string(), saved, training.micro_batch_size, dp_size,
        sizes_that_do(saved, dp_size));
  }
  training.global_batch_size = saved;
  if (asked != saved) {
    lines.push_back(fmt::format("the global batch stays {} sequences, as saved: the config says {}",
                                saved, asked));
  }
  ordered_json now = ordered_json::parse(to_json(config));
  ordered_json before = start.state.config;
  // What follows from the batch and the layout is no difference of its own.
  for (const char* key : {"gradient_accumulation_steps", "global_batch_size"})
    now["training"].erase(key);
  say_differences(before, now, lines);
  return lines;
}

bool reads_alike(const Start& start, const Config& config) {
  const ordered_json now = ordered_json::parse(to_json(config)).at("dataset");
  const ordered_json& all = start.state.config;
  const ordered_json saved =
      all.is_object() ? all.value("dataset", ordered_json::object()) : ordered_json::object();
  return std::ranges::all_of(
      std::array{"text_column", "subset_name", "split"},
      [&](const char* key) { return saved.value(key, now[key]) == now[key]; });
}

DataPosition go_on_with(const DataPosition& saved, const DataPosition& opened, bool alike,
                        std::vector<std::string>& notes) {
  const auto rows_of = [](const DataPosition& data) {
    return fmt::format("{} with {} rows of {} tokens", data.name, data.num_rows, data.seq_length);
  };
  if (!alike) {
    notes.emplace_back("the data begin at their first row, for they are read otherwise");
    return opened;
  }
  const bool same = last_names(saved.name) == last_names(opened.name) &&
                    saved.seq_length == opened.seq_length && saved.num_rows == opened.num_rows;
  if (!same) {
    notes.push_back(fmt::format("the data begin at their first row: they are {}, were {}",
                                rows_of(opened), rows_of(saved)));
    return opened;
  }
  if (saved.seed != opened.seed || saved.shuffle != opened.shuffle) {
    notes.push_back(fmt::format("the data go on in the saved order: seed {}, {}", saved.seed,
                                saved.shuffle ? "shuffled" : "not shuffled"));
  }
  return saved;
}

void check_sources(const Config& config) {
  const std::string& save_dir = config.checkpoint.save_dir;
  std::error_code absent;
  for (const auto& [key, name] : {std::pair("model.init_from", config.model.init_from),
                                  std::pair("model.name", config.model.name),
                                  std::pair("dataset.tokenizer", config.dataset.tokenizer)}) {
    if (!name) continue;
    const fs::path within = fs::weakly_canonical(*name, absent)
                                .lexically_relative(fs::weakly_canonical(save_dir, absent));
    if (within.empty() || !step_of(*within.begin())) continue;
    throw user_error(
        "{} {} is part of a checkpoint in checkpoint.save_dir {}, which a run that begins there "
        "sets aside; use another save_dir",
        key, *name, save_dir);
  }
}

void check_save_dir(const fs::path& save_dir) {
  std::error_code absent, error;
  fs::path there = fs::absolute(save_dir).lexically_normal();
  while (!fs::exists(there, absent) && there.has_relative_path()) there = there.parent_path();
  if (!fs::is_directory(there, absent)) {
    error = std::make_error_code(std::errc::not_a_directory);
  } else if (::access(there.c_str(), W_OK | X_OK) != 0) {
    error = std::error_code(errno, std::generic_category());
  }
  if (!error) return;
  throw user_error("cannot write in the folder {} ({}); choose another checkpoint.save_dir",
                   save_dir.string(), error.message());
}

bool goes_on_in_place(const fs::path& save_dir, const std::optional<Start>& start) {
  if (!start) return false;
  std::error_code absent;
  const fs::path named = fs::absolute(start->checkpoint).lexically_normal();
  // A link to one of them, too.
  return fs::equivalent(named.parent_path(), save_dir, absent) ||
         fs::equivalent(fs::weakly_canonical(named, absent).parent_path(), save_dir, absent);
}

std::vector<std::string> clear_the_way(const fs::path& save_dir,
                                       const std::optional<Start>& start) {
  std::vector<std::string> done;
  const bool in_place = goes_on_in_place(save_dir, start);
  const int64_t last_kept = in_place ? start->state.train.step : -1;
  std::vector<fs::path> entries;
  std::error_code absent;
  for (const fs::directory_entry& entry : fs::directory_iterator(save_dir, absent))
    entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  for (const fs::path& path : entries) {
    const std::optional<int64_t> step = step_of(path.stem());
    if (!step || !fs::is_directory(path)) continue;
    if (path.extension() == ".partial") {
      fs::remove_all(path);
    } else if (path.extension().empty() && *step > last_kept) {
      done.push_back(
          fmt::format("{} of an earlier run is now {}", path.string(), set_aside(path).string()));
    }
  }
  const fs::path metrics = save_dir / "metrics.jsonl";
  if (in_place && fs::exists(metrics)) {
    cut_metrics(metrics, last_kept);
  } else if (const fs::path aside = set_aside(metrics); !aside.empty()) {
    done.push_back(fmt::format("The metrics of an earlier run are kept in {}", aside.string()));
  }
  return done;
}

}  // namespace picotron
