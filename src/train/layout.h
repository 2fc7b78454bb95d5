// From a configuration to a layout: the mesh's sizes, the layers of each stage, the schedule, what
// a rank's model is made of. The loop builds from it, and `picotron plan` asks it the same
// questions for every rank before any is started.
#pragma once
#include <c10/core/Device.h>

#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "dist/mesh.h"
#include "model/llama.h"
#include "parallel/pipeline_schedule.h"
#include "train/run.h"

namespace picotron {

// What core/config asks of an architecture, and of the one that keys name, as far as they alone say
// it: a vocabulary that the data set decides is large enough for any layout.
LayoutSizes layout_sizes(const LlamaConfig& architecture);
std::optional<LayoutSizes> known_layout_sizes(const ModelKeys& keys);

AxisSizes axis_sizes(const Config& config);
// "dp 2 · tp 2 · pp 2 · cp 1, 1f1b, zero 1": all that a layout is.
std::string layout_text(const Config& config);
MeshOptions mesh_options(const Config& config, const LlamaConfig& architecture);

// Multiply-adds of a token in the forward pass, of the whole sequence's mean token; backward has
// twice as many of each.
struct TokenCosts {
  double layer = 0, attention = 0;  // attention: the part of a layer that is q·k and p·v
  double embedding = 0, head = 0;
};
TokenCosts token_costs(const LlamaConfig& architecture, int64_t seq_length);

// Layers [begin, end) of each chunk of a stage, by `balance`: `layers` gives each virtual stage as
// many (the first ones one more), `flops` counts the embedding and the head too.
std::vector<Range> layers_of_stage(const Config& config, const LlamaConfig& architecture,
                                   int stage);

// What a stage does in one step; for validation the forwards alone.
ScheduleOptions schedule_options(const Config& config, int stage = 0, bool forward_only = false);
Schedule schedule_of_stage(const Config& config, int stage, bool forward_only = false);

// Of the model on a rank of this stage.
Llama::Options llama_options(const Run& run, int stage, c10::Device device);

}  // namespace picotron
