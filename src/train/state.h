// The state of a run, in and out: first values or those of a checkpoint, and what a checkpoint of
// this rank is made of.
#pragma once
#include <memory>

#include "checkpoint/saver.h"
#include "dist/device.h"
#include "model/llama.h"
#include "parallel/data_parallel.h"
#include "train/optimizer.h"
#include "train/run.h"

namespace picotron {

// All ranks start from the same step; then each reads its share of the checkpoint's files, once,
// against their checksums. UserError naming a rank that has found another checkpoint than rank 0,
// or what is damaged and the checkpoint before it.
void check_start(const Run& run, const Mesh& mesh, const Device& device);

// The values of this rank's part when the run begins, in full precision, into a buffer of the
// layout of parameters.flat(): a checkpoint's masters, a Hugging Face folder, or drawn.
void fill_first_values(const Run& run, const Llama& model, const at::Tensor& flat);

// The optimizer's moments from the checkpoint that the run starts from, and what else the run is
// then. Where the checkpoint has no moments (another optimizer) they begin at zero, with a warning.
TrainState begin(const Run& run, const Gradients& gradients, const Llama& model,
                 ShardedOptimizer& optimizer);

// Collective. What an earlier run has left in save_dir is out of the way before it returns. Null in
// a rehearsal, which writes nothing.
std::unique_ptr<CheckpointSaver> make_saver(const Run& run, const Rendezvous& rendezvous,
                                            const Gradients& gradients, const Llama& model,
                                            const ShardedOptimizer& optimizer);

// One more step: its tokens and rows are done with.
void advance(TrainState& state, const Config& config);

// state.json of a run at this moment, without the list of files.
CheckpointState describe_state(const Run& run, const TrainState& state);

}  // namespace picotron
