// Where a run begins: anew, or where a checkpoint has left off. Files alone, no tensors: found by
// every rank alike before the ranks meet, so that what is wrong costs no run (exit code 2).
//
// The new config wins in everything but two things, which come from the checkpoint because the loss
// curve hangs on them: the global batch (the accumulation follows the new layout) and the position
// in the data with the order of their rows (no row twice, none skipped). Read next: train/state.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "core/config.h"

namespace picotron {

// A checkpoint to go on from.
struct Start {
  std::filesystem::path checkpoint;
  CheckpointState state;
};

// By checkpoint.resume and load_path; nothing where the run begins anew. UserError where what they
// name is not there or cannot be used.
std::optional<Start> find_start(const Config& config);

// Takes over the saved global batch, and says in a line each what else differs from the saved
// config. UserError with the sizes that would do, where the layout cannot make that batch.
std::vector<std::string> take_over(const Start& start, Config& config);

// Whether the keys that say what is read of the data (text_column, subset_name, split) are the
// checkpoint's.
bool reads_alike(const Start& start, const Config& config);

// The data as this run reads them, given the saved position: of the same data, read alike, it goes
// on; of others it begins at their first row. The same are those of one name (the last of a path;
// in a mixture each, with its weight), seq_length and number of rows. A line about it is added to
// `notes` where a person should know.
DataPosition go_on_with(const DataPosition& saved, const DataPosition& opened, bool alike,
                        std::vector<std::string>& notes);

// UserError where init_from, the model or the tokenizer lies in a checkpoint that this run, which
// begins anew, sets aside.
void check_sources(const Config& config);

// UserError where nothing can be written in save_dir, or, while it is not there, where it would be.
void check_save_dir(const std::filesystem::path& save_dir);

// Whether the run's checkpoint lies in the folder that it saves to: then metrics.jsonl goes on.
bool goes_on_in_place(const std::filesystem::path& save_dir, const std::optional<Start>& start);

// On rank 0, before anything is written: what an earlier run has left in save_dir beyond the step
// at which this one starts is renamed (3 → 3.old1, metrics.jsonl → metrics.1.jsonl), half-written
// checkpoints are removed; in place, metrics.jsonl is cut after that step. Returns what it did, in
// sentences.
std::vector<std::string> clear_the_way(const std::filesystem::path& save_dir,
                                       const std::optional<Start>& start);

}  // namespace picotron
