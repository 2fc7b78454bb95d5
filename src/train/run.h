// A run, before it starts: everything the configuration names, opened and checked. What a file or a
// key gets wrong is found here, before any rank is started (exit code 2), and by every rank alike.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "data/dataset.h"
#include "model/architectures.h"
#include "train/resume.h"

namespace picotron {

struct Run {
  Config config;
  OpenedDatasets datasets;
  ModelKeys model;  // config.model with folders in place of hub ids
  LlamaConfig architecture;
  c10::ScalarType dtype = c10::kFloat;  // of the computation
  std::string tokenizer;                // open_tokenizer()'s name, or "" where none is known
  std::vector<std::string> warnings;    // sentences for rank 0 to say
  std::optional<Start> start;           // the checkpoint it goes on from; its batch is in config
  DataPosition data;                    // at its first step
  bool rehearsal = false;               // verify, explain: nothing is printed, nothing is written
};

// The data may live on another machine, so only what needs no file is asked.
std::optional<int64_t> vocabulary_of_data(const Config& config);

// On a GPU, as the config says or, where it says nothing, as the machine allows.
bool computes_on_gpu(const Config& config);

// What a run computes in: the config's dtype, or the one that is quick there; float32 instead of a
// bfloat16 that would be slower.
DType planned_dtype(const Config& config, bool on_gpu);
inline DType planned_dtype(const Config& config) {
  return planned_dtype(config, computes_on_gpu(config));
}
c10::ScalarType scalar_type_of(DType dtype);

// `on_gpu`: whether the ranks compute on one. Says nothing itself, for every rank calls it.
// Throws UserError.
Run prepare_run(const Config& config, bool on_gpu);

// The last step of the run, by total_train_steps or max_tokens.
int64_t last_step(const Run& run);

// Lines that say what is about to be trained: model, data, layout, batch.
std::string describe(const Run& run);

}  // namespace picotron
