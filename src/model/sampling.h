// Text generation: feed the model its own words. The next token is drawn from
// softmax(logits / temperature), cut to the top_k likeliest and to the fewest of them whose
// probabilities reach top_p (nucleus sampling: Holtzman et al. 2019, arXiv:1904.09751); temperature
// 0 takes the likeliest. Draws come from (seed, sequence, position) alone.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "model/llama.h"

namespace picotron {

struct SamplingOptions {
  int64_t max_new_tokens = 100;
  double temperature = 1.0;
  int64_t top_k = 0;   // 0: all
  double top_p = 1.0;  // 1: all
  uint64_t seed = 42;
  int64_t vocab_size = 0;            // draw among ids below this; 0: the model's vocabulary
  std::optional<int64_t> end_token;  // a sequence that has drawn it is finished
  std::function<void(int64_t sample, int64_t token)> on_token = {};  // as soon as it is drawn
};

// Continues `prompt` (at least one token) `samples` times, side by side. Returns the new tokens of
// each, without the end token. The model sees at most Llama::max_positions() tokens: once it has
// read as many, it begins anew with the last half of them.
std::vector<std::vector<int64_t>> generate(Llama& model, const std::vector<int64_t>& prompt,
                                           int64_t samples, const SamplingOptions& options);

}  // namespace picotron
