// Data parallel: every replica computes the gradients of its own rows; their sum is the gradient of
// the global batch.
//
// The one door for gradients. A layer's backward hands (weight, dy, x) to accumulate(), which
// multiplies straight into one flat buffer (fp32, or fp64 in float64). The buffer is cut into
// buckets of whole Weights; since backward runs from the last layer to the first, buckets fill from
// the end, and each is reduced over dp×cp while backward still runs:
//
//     flat     | bucket 3 | bucket 2 | bucket 1 | bucket 0 |          backward  ←
//     time       F F F F  B(bucket 0) B(bucket 1) B(bucket 2) B(bucket 3)
//     network                        reduce 0    reduce 1    reduce 2    reduce 3
//
// A bucket is full when each Weight in it has had all its contributions of this step: uses ×
// microbatches, a number known beforehand, so no rank ever asks another. A Weight whose gradient is
// partial within tp (Parameter::partial_over) is first summed there, and a tied embedding gets what
// the last stage has for it. The loss is scaled once, by 1/(tokens of the global batch); every
// reduction here is a sum.
//
// ZeRO-1 (Rajbhandari et al. 2020): each of the N ranks of dp×cp owns 1/N of every bucket: a
// reduce-scatter brings it its part, the optimizer steps on that, an all-gather closes the step. An
// all-reduce is just these two halves: `zero_stage` 0 moves as many bytes, but keeps N states.
//
// Zero-bubble schedules split backward: after queue_products(true) products are kept, and whoever
// calls take_queue() has them multiplied later. Read next: train/optimizer.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "dist/collectives.h"
#include "parallel/parameter.h"

namespace picotron {

// A piece of the flat buffers.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

struct GradientsOptions {
  int zero_stage = 1;
  // A bucket closes when it holds as many elements: 16 MB of fp32.
  int64_t bucket_numel = int64_t{4} << 20;
};

class Gradients {
 public:
  // Allocates the buffer and points the parameters' gradients into it. `dp_cp` and `world` outlive
  // this object.
  Gradients(Parameters& parameters, const Group& dp_cp, const Group& world,
            const GradientsOptions& options);

  // Forgets the sums of the step before and expects `microbatches` contributions for each use of
  // each Weight. Nothing is zeroed here: a Weight's first contribution writes, the others add.
  void begin_step(int64_t microbatches);

  // dw += dyᵀ x, and one contribution. dy [tokens, rows], x [tokens, columns] of the compute dtype.
  void accumulate(const Weight& weight, const at::Tensor& dy, const at::Tensor& x,
                  At at = At::current());
  // For what is not one product: the caller adds into the sum, by itself (norms, biases, the
  // embedding) or by products (the head's chunks), then says once that it has.
  const at::Tensor& sum(const Weight& weight);
  void add_product(const Weight& weight, const at::Tensor& dy, const at::Tensor& x,
                   At at = At::current());
  void contributed(const Weight& weight);

  // While queueing, accumulate() only keeps (weight, dy, x); take_queue() returns what was kept,
  // for accumulate() to multiply later.
  struct Product {
    const Weight* weight;
    at::Tensor dy, x;
  };
  void queue_products(bool on) { queueing_ = on; }
  std::vector<Product> take_queue() { return std::exchange(queue_, {}); }

  // Waits for every reduction. Then my parts of flat() hold sums over dp×cp; with zero_stage 0 all
  // of it does.
  void finish();

  // ‖g‖₂ over the world, each parameter once: 0-dim float64 on the device. After finish(). NaN
  // where any rank's `loss` (0-dim) is not finite: so this one number tells whether a step counts.
  at::Tensor norm(const at::Tensor& loss = {}) const;

  // What the optimizer of this rank updates: my part of each bucket (ZeRO-1) or all of each
  // (zero_stage 0).
  std::vector<Range> owned() const;
  // The Weights' buckets in the order in which backward fills them.
  const std::vector<Range>& buckets() const { return ranges_; }
  // Gives every rank the values that others own: over dp×cp, where with zero_stage 0 each owns all,
  // and a tied embedding's to the last stage.
  void gather_values(const at::Tensor& flat_values) const;

  const at::Tensor& flat() const { return flat_; }

 private:
  Range my_part(const Range& bucket) const;
  void sum_tied(const Weight& weight);
  void reduce(size_t bucket);

  // A Weight within the step.
  struct Progress {
    size_t bucket = 0;     // unused of a borrowed one: its owner reduces it
    int64_t missing = 0;   // contributions it still waits for
    bool has_sum = false;  // something was written in this step
  };
  struct Bucket {
    int64_t missing = 0;        // Weights that are not complete yet
    std::vector<Work> partial;  // sums within tp under way
    Work reduction;             // over dp×cp
  };
  const Group& dp_cp_;
  const Group& world_;
  GradientsOptions options_;
  const Parameters& parameters_;
  at::Tensor flat_;
  std::vector<Range> ranges_;  // of the buckets
  std::vector<Bucket> buckets_;
  std::vector<Progress> progress_;  // by index of the Weight
  std::vector<Work> sends_;         // of a borrowed gradient to its owner
  bool queueing_ = false;
  std::vector<Product> queue_;
};

}  // namespace picotron
