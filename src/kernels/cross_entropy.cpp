// Formulas and sources: cross_entropy.h; fused loops: cpu/cross_entropy_kernels.cpp.
// Here: the plain definitions, and the way from tensors to pointers and threads.
#include "kernels/cross_entropy.h"

#include <ATen/ATen.h>

#include "kernels/fused_call.h"

namespace picotron {
namespace {

// Where each target lies among this rank's columns, [t, 1]: its column, or 0 and here = false.
struct Place {
  at::Tensor column, here;
};
Place place_of(const at::Tensor& targets, int64_t vocab_begin, int64_t columns) {
  const at::Tensor local = (targets - vocab_begin).unsqueeze(1);
  const at::Tensor here = (local >= 0).logical_and(local < columns);
  return {at::where(here, local, at::zeros_like(local)), here};
}

at::Tensor plain_statistics(const at::Tensor& logits, const at::Tensor& targets,
                            int64_t vocab_begin) {
  const at::Tensor x = logits.to(statistic_dtype(logits));
  const Place place = place_of(targets, vocab_begin, x.size(1));
  const at::Tensor maximum = x.amax(1, /*keepdim=*/true);
  const at::Tensor sum = (x - maximum).exp().sum(1, /*keepdim=*/true);
  const at::Tensor target = x.gather(1, place.column);
  return at::cat({maximum, sum, at::where(place.here, target, at::zeros_like(target))}, 1);
}

void plain_gradient_(const at::Tensor& logits, const at::Tensor& targets, int64_t vocab_begin,
                     const at::Tensor& lse, double scale) {
  const Place place = place_of(targets, vocab_begin, logits.size(1));
  at::Tensor gradient = (logits.to(statistic_dtype(logits)) - lse.unsqueeze(1)).exp();
  gradient.scatter_add_(1, place.column, -place.here.to(gradient.scalar_type()));
  logits.copy_(gradient * scale);
}

template <class S>
fused::CrossEntropyArguments<S> arguments_of(const at::Tensor& logits, const at::Tensor& targets,
                                             int64_t vocab_begin) {
  check_like(logits, logits, {targets.numel(), logits.size(1)});
  check(targets.scalar_type() == at::kLong && targets.is_contiguous() && logits.size(1) > 0,
        "the cross-entropy takes one int64 target per row of logits, and at least one column");
  return {.logits = data_as<S>(logits),
          .targets = targets.data_ptr<int64_t>(),
          .vocab_begin = vocab_begin,
          .columns = logits.size(1),
          .statistics = nullptr,
          .lse = nullptr,
          .scale = 0};
}

}  // namespace

at::Tensor cross_entropy_statistics(const at::Tensor& logits, const at::Tensor& targets,
                                    int64_t vocab_begin, Body body) {
  if (!runs_fused(body, {logits})) return plain_statistics(logits, targets, vocab_begin);
  at::Tensor out = at::empty({logits.size(0), 3}, logits.options().dtype(statistic_dtype(logits)));
  with_storage_type(logits, [&](auto storage) {
    using S = decltype(storage);
    auto arguments = arguments_of<S>(logits, targets, vocab_begin);
    arguments.statistics = data_as<fused::Statistic<S>>(out);
    const auto kernel = typed_kernels<S>(logits).cross_entropy_statistics;
    for_rows(logits, logits.size(0), rows_per_task(logits.size(1)),
             [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
  return out;
}

at::Tensor merge_statistics(const at::Tensor& all) {
  const at::Tensor maximum = all.select(2, 0);  // [ranks, t]
  const at::Tensor highest = maximum.amax(0);
  const at::Tensor sum = (all.select(2, 1) * (maximum - highest).exp()).sum(0);
  return at::stack({highest + sum.log(), all.select(2, 2).sum(0)}, 1);
}

void cross_entropy_gradient_(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t vocab_begin, const at::Tensor& lse, double scale, Body body) {
  if (!runs_fused(body, {logits})) return plain_gradient_(logits, targets, vocab_begin, lse, scale);
  check(lse.scalar_type() == statistic_dtype(logits) && lse.numel() == logits.size(0),
        "the log-sum-exp is fp32 (fp64 where the logits are), one per row of logits");
  const at::Tensor packed_lse = lse.contiguous();
  with_storage_type(logits, [&](auto storage) {
    using S = decltype(storage);
    auto arguments = arguments_of<S>(logits, targets, vocab_begin);
    arguments.lse = data_as<fused::Statistic<S>>(packed_lse);
    arguments.scale = scale;
    const auto kernel = typed_kernels<S>(logits).cross_entropy_gradient;
    for_rows(logits, logits.size(0), rows_per_task(logits.size(1)),
             [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
}

}  // namespace picotron
