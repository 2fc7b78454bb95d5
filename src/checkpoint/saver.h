// Saving a run so that nothing is lost, while it goes on or while it waits.
//
//     save()   every rank   copies what it owns (async), or keeps it still
//              rank 0       <step>.partial/ and its folders
//              writers      a file per layer, each flushed (checkpoint/sharded_state.h)
//              rank 0       index, config.json, and at last state.json with every checksum
//              rank 0       renames <step>.partial to <step>; removes what keep_last does not keep
//
// A crash before the rename leaves a .partial folder, which nobody takes for a checkpoint; after it
// the checkpoint is whole. Asynchronous: what a rank owns is copied, which is the pause, and a
// thread with a group of its own does the rest; a save that comes before the last one has ended
// waits for it (the disk is slower than the interval), and that is a pause too.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/sharded_state.h"

namespace picotron {

struct SaverOptions {
  std::filesystem::path save_dir;
  int64_t keep_last = 0;  // checkpoints; 0: all
  bool async = false;
  std::map<std::string, std::string> model_files;  // beside the weights: config.json, …
};

// What a checkpoint took.
struct SaveReport {
  int64_t step = 0;
  std::filesystem::path folder;
  int64_t bytes = 0;
  double pause_seconds = 0;  // of training: the copy, or all of it; of that, waiting for the one
  double wait_seconds = 0;   // before to end
  double write_seconds = 0;
  std::vector<std::filesystem::path> removed;  // by keep_last
};

class CheckpointSaver {
 public:
  // Collective over `world`, a group of its own of tensors on the CPU (make_cpu_world). `tensors`:
  // what is saved, the model's weights first; `parts`: what this rank steps on. RunError where the
  // ranks do not see one folder: several machines need a file system that they share.
  CheckpointSaver(SaverOptions options, Group world, TensorShapes shapes,
                  std::vector<ShardedTensors> tensors, const std::vector<LocalPart>& parts);
  ~CheckpointSaver();  // leaves what is under way unfinished: a .partial folder
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // Collective. `state` without files. All ranks throw the same RunError where one cannot write; of
  // an asynchronous save the next call, or finish(), throws.
  void save(const CheckpointState& state);
  // Waits for what is under way.
  void finish();
  // Reports of the saves that have ended since the last call.
  std::vector<SaveReport> take_reports();

 private:
  void check_shared_folder() const;
  std::vector<ShardedTensors> copies();
  void write(const CheckpointState& state, const std::vector<ShardedTensors>& tensors,
             SaveReport report);
  void publish(CheckpointState state, const std::vector<ShardedTensors>& tensors,
               SaveReport& report) const;
  std::filesystem::path partial(int64_t step) const;

  const SaverOptions options_;
  const Group world_;
  const TensorShapes shapes_;
  const std::vector<ShardedTensors> tensors_;
  const std::vector<LocalPart> parts_;
  const ShardedWriter writer_;
  std::vector<at::Tensor> copies_;  // by tensors: of parts_, one after another

  std::thread thread_;  // of the save under way
  std::mutex mutex_;    // guards what follows
  std::string failure_;
  std::vector<SaveReport> reports_;
};

}  // namespace picotron
