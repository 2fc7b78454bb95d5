// A run that is looked into: beside loss and norm of each step, every gradient and every updated
// weight, whole, under its Hugging Face name. What two layouts of one model must agree in.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/whole_tensors.h"
#include "train/train.h"

namespace picotron {

struct Trace {
  using Tensors = std::map<std::string, at::Tensor>;  // by Hugging Face name, on the CPU
  struct Step {
    double loss = 0, grad_norm = 0;
    Tensors gradients, weights;  // before clipping; after the update; empty in later steps
  };
  Tensors initial;  // the weights before the first step
  std::vector<Step> steps;
  std::map<std::string, std::vector<WholeTensors::Part>> parts;  // who holds what
};

// Fills `trace` on rank 0 (on the others it stays empty) while a run goes on, with tensors in the
// first `detailed_steps` steps. `trace` outlives it.
TrainObserver tracer(Trace& trace, int64_t detailed_steps);

// As a safetensors file, which holds everything but `parts`; for ranks that are processes.
void write_trace(const std::filesystem::path& file, const Trace& trace);
Trace read_trace(const std::filesystem::path& file);

}  // namespace picotron
