// From a configuration to a layout: the mesh's sizes, the layers of each stage, the schedule, what
// a rank's model is made of. The loop builds from it, and `picotron plan` asks it the same
// questions for every rank before any is started.
#pragma once
#include <c10/core/Device.h>

#include <vector>

#include "core/config.h"
#include "dist/mesh.h"
#include "model/llama.h"
#include "parallel/pipeline_schedule.h"
#include "train/run.h"

namespace picotron {

AxisSizes axis_sizes(const Config& config);
MeshOptions mesh_options(const Config& config, const LlamaConfig& architecture);

// Layers [begin, end) of each chunk of a stage, by `balance`: `layers` gives each virtual stage as
// many (the first ones one more), `flops` counts the embedding and the head too.
std::vector<Range> layers_of_stage(const Config& config, const LlamaConfig& architecture,
                                   int stage);

// What a stage does in one step; for validation the forwards alone.
Schedule schedule_of_stage(const Config& config, int stage, bool forward_only = false);

// Of the model on a rank of this stage.
Llama::Options llama_options(const Run& run, int stage, c10::Device device);

}  // namespace picotron
