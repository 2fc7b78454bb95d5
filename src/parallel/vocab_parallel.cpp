// Look-up and head of a shard of the vocabulary; head and loss go chunk by chunk of tokens.
#include "parallel/vocab_parallel.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/record.h"
#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "parallel/tensor_parallel.h"

namespace picotron {
namespace {

// Tokens per chunk: logits of at most 64 MB in bf16, but enough rows for an efficient product; all
// chunks of (nearly) one size, for a small last one would read the whole weight for few rows.
int64_t tokens_per_chunk(int64_t tokens, const at::Tensor& weight) {
  constexpr int64_t kLogits = int64_t{32} << 20;
  const auto most = std::clamp<int64_t>(kLogits / weight.size(0), 256, 4096);
  const int64_t chunks = (tokens + most - 1) / most;
  return (tokens + chunks - 1) / chunks;
}

// Every rank's statistics of these tokens, merged: [tokens, 2], (lse, target's logit).
at::Tensor gather_statistics(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t vocab_begin, const Group& tp, Body body) {
  const at::Tensor mine = cross_entropy_statistics(logits, targets, vocab_begin, body);
  const at::Tensor all = at::empty({tp.size(), mine.size(0), mine.size(1)}, mine.options());
  all[tp.rank].copy_(mine);
  all_gather(all.view({-1}), tp).wait();
  return merge_statistics(all);
}

at::Tensor sum_of_losses(const at::Tensor& statistics) {
  return (statistics.select(1, 0) - statistics.select(1, 1)).sum();
}

}  // namespace

VocabMatrix VocabMatrix::declare(Parameters& parameters, const std::string& name, Role role,
                                 int64_t vocab, int64_t hidden, const TensorParallel& tp) {
  const Shard shard = shard_of(0, vocab, *tp.group);
  Weight* weight = parameters.declare({{.name = name,
                                        .full_shape = {vocab, hidden},
                                        .shard = shard,
                                        .role = role,
                                        .fan_in = hidden}});
  return {weight, shard.begin, tp};
}

void tie(Parameters& parameters, Weight* embedding, Weight* head, const Group& stages) {
  if (embedding != nullptr && embedding == head) {
    embedding->uses = 2;
    return;
  }
  for (Weight* copy : {embedding, head}) {
    if (copy == nullptr) continue;
    copy->tied = &stages;
    if (copy->is_borrowed()) parameters.list()[copy->first].counts_in_norm = false;
  }
}

at::Tensor VocabParallelEmbedding::forward(const at::Tensor& ids) const {
  const record::About about(weight->index);
  const at::Tensor local = ids - vocab_begin;
  const at::Tensor elsewhere = (local < 0).logical_or(local >= weight->value.size(0));
  at::Tensor y = at::embedding(weight->value, local.masked_fill(elsewhere, 0));
  y.masked_fill_(elsewhere.unsqueeze(1), 0);
  return tp.reduce(y).wait();
}

void VocabParallelEmbedding::backward(const at::Tensor& dy, const at::Tensor& ids,
                                      Gradients& gradients) const {
  const record::About about(weight->index);
  const at::Tensor local = ids - vocab_begin;
  const at::Tensor elsewhere = (local < 0).logical_or(local >= weight->value.size(0));
  const at::Tensor rows = tp.gather(dy)
                              .wait()
                              .to(weight->gradient.scalar_type())
                              .masked_fill(elsewhere.unsqueeze(1), 0);
  gradients.sum(*weight).index_add_(0, local.masked_fill(elsewhere, 0), rows);
  gradients.contributed(*weight);
}

at::Tensor VocabParallelHead::logits(const at::Tensor& x) const {
  return linear_forward(tp.gather(x).wait(), weight->value);
}

at::Tensor VocabParallelHead::loss(const at::Tensor& my_x, const at::Tensor& targets) const {
  const record::About about(weight->index);
  const at::Tensor x = tp.gather(my_x).wait();
  const int64_t chunk = tokens_per_chunk(x.size(0), weight->value);
  at::Tensor loss;
  for (int64_t begin = 0; begin < x.size(0); begin += chunk) {
    const int64_t length = std::min(chunk, x.size(0) - begin);
    const at::Tensor statistics =
        gather_statistics(linear_forward(x.narrow(0, begin, length), weight->value),
                          targets.narrow(0, begin, length), vocab_begin, *tp.group, body);
    const at::Tensor part = sum_of_losses(statistics);
    loss = loss.defined() ? loss + part : part;
  }
  return loss;
}

VocabParallelHead::LossAndGradient VocabParallelHead::loss_and_gradient(
    const at::Tensor& my_x, const at::Tensor& targets, double scale, Gradients& gradients) const {
  const record::About about(weight->index);
  const at::Tensor x = tp.gather(my_x).wait();
  const int64_t chunk = tokens_per_chunk(x.size(0), weight->value);
  at::Tensor loss;
  const at::Tensor dx = at::empty_like(x);
  for (int64_t begin = 0; begin < x.size(0); begin += chunk) {
    const int64_t length = std::min(chunk, x.size(0) - begin);
    const at::Tensor x_chunk = x.narrow(0, begin, length);
    const at::Tensor targets_chunk = targets.narrow(0, begin, length);
    const at::Tensor logits_chunk = linear_forward(x_chunk, weight->value);
    const at::Tensor statistics =
        gather_statistics(logits_chunk, targets_chunk, vocab_begin, *tp.group, body);
    const at::Tensor part = sum_of_losses(statistics);
    loss = loss.defined() ? loss + part : part;
    cross_entropy_gradient_(logits_chunk, targets_chunk, vocab_begin, statistics.select(1, 0),
                            scale, body);
    dx.narrow(0, begin, length).copy_(linear_input_gradient(logits_chunk, weight->value));
    gradients.add_product(*weight, logits_chunk, x_chunk);
  }
  Pending all_dx = tp.reduce(dx);
  gradients.contributed(*weight);
  return {loss, all_dx.wait()};
}

}  // namespace picotron
