// Byte-pair encoding against its plain definition, expressions, and one tokenizer in many threads.
// Whether ids are those of the libraries is for tests/interop/test_tokenizers.py to say.
#include "data/tokenizer_json.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.h"
#include "data/random.h"

namespace picotron {
namespace {

using nlohmann::json;
using Tokens = std::vector<int32_t>;

// Merges of tokens made up one after the other: bytes are tokens 0 to 255, merge i makes 256 + i.
std::vector<BytePairEncoding::Merge> random_merges(uint64_t seed, int count, uint32_t bytes) {
  CounterRandom random(seed);
  std::vector<BytePairEncoding::Merge> merges;
  std::map<std::pair<int32_t, int32_t>, bool> taken;
  const auto any = [&] {
    const uint32_t n = random.below(bytes + static_cast<uint32_t>(merges.size()));
    return static_cast<int32_t>(n < bytes ? 'a' + n : 256 + n - bytes);
  };
  while (merges.size() < static_cast<size_t>(count)) {
    const int32_t left = any(), right = any();
    if (!std::exchange(taken[{left, right}], true))
      merges.push_back({left, right, static_cast<int32_t>(256 + merges.size())});
  }
  return merges;
}

BytePairEncoding::Options options_of(std::vector<BytePairEncoding::Merge> merges) {
  BytePairEncoding::Options options{.merges = std::move(merges)};
  for (int32_t byte = 0; byte < 256; ++byte)
    options.token_of_byte[static_cast<size_t>(byte)] = byte;
  return options;
}

// The definition: the best pair anywhere, the leftmost of equals, until there is none.
Tokens plainly(const std::vector<BytePairEncoding::Merge>& merges, std::string_view word) {
  Tokens tokens(word.begin(), word.end());
  for (;;) {
    size_t best = merges.size(), place = 0;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      for (size_t rank = 0; rank < best; ++rank) {
        if (merges[rank].left == tokens[i] && merges[rank].right == tokens[i + 1])
          best = rank, place = i;
      }
    }
    if (best == merges.size()) return tokens;
    tokens[place] = merges[best].joined;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

TEST(BytePairEncoding, JoinsTheBestPairAnywhereUntilThereIsNone) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const auto merges = random_merges(seed, 30, 3);
    const BytePairEncoding encoding(options_of(merges));
    BytePairEncoding::Worker worker(encoding);
    CounterRandom random(seed + 100);
    size_t joined = 0;
    for (int i = 0; i < 300; ++i) {
      std::string word(1 + random.below(30), ' ');
      for (char& c : word) c = static_cast<char>('a' + random.below(3));
      Tokens seen;
      worker.encode(word, seen);
      EXPECT_EQ(seen, plainly(merges, word)) << word << ", seed " << seed;
      joined += word.size() - seen.size();
    }
    EXPECT_GT(joined, 300U);
  }
}

TEST(BytePairEncoding, AWordOfMegabytesTakesNoQuadraticTime) {
  const BytePairEncoding encoding(options_of({{'a', 'a', 256}, {256, 256, 257}, {257, 257, 258}}));
  BytePairEncoding::Worker worker(encoding);
  Tokens seen;
  worker.encode(std::string(4'000'000, 'a'), seen);
  EXPECT_EQ(seen, Tokens(500'000, 258));
}

TEST(BytePairEncoding, AWordThatIsATokenIsThatToken) {
  BytePairEncoding::Options options = options_of({{'a', 'b', 256}});
  options.whole_words = {{"abc", 300}};
  const BytePairEncoding encoding(std::move(options));
  BytePairEncoding::Worker worker(encoding);
  Tokens seen;
  for (int i = 0; i < 2; ++i) worker.encode("abc", seen);
  worker.encode("abcd", seen);
  EXPECT_EQ(seen, (Tokens{300, 300, 256, 'c', 'd'}));
}

TEST(PreTokenizer, ExpressionsMeanWhatTheyMeanElsewhere) {
  const auto pieces = [](const std::vector<PreTokenizer::Step>& steps, std::string_view text) {
    std::vector<std::string> all;
    PreTokenizer(steps, "t").split(text, [&](std::string_view piece) { all.emplace_back(piece); });
    return all;
  };
  using Pieces = std::vector<std::string>;
  using Behavior = PreTokenizer::Behavior;
  EXPECT_EQ(pieces({{kGpt2Words}}, "I'll pay  $12\n"),
            (Pieces{"I", "'ll", " pay", " ", " $", "12", "\n"}));
  EXPECT_EQ(pieces({{R"(\p{N})"}, {kGpt2Words}}, "a 12"), (Pieces{"a", " ", "1", "2"}));
  EXPECT_EQ(pieces({{"-", Behavior::removed}}, "a--b-"), (Pieces{"a", "b"}));
  EXPECT_EQ(pieces({{"[a-z]+", Behavior::removed, /*invert=*/true}}, "1ab2c"), (Pieces{"ab", "c"}));
  EXPECT_EQ(pieces({{R"(\s)"}}, "a\u180E\u2003"), (Pieces{"a\u180E", "\u2003"}));
  EXPECT_EQ(pieces({{R"(\S+)"}}, "a \u3000b"), (Pieces{"a", " \u3000", "b"}));
  EXPECT_EQ(pieces({{R"([^\s\p{L}]+)"}}, "\U00031350?!"), (Pieces{"\U00031350", "?!"}));
  EXPECT_TRUE(pieces({{"a"}}, "").empty());
  EXPECT_THROW(pieces({{"(a"}}, "a"), UserError);
}

// Bytes alone, three merges and an added token, as a file.
std::string small_file() {
  json vocabulary = json::object();
  for (int byte = 0, next = 0x100; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const int c = printable ? byte : next++;
    std::string spelled;
    if (c < 0x80) {
      spelled = static_cast<char>(c);
    } else {
      spelled = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    }
    vocabulary[spelled] = byte;
  }
  vocabulary["th"] = 256, vocabulary["the"] = 257, vocabulary["Ġthe"] = 258;
  return json{{"added_tokens", {{{"id", 260}, {"content", "<end>"}, {"special", true}}}},
              {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
              {"model",
               {{"type", "BPE"},
                {"vocab", vocabulary},
                {"merges", {"t h", json::array({"th", "e"}), "Ġ the"}}}}}
      .dump();
}

TEST(JsonTokenizer, EncodesAndDecodes) {
  const JsonTokenizer tokenizer(small_file(), "t");
  EXPECT_EQ(tokenizer.vocab_size(), 261);
  EXPECT_EQ(tokenizer.encode("the the<end>th\n"), (Tokens{257, 258, 260, 256, '\n'}));
  EXPECT_EQ(tokenizer.decode(Tokens{257, 258, 260, 259, 'x'}), "the the<end>x");
  EXPECT_EQ(tokenizer.decode(Tokens{0xC3, 'x', 0xC3, 0xA9}), "\uFFFDxé");
  EXPECT_EQ(tokenizer.num_bytes(Tokens{258, 0xC3}), 5);
  EXPECT_EQ(tokenizer.encode("\xFF"), tokenizer.encode("\uFFFD"));
  EXPECT_EQ(tokenizer.token_of("<end>"), 260);
  EXPECT_EQ(tokenizer.token_of("<nothing>"), std::nullopt);
  EXPECT_THROW(tokenizer.decode(Tokens{261}), UserError);
  EXPECT_THROW(JsonTokenizer("{", "t"), UserError);
  EXPECT_THROW(JsonTokenizer("[]", "t"), UserError);
}

TEST(JsonTokenizer, ThreadsShareOne) {
  const JsonTokenizer tokenizer(small_file(), "t");
  std::string text;
  for (int i = 0; i < 2000; ++i) text += " the th" + std::to_string(i * i);
  const Tokens expected = tokenizer.encode(text);
  std::vector<Tokens> seen(4);
  {
    std::vector<std::jthread> threads;
    for (Tokens& mine : seen) {
      threads.emplace_back([&] {
        for (int i = 0; i < 20; ++i) mine = tokenizer.encode(text);
      });
    }
  }
  for (const Tokens& tokens : seen) EXPECT_EQ(tokens, expected);
}

}  // namespace
}  // namespace picotron
