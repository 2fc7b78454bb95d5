// How buckets are cut, counted and reduced; the norm from their sums of squares.
#include "parallel/data_parallel.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "kernels/adamw.h"
#include "kernels/matmul.h"

namespace picotron {

Gradients::Gradients(Parameters& parameters, const Group& dp_cp, const Group& world,
                     const GradientsOptions& options)
    : dp_cp_(dp_cp), world_(world), options_(options), parameters_(parameters) {
  const auto dtype = parameters.flat().scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  flat_ = at::zeros({parameters.flat_numel()}, parameters.flat().options().dtype(dtype));
  parameters.set_gradients(flat_);

  // Walk from the last Weight to the first, as backward does; close a bucket once it is large, or
  // before a borrowed Weight, which is in none.
  const auto& weights = parameters.weights();
  progress_.resize(weights.size());
  int64_t end = parameters.flat_numel();
  for (size_t i = weights.size(); i-- > 0;) {
    if (weights[i].is_borrowed()) {
      end = weights[i].offset;
      continue;
    }
    progress_[i].bucket = ranges_.size();
    const bool is_last = i == 0 || weights[i - 1].is_borrowed();
    if (end - weights[i].offset >= options_.bucket_numel || is_last) {
      ranges_.push_back({weights[i].offset, end});
      end = weights[i].offset;
    }
  }
}

void Gradients::begin_step(int64_t microbatches) {
  buckets_.clear();
  buckets_.resize(ranges_.size());
  sends_.clear();
  for (const Weight& weight : parameters_.weights()) {
    Progress& progress = progress_[weight.index];
    progress.missing = weight.uses * microbatches;
    progress.has_sum = false;
    if (!weight.is_borrowed()) ++buckets_[progress.bucket].missing;
  }
}

void Gradients::accumulate(const Weight& weight, const at::Tensor& dy, const at::Tensor& x, At at) {
  if (queueing_) {
    queue_.push_back({&weight, dy, x});
    return;
  }
  add_product(weight, dy, x, at);
  contributed(weight);
}

void Gradients::add_product(const Weight& weight, const at::Tensor& dy, const at::Tensor& x,
                            At at) {
  bool& has_sum = progress_[weight.index].has_sum;
  linear_weight_gradient(weight.gradient, dy, x, /*accumulate=*/has_sum, at);
  has_sum = true;
}

const at::Tensor& Gradients::sum(const Weight& weight) {
  bool& has_sum = progress_[weight.index].has_sum;
  if (!has_sum) weight.gradient.zero_();
  has_sum = true;
  return weight.gradient;
}

void Gradients::contributed(const Weight& weight) {
  Progress& progress = progress_[weight.index];
  check(progress.missing > 0, "a gradient contribution more than the schedule announced");
  check(progress.has_sum, "a contribution goes through sum() or a product");
  if (--progress.missing > 0) return;
  if (weight.tied != nullptr) sum_tied(weight);
  if (weight.is_borrowed()) return;
  Bucket& bucket = buckets_[progress.bucket];
  for (size_t i = weight.first; i < weight.first + weight.count; ++i) {
    const Parameter& parameter = parameters_.list()[i];
    if (parameter.partial_over != nullptr)
      bucket.partial.push_back(all_reduce(parameter.gradient, *parameter.partial_over));
  }
  if (--bucket.missing == 0) reduce(progress.bucket);
}

// The last stage is complete before the first one's last backward begins, so the owner does not
// wait long. In pieces, for a second matrix would be large.
void Gradients::sum_tied(const Weight& weight) {
  const at::Tensor received = at::empty(
      {weight.is_borrowed() ? 0 : std::min(options_.bucket_numel, weight.numel)}, flat_.options());
  for (int64_t begin = 0; begin < weight.numel; begin += options_.bucket_numel) {
    const int64_t length = std::min(options_.bucket_numel, weight.numel - begin);
    const at::Tensor piece = weight.gradient.view({-1}).narrow(0, begin, length);
    if (weight.is_borrowed()) {
      sends_.push_back(send(piece, 0, *weight.tied));
    } else {
      receive(received.narrow(0, 0, length), 1, *weight.tied).wait();
      piece.add_(received.narrow(0, 0, length));
    }
  }
}

void Gradients::reduce(size_t index) {
  Bucket& bucket = buckets_[index];
  for (Work& partial : bucket.partial) partial.wait();
  const at::Tensor gradient = flat_.narrow(0, ranges_[index].begin, ranges_[index].size());
  bucket.reduction =
      options_.zero_stage == 0 ? all_reduce(gradient, dp_cp_) : reduce_scatter(gradient, dp_cp_);
}

void Gradients::finish() {
  for (const Progress& progress : progress_)
    check(progress.missing == 0, "a gradient contribution is missing at the end of the step");
  for (Work& sent : sends_) sent.wait();
  for (Bucket& bucket : buckets_) bucket.reduction.wait();
}

Range Gradients::my_part(const Range& bucket) const {
  return {bucket.begin + part_begin(bucket.size(), dp_cp_.size(), dp_cp_.rank),
          bucket.begin + part_begin(bucket.size(), dp_cp_.size(), dp_cp_.rank + 1)};
}

at::Tensor Gradients::norm(const at::Tensor& loss) const {
  // Always from my part of each bucket, so that the norm's bits do not depend on zero_stage.
  at::Tensor sum = at::zeros({}, flat_.options().dtype(at::kDouble));
  for (const Range& bucket : ranges_) {
    const Range part = my_part(bucket);
    for (const Parameter& parameter : parameters_.list()) {
      const int64_t begin = std::max(part.begin, parameter.offset);
      const int64_t end = std::min(part.end, parameter.offset + parameter.numel());
      if (parameter.counts_in_norm && begin < end)
        sum += sum_of_squares(flat_.narrow(0, begin, end - begin));
    }
  }
  if (loss.defined()) sum += 0 * loss;
  all_reduce(sum, world_).wait();
  return sum.sqrt();
}

std::vector<Range> Gradients::owned() const {
  if (options_.zero_stage == 0) return ranges_;
  std::vector<Range> result;
  for (const Range& bucket : ranges_) result.push_back(my_part(bucket));
  return result;
}

void Gradients::gather_values(const at::Tensor& flat_values) const {
  std::vector<Work> works;
  for (const Range& bucket : ranges_) {
    if (options_.zero_stage == 0) break;
    works.push_back(all_gather(flat_values.narrow(0, bucket.begin, bucket.size()), dp_cp_));
  }
  for (Work& gather : works) gather.wait();
  for (const Weight& weight : parameters_.weights()) {
    if (weight.tied == nullptr) continue;
    const at::Tensor value = flat_values.narrow(0, weight.offset, weight.numel);
    (weight.is_borrowed() ? receive(value, 0, *weight.tied) : send(value, 1, *weight.tied)).wait();
  }
}

}  // namespace picotron
