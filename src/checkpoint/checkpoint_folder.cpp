// state.json out and in, and the questions about folders. Reading trusts nothing: a value of the
// wrong kind is a sentence, and no number is used before it is checked.
#include "checkpoint/checkpoint_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "core/error.h"
#include "core/files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kStateFile = "state.json";
constexpr const char* kFormat = "picotron checkpoint";
constexpr int kMaxDepth = 8;

bool is_complete(const fs::path& folder) {
  std::error_code unreadable;
  return fs::is_regular_file(folder / kStateFile, unreadable);
}

// What is wrong with a value, before it is known of which file.
struct Mistake : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The members of an object, each of the kind that is asked for.
class Reader {
 public:
  Reader(const ordered_json& object, std::string place) : object_(object), place_(place) {
    if (!object.is_object()) throw Mistake(fmt::format("{} is not an object", name("")));
  }
  Reader inside(const char* key) const { return {member(key), name(key)}; }
  const ordered_json& object(const char* key) const {
    const ordered_json& value = member(key);
    if (!value.is_object()) throw Mistake(fmt::format("{} is not an object", name(key)));
    return value;
  }
  int64_t count(const char* key) const {  // an integer that is not negative
    const ordered_json& value = member(key);
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{INT64_MAX})
      throw Mistake(fmt::format("{} is not a whole number from 0 to 2^63 - 1", name(key)));
    return value.get<int64_t>();
  }
  uint64_t bits(const char* key) const {
    const ordered_json& value = member(key);
    if (!value.is_number_unsigned())
      throw Mistake(fmt::format("{} is not a whole number from 0 to 2^64 - 1", name(key)));
    return value.get<uint64_t>();
  }
  double number(const char* key) const {
    const ordered_json& value = member(key);
    if (!value.is_number()) throw Mistake(fmt::format("{} is not a number", name(key)));
    return value.get<double>();
  }
  bool boolean(const char* key) const {
    const ordered_json& value = member(key);
    if (!value.is_boolean()) throw Mistake(fmt::format("{} is not true or false", name(key)));
    return value.get<bool>();
  }
  std::string text(const char* key) const {
    const ordered_json& value = member(key);
    if (!value.is_string()) throw Mistake(fmt::format("{} is not a string", name(key)));
    return value.get<std::string>();
  }

 private:
  const ordered_json& member(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) throw Mistake(fmt::format("{} is missing", name(key)));
    return *found;
  }
  std::string name(const std::string& key) const {
    return place_.empty() ? key : key.empty() ? place_ : place_ + "." + key;
  }
  const ordered_json& object_;
  std::string place_;
};

// A path within the checkpoint and nothing else.
bool stays_inside(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos || fs::path(path).is_absolute())
    return false;
  const fs::path parts(path);
  return std::none_of(parts.begin(), parts.end(),
                      [](const fs::path& part) { return part == ".." || part == "."; });
}

bool is_checksum(const std::string& text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// The text whose checksum state.json holds: all of it but that.
std::string sum_of(ordered_json state) {
  state.erase("checksum");
  return checksum_of(state.dump());
}

// Refuses what nlohmann-json lets pass: a key given twice, and nesting that no honest file has.
ordered_json parse_strictly(std::string_view text) {
  std::vector<std::vector<std::string>> keys;
  const auto inspect = [&](int depth, json::parse_event_t event, ordered_json& parsed) {
    using Event = json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxDepth)
      throw Mistake("it is nested too deeply");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) {
      std::sort(keys.back().begin(), keys.back().end());
      const auto twice = std::adjacent_find(keys.back().begin(), keys.back().end());
      if (twice != keys.back().end()) throw Mistake(fmt::format("\"{}\" is there twice", *twice));
      keys.pop_back();
    }
    if (event == Event::key) keys.back().push_back(parsed.get<std::string>());
    return true;
  };
  return ordered_json::parse(text, inspect);
}

CheckpointState from_json(const ordered_json& root) {
  const Reader reader(root, "");
  if (reader.text("format") != kFormat) throw Mistake("it is not the state of a checkpoint");
  // Before anything else of it is read, for a newer version may mean anything.
  if (const int64_t version = reader.count("version"); version != CheckpointState::kVersion) {
    throw Mistake(
        fmt::format("it is of version {} of the format, written by {}, and this program reads "
                    "version {}; use a newer picotron",
                    version, reader.text("program"), CheckpointState::kVersion));
  }
  if (reader.text("checksum") != sum_of(root))
    throw Mistake("its checksum is not that of what it says");
  CheckpointState state;
  state.program = reader.text("program");
  const Reader train = reader.inside("train"), data = reader.inside("data"),
               loss = reader.inside("loss");
  state.train = {.step = train.count("step"),
                 .trained_tokens = train.count("trained_tokens"),
                 .global_batch_size = train.count("global_batch_size"),
                 .updates = train.count("updates"),
                 .data = {.name = data.text("name"),
                          .seq_length = data.count("seq_length"),
                          .num_rows = data.count("num_rows"),
                          .position = data.count("position"),
                          .seed = data.bits("seed"),
                          .shuffle = data.boolean("shuffle")},
                 .loss = {.steps = loss.count("steps"),
                          .mean = loss.number("mean"),
                          .variance = loss.number("variance")}};
  if (state.train.global_batch_size == 0) throw Mistake("train.global_batch_size is 0");
  if (state.train.loss.variance < 0) throw Mistake("loss.variance is negative");
  state.layout = reader.text("layout");
  state.dtype = reader.text("dtype");
  state.optimizer = reader.text("optimizer");
  state.config = reader.object("config");
  const ordered_json& files = reader.object("files");
  for (const auto& [path, record] : files.items()) {
    if (!stays_inside(path))
      throw Mistake(fmt::format("files names \"{}\", which is not inside the checkpoint", path));
    const Reader entry(record, "files." + path);
    const FileRecord file{.bytes = entry.count("bytes"), .checksum = entry.text("xxh3_128")};
    if (!is_checksum(file.checksum))
      throw Mistake(fmt::format("files.{}.xxh3_128 is not 32 hexadecimal digits", path));
    state.files.emplace(path, file);
  }
  return state;
}

}  // namespace

std::string to_json(const CheckpointState& state) {
  ordered_json files = ordered_json::object();
  for (const auto& [path, record] : state.files)
    files[path] = {{"bytes", record.bytes}, {"xxh3_128", record.checksum}};
  const TrainState& train = state.train;
  ordered_json root = {
      {"format", kFormat},
      {"version", CheckpointState::kVersion},
      {"program", state.program},
      {"train",
       {{"step", train.step},
        {"trained_tokens", train.trained_tokens},
        {"global_batch_size", train.global_batch_size},
        {"updates", train.updates}}},
      {"data",
       {{"name", train.data.name},
        {"seq_length", train.data.seq_length},
        {"num_rows", train.data.num_rows},
        {"position", train.data.position},
        {"seed", train.data.seed},
        {"shuffle", train.data.shuffle}}},
      {"loss",
       {{"steps", train.loss.steps}, {"mean", train.loss.mean}, {"variance", train.loss.variance}}},
      {"layout", state.layout},
      {"dtype", state.dtype},
      {"optimizer", state.optimizer},
      {"config", state.config},
      {"files", files}};
  root["checksum"] = sum_of(root);
  return root.dump(2) + "\n";
}

CheckpointState parse_state(std::string_view text, const fs::path& file) {
  try {
    return from_json(parse_strictly(text));
  } catch (const json::exception& error) {
    const auto* where = dynamic_cast<const json::parse_error*>(&error);
    throw user_error("{} is not JSON from byte {} on{}", file.string(), where ? where->byte : 0,
                     remedy_for_damage(file.parent_path()));
  } catch (const Mistake& mistake) {
    throw user_error("{} cannot be used: {}{}", file.string(), mistake.what(),
                     remedy_for_damage(file.parent_path()));
  }
}

CheckpointState read_state(const fs::path& checkpoint) {
  const fs::path file = checkpoint / kStateFile;
  return parse_state(read_text_file(file), file);
}

std::optional<int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  const bool is_number = error == std::errc() && end == name.data() + name.size() && step >= 0;
  return is_number ? std::optional(step) : std::nullopt;
}

std::vector<CheckpointEntry> list_checkpoints(const fs::path& save_dir) {
  std::vector<CheckpointEntry> found;
  std::error_code absent;
  for (const fs::directory_entry& entry : fs::directory_iterator(save_dir, absent)) {
    const auto step = step_of(entry.path());
    if (step && is_complete(entry.path())) found.push_back({*step, entry.path()});
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

fs::path find_checkpoint(const fs::path& path) {
  std::error_code unreadable;
  if (!fs::is_directory(path, unreadable)) {
    throw user_error("{} is not a folder; give a checkpoint's, or a save_dir with checkpoints",
                     path.string());
  }
  const fs::path plain = path.has_filename() ? path : path.parent_path();  // without a last slash
  if (is_complete(plain)) return plain;
  const std::vector<CheckpointEntry> all = list_checkpoints(plain);
  if (!all.empty()) return all.back().folder;
  const bool is_half = step_of(plain) || plain.extension() == ".partial";
  throw user_error("{} {}", path.string(),
                   is_half ? "is not complete: it has no state.json; take the checkpoint before it"
                           : "holds no complete checkpoint: no folder STEP/ with a state.json");
}

std::optional<std::string> find_damage(const fs::path& checkpoint, const CheckpointState& state,
                                       int64_t part, int64_t parts) {
  int64_t number = 0;
  for (const auto& [path, record] : state.files) {
    if (number++ % parts != part) continue;
    const fs::path file = checkpoint / path;
    std::error_code error;
    const auto size = fs::file_size(file, error);
    if (error) return fmt::format("{} is missing", file.string());
    if (size != static_cast<uint64_t>(record.bytes)) {
      return fmt::format("{} has {} bytes, and {} were written", file.string(), size, record.bytes);
    }
    if (checksum_of_file(file) != record.checksum)
      return fmt::format("{} is damaged: its checksum is not the one it was written with",
                         file.string());
  }
  return std::nullopt;
}

std::string remedy_for_damage(const fs::path& checkpoint) {
  const auto step = step_of(checkpoint);
  if (!step) return "";
  std::string before;
  for (const CheckpointEntry& entry : list_checkpoints(checkpoint.parent_path()))
    if (entry.step < *step) before = entry.folder.string();
  return before.empty() ? "; no complete checkpoint is before it"
                        : fmt::format(
                              "; the one before it is {0}: to go on from that, give --resume never "
                              "--load_path {0}",
                              before);
}

void remove_checkpoint(const fs::path& checkpoint) {
  const fs::path partial = checkpoint.string() + ".partial";
  fs::remove_all(partial);
  fs::rename(checkpoint, partial);
  sync_folder(checkpoint.parent_path());
  fs::remove_all(partial);
}

std::vector<fs::path> prune_checkpoints(const fs::path& save_dir, int64_t keep_last) {
  std::vector<fs::path> removed;
  const std::vector<CheckpointEntry> all = list_checkpoints(save_dir);
  for (size_t i = 0; i + static_cast<size_t>(keep_last) < all.size(); ++i) {
    remove_checkpoint(all[i].folder);
    removed.push_back(all[i].folder);
  }
  return removed;
}

}  // namespace picotron
