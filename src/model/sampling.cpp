// Draws one token at a time; the model has read what comes before it.
#include "model/sampling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "model/initial_values.h"
#include "model/key_value_cache.h"

namespace picotron {
namespace {

// One draw from the distribution that `logits` [vocab] describe; `uniform` in [0, 1).
int64_t draw(const at::Tensor& logits, const SamplingOptions& options, double uniform) {
  if (options.temperature == 0) return logits.argmax().item<int64_t>();
  const int64_t vocab = logits.size(0);
  const int64_t kept = options.top_k > 0 ? std::min(options.top_k, vocab) : vocab;
  auto [values, ids] = logits.topk(kept);
  const at::Tensor cumulative = (values / options.temperature).softmax(0).cumsum(0);
  const double* begin = cumulative.const_data_ptr<double>();
  // The fewest whose probabilities reach top_p: at least the likeliest.
  const double* last = std::lower_bound(begin, begin + kept - 1, options.top_p);
  return ids[std::upper_bound(begin, last, uniform * *last) - begin].item<int64_t>();
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
  KeyValueCache cache(model.config().num_hidden_layers, std::min(end, model.max_positions()));
  int64_t begin = std::max<int64_t>(0, start - cache.capacity());  // of what the model has read
  std::vector<std::vector<int64_t>> result(static_cast<size_t>(samples));
  std::vector<bool> finished(result.size(), false);
  for (int64_t length = start;
       length < end && !std::all_of(finished.begin(), finished.end(), std::identity()); ++length) {
    if (length - begin > cache.capacity()) {
      begin = length - (cache.capacity() + 1) / 2;
      cache.clear();
    }
    const int64_t read = cache.size(), unread = length - begin - read;
    const at::Tensor context = ids.narrow(1, begin + read, unread).reshape({-1});
    const at::Tensor positions = at::arange(read, read + unread, at::kLong).repeat({samples});
    const TokenBatch batch{.rows = samples,
                           .columns = unread,
                           .ids = context.to(device),
                           .positions = positions.to(device),
                           .cache = &cache};
    const at::Tensor last =
        model.normed_states(batch).view({samples, unread, -1}).select(1, unread - 1).contiguous();
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
      if (finished[s]) continue;
      result[s].push_back(token);
      if (options.on_token) options.on_token(i, token);
    }
    ids = at::cat({ids, next}, 1);
  }
  return result;
}

}  // namespace picotron
