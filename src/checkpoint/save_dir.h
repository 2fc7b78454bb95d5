// What lies in a save_dir, for a person who looks: complete checkpoints, those that were being
// written when a run was killed, and those that a later run has set aside.
//
//     900/  1200/      complete, or unreadable where state.json cannot be used
//     1500.partial/    half written: of a run that goes on, or that was killed
//     1500.old1/       set aside: of an earlier run, complete and never taken by itself
//
// Looking changes nothing. Read next: checkpoint/difference.h.
#pragma once
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_folder.h"

namespace picotron {

enum class FolderKind { complete, unreadable, half_written, set_aside };

struct SavedFolder {
  std::filesystem::path folder;
  int64_t step = 0;
  FolderKind kind = FolderKind::complete;
  std::optional<CheckpointState> state;  // where it can be read
  int64_t bytes = 0;                     // of all its files
  std::time_t written = 0;               // when the newest of them was
};
// By step, what is set aside or half written before the complete one. UserError where save_dir is
// no folder.
std::vector<SavedFolder> look_into(const std::filesystem::path& save_dir);

// The checkpoints that `path` means: the one whose folder it is, or all folders of a save_dir that
// are named by a step. UserError where there is none that is complete.
std::vector<std::filesystem::path> checkpoints_meant(const std::filesystem::path& path);

// Every file of a checkpoint against its record, read to its end.
struct Soundness {
  std::vector<std::string> damage;  // a sentence for each file that is missing or damaged
  int64_t files = 0, bytes = 0;     // that were looked at
};
Soundness check_soundness(const std::filesystem::path& checkpoint);

// The model folder of the checkpoint that `path` means (find_checkpoint), when each of its files is
// sound; else UserError.
std::filesystem::path sound_model_folder(const std::filesystem::path& path);

// What prune removes: the complete ones but the newest `keep_last`, and with `half_written` what is
// half written. One that cannot be read counts for nothing and stays.
std::vector<SavedFolder> beyond_the_newest(const std::filesystem::path& save_dir, int64_t keep_last,
                                           bool half_written);
// Removes one of those.
void remove(const SavedFolder& folder);

}  // namespace picotron
