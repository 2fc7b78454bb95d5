// A training step to be measured: the loop's own step (train.h) on random tokens, on one rank.
//
// Forward, backward, gradient norm, clip factor and optimizer are the ones that training runs; only
// the data are drawn instead of read. Every product of a step stands in the record, from which the
// product floor is measured (kernels/matmul_floor.h).
//
// A measurement runs in a process of its own, so that its peak memory is its own, and answers
// requests, so that it can take turns with another program (bench/pytorch_step.py does the same):
//
//     "steps 5"   →  {"seconds": [0.91, …], "memory_bytes": …,
//                     "newest": {"products": …, "attention": …}}
//     "floor"     →  {"seconds": …, "product_rate": …, "products": [{"what": …, "form": …}, …]}
#pragma once
#include <ATen/core/Tensor.h>

#include <iosfwd>
#include <memory>

#include "core/record.h"
#include "dist/device.h"
#include "model/llama.h"
#include "train/optimizer.h"

namespace picotron {

struct StepBenchOptions {
  LlamaConfig architecture;
  at::ScalarType dtype = at::kFloat;
  int64_t rows = 1, columns = 1;  // sequences of a step, tokens of each
};

class StepBench {
 public:
  explicit StepBench(const StepBenchOptions& options);

  // One step; returns the seconds it took. RunError where the loss is not finite.
  double step();
  // The record of the newest step.
  std::vector<record::Entry> entries() const { return recorder_->entries(); }

 private:
  const StepBenchOptions options_;
  const Mesh mesh_;
  const Training training_;
  Llama model_;
  Gradients gradients_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  TokenBatch batch_;
  std::unique_ptr<record::Recorder> recorder_;
  int64_t steps_ = 0;
};

// Answers requests from `in` on `out`, a line each, until `in` ends. The first line says that the
// model is ready.
void serve_step_bench(const StepBenchOptions& options, std::istream& in, std::ostream& out);

}  // namespace picotron
