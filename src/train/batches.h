// A step's batches on the device, and the validation loss.
#pragma once
#include <cstdint>
#include <vector>

#include "data/loader.h"
#include "dist/mesh.h"
#include "model/llama.h"
#include "train/run.h"

namespace picotron {

// The token after which documents are told apart; none without dataset.document_masking. UserError
// where nothing says how the data set's documents end.
std::optional<int32_t> masked_document_end(const Config& config, const Dataset& data);

// This rank's share of the training data. `steps_done`: before the run's first step.
BatchLoader training_loader(const Run& run, const Mesh& mesh, int64_t steps_done);

// The microbatches of step `step`, from 0.
std::vector<TokenBatch> next_batches(const BatchLoader& loader, int64_t step, at::Device device);

// Mean loss over the first global batches of the validation set: as many as eval_steps says, or as
// there are. Every rank of the world calls it.
double validate(Llama& model, const Run& run, const Mesh& mesh, at::Device device);

}  // namespace picotron
