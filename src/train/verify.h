// Does a layout train the model that one rank trains? Loss curves cannot tell: Adam hides a wrongly
// scaled gradient, and rounding a small mistake. So a small model of the same structure is run
// in the layout and on one rank in float64, where every sum that is right agrees to 1e-10, and each
// gradient and each updated weight is compared:
//
//     distance(a, b) = max |a − b| / max |b|      over the whole, unsharded tensor
//
// The same in the run's own dtype shows what rounding does there. Read next: train/trace.h.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "model/architectures.h"
#include "train/run.h"
#include "train/trace.h"

namespace picotron {

// How far two traces may be apart. Relative, of loss and norm; distances of tensors.
struct Tolerance {
  double loss = 0, grad_norm = 0;     // of every step
  double gradients = 0, weights = 0;  // of the detailed steps
  double initial = 0;                 // values before the first step: the same bits
};

struct Distances {
  double loss = 0, grad_norm = 0;  // the worst of all steps
  struct Worst {
    double distance = 0;
    std::string name;   // Hugging Face's
    int64_t step = 0;   // from 1
    int64_t index = 0;  // of the element, in the whole tensor
  };
  Worst initial, gradient, weight;
  bool within(const Tolerance& tolerance) const;
};

Distances distances(const Trace& mine, const Trace& reference);

// The first figure that is too far, in the order in which a run computes them: initial values, then
// of each step loss, gradients, norm, weights. What is wrong later may be its consequence.
struct FirstWrong {
  std::string figure;      // "loss of step 1"; "": every one is within
  std::string remark;      // what the wrong ones have in common
  Distances::Worst worst;  // of its tensors; without a name where none is more to blame than others
};
FirstWrong first_wrong(const Trace& mine, const Trace& reference, const Tolerance& tolerance);

// Of a dtype, contract 1 of the design: float64 1e-10; float32 loss 1e-5, norm and gradients 1e-4;
// bfloat16 loss and norm 2e-2, whose single gradients are mostly rounding.
Tolerance tolerance_of(DType dtype);

// A config of the same layout and structure (heads per key/value head, ties, biases, what does not
// divide), small enough for a blink, on random tokens. float64: three steps, large weights, so that
// every non-linearity bends. Else twenty steps of a tamer model, for rounding must not grow.
struct ShrunkRun {
  Config config;
  LlamaConfig architecture;
  int64_t detailed_steps() const;  // whose tensors are compared: three in float64, else the first
};
ShrunkRun shrink(const Config& config, const LlamaConfig& architecture, DType dtype,
                 OptimizerKind optimizer);
// The same model and global batch on one rank, without recompute, chunks or shards.
ShrunkRun on_one_rank(const ShrunkRun& run);
// Opens it on random tokens; a rehearsal.
Run rehearse(const ShrunkRun& shrunk);

// Runs all ranks as threads of this process, one processor thread each. RunError where one fails.
Trace trace_as_threads(const ShrunkRun& shrunk);

// The axis, or option, without which the layout agrees with one rank: "tp", "sequence_parallel";
// several joined by "and" where each mends it; "processes" where ranks as threads agree; "" where
// nothing mends it alone.
std::string likely_cause(const ShrunkRun& shrunk, const Tolerance& tolerance);

}  // namespace picotron
