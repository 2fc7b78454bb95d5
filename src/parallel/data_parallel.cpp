// How buckets are cut, counted and reduced; the norm from their sums of squares; the clip factor.
#include "parallel/data_parallel.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
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

  // Walk from the last Weight to the first, as backward does; close a bucket once it is large.
  const auto& weights = parameters.weights();
  bucket_of_.resize(weights.size());
  int64_t end = parameters.flat_numel();
  for (size_t i = weights.size(); i-- > 0;) {
    bucket_of_[i] = ranges_.size();
    if (end - weights[i].offset >= options_.bucket_numel || i == 0) {
      ranges_.push_back({weights[i].offset, end});
      end = weights[i].offset;
    }
  }
  has_sum_.resize(weights.size(), false);
  missing_.resize(ranges_.size(), 0);  // before the first step nothing is expected
  reductions_.resize(ranges_.size());
}

void Gradients::begin_step(int64_t microbatches) {
  has_sum_.assign(bucket_of_.size(), false);
  missing_.assign(ranges_.size(), 0);
  reductions_.clear();
  reductions_.resize(ranges_.size());
  for (size_t i = 0; i < bucket_of_.size(); ++i) {
    missing_[bucket_of_[i]] += parameters_.weights()[i].uses * microbatches;
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
  linear_weight_gradient(weight.gradient, dy, x, /*accumulate=*/has_sum_[weight.index], at);
  has_sum_[weight.index] = true;
}

const at::Tensor& Gradients::sum(const Weight& weight) {
  if (!has_sum_[weight.index]) weight.gradient.zero_();
  has_sum_[weight.index] = true;
  return weight.gradient;
}

void Gradients::contributed(const Weight& weight) {
  const size_t bucket = bucket_of_[weight.index];
  check(missing_[bucket] > 0, "a gradient contribution more than the schedule announced");
  check(has_sum_[weight.index], "a contribution goes through sum() or a product");
  if (--missing_[bucket] == 0) reduce(bucket);
}

void Gradients::reduce(size_t bucket) {
  const at::Tensor gradient = flat_.narrow(0, ranges_[bucket].begin, ranges_[bucket].size());
  reductions_[bucket] =
      options_.zero_stage == 0 ? all_reduce(gradient, dp_cp_) : reduce_scatter(gradient, dp_cp_);
}

void Gradients::finish() {
  for (size_t bucket = 0; bucket < ranges_.size(); ++bucket) {
    check(missing_[bucket] == 0, "a gradient contribution is missing at the end of the step");
    reductions_[bucket].wait();
  }
}

Range Gradients::my_part(const Range& bucket) const {
  return {bucket.begin + part_begin(bucket.size(), dp_cp_.size(), dp_cp_.rank),
          bucket.begin + part_begin(bucket.size(), dp_cp_.size(), dp_cp_.rank + 1)};
}

at::Tensor Gradients::norm() const {
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
  if (options_.zero_stage == 0) return;
  std::vector<Work> gathers;
  for (const Range& bucket : ranges_) {
    gathers.push_back(all_gather(flat_values.narrow(0, bucket.begin, bucket.size()), dp_cp_));
  }
  for (Work& gather : gathers) gather.wait();
}

at::Tensor clip_factor(const at::Tensor& norm, double max_norm, at::ScalarType dtype) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor factor =
      max_norm > 0 ? (max_norm / (norm + 1e-6)).clamp_max(1.0) : at::ones_like(norm);
  return at::where(norm.isfinite(), factor, at::full_like(norm, nan)).to(dtype);
}

}  // namespace picotron
