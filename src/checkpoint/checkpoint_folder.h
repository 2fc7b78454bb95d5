// A checkpoint's folder, seen from outside: what is in it, whether it is complete, whether it is
// sound. docs/checkpoints.md has the format to the byte.
//
//     <save_dir>/
//       latest                     "1200": a hint for people; nothing is decided by it
//       metrics.jsonl
//       900/  1200/
//         model/                   a Hugging Face folder: config.json, one file per layer, index
//         optimizer/master/        fp32 masters, where the model's own values are rounded
//         optimizer/exp_avg/       AdamW's moments; by the same names, in files cut the same way
//         optimizer/exp_avg_sq/
//         state.json               written last: with it the checkpoint is complete
//       1500.partial/              being written, or left by a run that was killed
//
// A folder becomes <step> by a rename after everything in it is on the disk, and never changes
// again. No LibTorch here. Read next: checkpoint/sharded_state.h, train/saver.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace picotron {

// Where the data go on: `position` counts the rows of the run so far, over all epochs
// (data/loader.h), and what else decides which row stands there.
struct DataPosition {
  std::string name;  // of the data set
  int64_t seq_length = 0, num_rows = 0;
  int64_t position = 0;
  uint64_t seed = 0;
  bool shuffle = false;
};

// The running mean and variance of the loss, by which a spike is told (train/health.h).
struct LossHistory {
  int64_t steps = 0;
  double mean = 0, variance = 0;
};

// What a run is beside its tensors.
struct TrainState {
  int64_t step = 0;  // steps done
  int64_t trained_tokens = 0;
  int64_t global_batch_size = 0;  // sequences
  // Updates that the optimizer's moments have seen: AdamW's own count.
  int64_t updates = 0;
  DataPosition data;
  LossHistory loss;
};

struct FileRecord {
  int64_t bytes = 0;
  std::string checksum;  // XXH3, 128 bits, as 32 hexadecimal digits
};

// state.json. Its own checksum is over the rest of it.
struct CheckpointState {
  static constexpr int64_t kVersion = 1;
  TrainState train;
  std::string layout;                       // "dp 2 · tp 2 · pp 1 · cp 1, zero 1": for people
  std::string dtype;                        // of the computation: "bfloat16"
  std::string optimizer;                    // "adamw" or "sgd"
  std::string program;                      // the version that wrote it
  nlohmann::ordered_json config;            // every key, as picotron config prints them
  std::map<std::string, FileRecord> files;  // by path within the checkpoint, all but state.json
};

std::string to_json(const CheckpointState& state);
// `file` is for messages. UserError where it is no JSON, of a newer version, or its checksum or a
// value is wrong.
CheckpointState parse_state(std::string_view text, const std::filesystem::path& file);
// Of <checkpoint>/state.json.
CheckpointState read_state(const std::filesystem::path& checkpoint);

// The step that a folder is named by: digits and nothing else.
std::optional<int64_t> step_of(const std::filesystem::path& folder);

struct CheckpointEntry {
  int64_t step = 0;
  std::filesystem::path folder;
};
// Those that are complete: folders named by a number that hold a state.json; oldest first. An empty
// list where save_dir does not exist.
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& save_dir);

// What a person means by `path`: one checkpoint's folder, or a save_dir, then its newest complete
// one. UserError naming what is there instead.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

// The files numbered part, part + parts, … of the state's list against their records. Nothing, or a
// sentence naming the first one that is missing, of another size, or damaged.
std::optional<std::string> find_damage(const std::filesystem::path& checkpoint,
                                       const CheckpointState& state, int64_t part = 0,
                                       int64_t parts = 1);
// What to take instead of a damaged one: "; the checkpoint before it is ckpt/900: …", or "".
std::string remedy_for_damage(const std::filesystem::path& checkpoint);

// Removes a checkpoint so that it is never taken for a complete one on the way: its name first.
void remove_checkpoint(const std::filesystem::path& checkpoint);
// Removes all but the newest `keep_last` complete ones, and returns what was removed.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& save_dir,
                                                     int64_t keep_last);

}  // namespace picotron
