// Generation: what temperature, top_k, top_p, seed and the end token do to a small model with
// random weights, and what its cache of keys and values holds.
#include "model/sampling.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/error.h"
#include "llama_support.h"
#include "model/key_value_cache.h"

namespace picotron {
namespace {

using Tokens = std::vector<int64_t>;

class SamplingTest : public ::testing::Test {
 protected:
  SamplingTest() { fill_random(model.parameters(), 1); }

  // Logits of what follows `tokens`: [vocab].
  at::Tensor logits_after(const Tokens& tokens) {
    const auto n = static_cast<int64_t>(tokens.size());
    const at::Tensor all =
        model.normed_states({1, n, at::tensor(tokens, at::kLong), {}, at::arange(n, at::kLong)});
    return model.head().logits(all)[n - 1];
  }

  const Mesh mesh;
  Llama model{tiny_llama(), mesh, {at::kDouble, /*max_positions=*/20}};
  const Tokens prompt = {3, 1, 4};
};

TEST_F(SamplingTest, TemperatureZeroTakesTheLikeliest) {
  Tokens expected = prompt;
  for (int i = 0; i < 10; ++i) expected.push_back(logits_after(expected).argmax().item<int64_t>());
  expected.erase(expected.begin(), expected.begin() + 3);
  const auto drawn = generate(model, prompt, 2, {.max_new_tokens = 10, .temperature = 0});
  EXPECT_EQ(drawn, (std::vector<Tokens>{expected, expected}));
  EXPECT_EQ(generate(model, prompt, 1, {.max_new_tokens = 10, .temperature = 3, .top_k = 1})[0],
            expected)
      << "the one likeliest is the likeliest";
}

TEST_F(SamplingTest, DrawsFollowTheSoftmaxOfTheLogits) {
  constexpr int64_t kSamples = 4000;
  for (const auto& [temperature, top_k] : {std::pair{1.0, 0}, {2.5, 0}, {2.5, 5}, {1.0, 99}}) {
    const auto drawn = generate(model, prompt, kSamples,
                                {.max_new_tokens = 1, .temperature = temperature, .top_k = top_k});
    std::vector<double> counts(13, 0);
    for (const Tokens& tokens : drawn) counts.at(static_cast<size_t>(tokens.at(0))) += 1;
    at::Tensor logits = logits_after(prompt) / temperature;
    if (top_k == 5) {
      const at::Tensor fifth = std::get<0>(logits.topk(5))[4];
      logits = logits.masked_fill(logits < fifth, -INFINITY);
    }
    const at::Tensor p = logits.softmax(0);
    for (size_t i = 0; i < counts.size(); ++i) {
      const double pi = p[static_cast<int64_t>(i)].item<double>();
      EXPECT_NEAR(counts[i] / kSamples, pi, 5 * std::sqrt(pi * (1 - pi) / kSamples))
          << "token " << i << ", temperature " << temperature << ", top_k " << top_k;
    }
  }
}

TEST_F(SamplingTest, ANucleusIsTheFewestLikeliestThatReachTopP) {
  constexpr int64_t kSamples = 4000;
  const auto [p, ids] = (logits_after(prompt) / 2.5).softmax(0).sort(0, /*descending=*/true);
  for (const double top_p : {0.01, 0.3, 0.75}) {
    int64_t fewest = 1;
    while (p.narrow(0, 0, fewest).sum().item<double>() < top_p) ++fewest;
    ASSERT_LT(fewest, 13) << "something is cut";
    std::vector<double> counts(13, 0);
    for (const Tokens& tokens : generate(model, prompt, kSamples,
                                         {.max_new_tokens = 1, .temperature = 2.5, .top_p = top_p}))
      counts.at(static_cast<size_t>(tokens.at(0))) += 1;
    const double mass = p.narrow(0, 0, fewest).sum().item<double>();
    for (int64_t i = 0; i < 13; ++i) {
      const double pi = i < fewest ? p[i].item<double>() / mass : 0;
      EXPECT_NEAR(counts[static_cast<size_t>(ids[i].item<int64_t>())] / kSamples, pi,
                  5 * std::sqrt(pi * (1 - pi) / kSamples))
          << "top_p " << top_p << ", place " << i;
    }
  }
}

TEST_F(SamplingTest, ACacheGivesTheLogitsOfTheWholeText) {
  const at::Tensor ids = at::tensor({3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8}, at::kLong).view({2, 6});
  const at::Tensor positions = at::arange(6, at::kLong);
  const at::Tensor whole =
      model.head()
          .logits(model.normed_states({2, 6, ids.flatten(), {}, positions.repeat({2})}))
          .view({2, 6, -1});
  KeyValueCache cache(model.config().num_hidden_layers, /*capacity=*/6);
  for (int round = 0; round < 2; ++round) {  // the second time after clear()
    for (int64_t begin = 0; begin < 6; begin = cache.size()) {
      const int64_t count = begin == 0 ? 3 : 1;
      const at::Tensor part = ids.narrow(1, begin, count);
      const at::Tensor logits =
          model.head().logits(model.normed_states({2,
                                                   count,
                                                   part.flatten(),
                                                   {},
                                                   positions.narrow(0, begin, count).repeat({2}),
                                                   {},
                                                   &cache}));
      EXPECT_LT(distance(logits.view({2, count, -1}), whole.narrow(1, begin, count)), 1e-12)
          << "from token " << begin;
    }
    EXPECT_EQ(cache.size(), 6);
    cache.clear();
  }
}

TEST_F(SamplingTest, EachTokenIsToldAsSoonAsItIsDrawn) {
  SamplingOptions options{.max_new_tokens = 12, .temperature = 3, .seed = 5};
  std::vector<Tokens> told(3);
  options.on_token = [&](int64_t sample, int64_t token) {
    told.at(static_cast<size_t>(sample)).push_back(token);
  };
  EXPECT_EQ(generate(model, prompt, 3, options), told);
}

TEST_F(SamplingTest, EveryTokenIsAmongTheLikeliestAtItsPlace) {
  const Tokens drawn =
      generate(model, prompt, 1, {.max_new_tokens = 12, .temperature = 5, .top_k = 3})[0];
  ASSERT_EQ(drawn.size(), 12u);
  Tokens so_far = prompt;
  for (const int64_t token : drawn) {
    const at::Tensor logits = logits_after(so_far);
    EXPECT_GE(logits[token].item<double>(), std::get<0>(logits.topk(3))[2].item<double>());
    so_far.push_back(token);
  }
}

TEST_F(SamplingTest, ASeedAlwaysGivesTheSameAndAnotherDoesNot) {
  const SamplingOptions options{.max_new_tokens = 12, .temperature = 3, .seed = 5};
  const auto first = generate(model, prompt, 3, options);
  EXPECT_EQ(generate(model, prompt, 3, options), first);
  EXPECT_EQ(generate(model, prompt, 1, options)[0], first[0]) << "whatever is drawn beside it";
  SamplingOptions other = options;
  other.seed = 6;
  EXPECT_NE(generate(model, prompt, 3, other), first);
  EXPECT_EQ(std::set<Tokens>(first.begin(), first.end()).size(), 3u) << "samples differ";
}

TEST_F(SamplingTest, TheEndTokenEndsASampleAndIsNotReturned) {
  SamplingOptions options{.max_new_tokens = 12, .temperature = 3, .seed = 5};
  const auto whole = generate(model, prompt, 4, options);
  options.end_token = whole[0][6];
  const auto ended = generate(model, prompt, 4, options);
  for (size_t i = 0; i < whole.size(); ++i) {
    const auto end = std::ranges::find(whole[i], *options.end_token);
    EXPECT_EQ(ended[i], Tokens(whole[i].begin(), end)) << "the others go on";
  }
  EXPECT_LE(ended[0].size(), 6u);
}

TEST_F(SamplingTest, WritesBeyondItsPositionsAndStaysBelowTheVocabularyOfTheData) {
  const auto drawn =
      generate(model, prompt, 2, {.max_new_tokens = 40, .temperature = 9, .vocab_size = 4});
  for (const Tokens& tokens : drawn) {
    EXPECT_EQ(tokens.size(), 40u)
        << "there are 20 positions: it goes on from the last half of them";
    for (const int64_t token : tokens) EXPECT_LT(token, 4);
  }
  EXPECT_TRUE(generate(model, prompt, 1, {.max_new_tokens = 0})[0].empty());
  EXPECT_THROW(generate(model, {}, 1, {}), BrokenInvariant);
}

}  // namespace
}  // namespace picotron
