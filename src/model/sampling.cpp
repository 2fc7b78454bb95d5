// Draws one token at a time and runs the whole text so far through the model for each: there is no
// cache of keys and values, for texts here are short.
#include "model/sampling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "model/initial_values.h"

namespace picotron {
namespace {

// One draw from the distribution that `logits` [vocab] describe; `uniform` in [0, 1).
int64_t draw(const at::Tensor& logits, const SamplingOptions& options, double uniform) {
  if (options.temperature == 0) return logits.argmax().item<int64_t>();
  const int64_t vocab = logits.size(0);
  const int64_t kept = options.top_k > 0 ? std::min(options.top_k, vocab) : vocab;
  auto [values, ids] = logits.topk(kept);
  const at::Tensor cumulative = (values / options.temperature).softmax(0).cumsum(0);
  const double* c = cumulative.data_ptr<double>();
  const int64_t chosen =
      std::min(std::upper_bound(c, c + kept, uniform) - c, static_cast<std::ptrdiff_t>(kept - 1));
  return ids[chosen].item<int64_t>();
}

}  // namespace

std::vector<std::vector<int64_t>> generate(Llama& model, const std::vector<int64_t>& prompt,
                                           int64_t samples, const SamplingOptions& options) {
  check(!prompt.empty() && samples > 0, "generation continues a prompt of at least one token");
  const int64_t vocab = options.vocab_size > 0 ? options.vocab_size : model.config().vocab_size;
  const auto start = static_cast<int64_t>(prompt.size());
  const int64_t end = start + options.max_new_tokens;
  const at::Device device = model.parameters().flat().device();

  at::Tensor ids = at::tensor(prompt, at::kLong).repeat({samples, 1});  // [samples, length so far]
  std::vector<std::vector<int64_t>> result(static_cast<size_t>(samples));
  std::vector<bool> finished(result.size(), false);
  for (int64_t length = start;
       length < end && !std::all_of(finished.begin(), finished.end(), std::identity()); ++length) {
    const int64_t seen = std::min(length, model.max_positions());
    const at::Tensor context = ids.narrow(1, length - seen, seen).reshape({-1});
    const at::Tensor positions = at::arange(seen, at::kLong).repeat({samples});
    const TokenBatch batch{samples, seen, context.to(device), {}, positions.to(device)};
    const at::Tensor last =
        model.normed_states(batch).view({samples, seen, -1}).select(1, seen - 1).contiguous();
    const at::Tensor logits =
        model.head().logits(last).narrow(1, 0, vocab).to(at::kCPU, at::kDouble);
    at::Tensor next = at::empty({samples, 1}, at::kLong);
    for (int64_t i = 0; i < samples; ++i) {
      const auto counter = static_cast<uint64_t>(length) << 20 | static_cast<uint64_t>(i);
      const double uniform = static_cast<double>(philox(options.seed, counter).x[0]) * 0x1p-32;
      const int64_t token = draw(logits[i], options, uniform);
      next[i][0] = token;
      const auto s = static_cast<size_t>(i);
      if (options.end_token == token) finished[s] = true;
      if (!finished[s]) result[s].push_back(token);
    }
    ids = at::cat({ids, next}, 1);
  }
  return result;
}

}  // namespace picotron
