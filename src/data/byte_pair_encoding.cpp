// Joining pairs, and remembering words.
#include "data/byte_pair_encoding.h"

#include <bit>
#include <cstring>
#include <queue>

#include "data/random.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace picotron {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};

uint64_t key_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

// A word and its tokens, where both are short. A slot belongs to all words of one hash: the last of
// them is kept, which needs no bookkeeping and no bound.
struct BytePairEncoding::Worker::Memory {
  static constexpr size_t kSlots = 1 << 15, kBytes = 23, kTokens = 9;
  struct Slot {
    uint8_t bytes = 0, tokens = 0;  // 0 tokens: empty
    std::array<char, kBytes> word{};
    std::array<int32_t, kTokens> token{};
  };
  std::vector<Slot> slots = std::vector<Slot>(kSlots);
};

BytePairEncoding::BytePairEncoding(Options options) : options_(std::move(options)) {
  pairs_.assign(std::bit_ceil(2 * options_.merges.size() + 1), {kNoPair, 0, 0});
  for (size_t rank = 0; rank < options_.merges.size(); ++rank) {
    const Merge& merge = options_.merges[rank];
    const uint64_t key = key_of(merge.left, merge.right);
    size_t i = mix64(key) & (pairs_.size() - 1);
    while (pairs_[i].key != kNoPair && pairs_[i].key != key) i = (i + 1) & (pairs_.size() - 1);
    pairs_[i] = {key, static_cast<int32_t>(rank), merge.joined};  // of a pair given twice, the last
  }
}

BytePairEncoding::~BytePairEncoding() = default;

const BytePairEncoding::Pair* BytePairEncoding::find(int32_t left, int32_t right) const {
  const uint64_t key = key_of(left, right);
  size_t i = mix64(key) & (pairs_.size() - 1);
  while (pairs_[i].key != key) {
    if (pairs_[i].key == kNoPair) return nullptr;
    i = (i + 1) & (pairs_.size() - 1);
  }
  return &pairs_[i];
}

void BytePairEncoding::merge(std::string_view word, std::vector<int32_t>& out) const {
  // Tokens as a list that shrinks: of a pair that is joined, the left one becomes both.
  struct Token {
    int32_t token;  // −1: joined to its left
    int32_t before, after;
  };
  struct Candidate {
    int32_t rank, left, joined, left_token, right_token;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  const auto size = static_cast<int32_t>(word.size());
  std::vector<Token> tokens;
  tokens.reserve(word.size());
  for (int32_t i = 0; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(word[static_cast<size_t>(i)]);
    tokens.push_back({options_.token_of_byte[byte], i - 1, i + 1});
  }
  const auto at = [&](int32_t i) -> Token& { return tokens[static_cast<size_t>(i)]; };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int32_t left) {
    if (left < 0 || at(left).after >= size) return;
    const int32_t a = at(left).token, b = at(at(left).after).token;
    if (const Pair* pair = find(a, b)) candidates.push({pair->rank, left, pair->joined, a, b});
  };
  for (int32_t i = 0; i + 1 < size; ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Token& left = at(best.left);
    if (left.token != best.left_token || left.after >= size) continue;  // joined since
    Token& right = at(left.after);
    if (right.token != best.right_token) continue;
    left.token = best.joined;
    right.token = -1;
    left.after = right.after;
    if (left.after < size) at(left.after).before = best.left;
    consider(left.before);
    consider(best.left);
  }
  for (int32_t i = 0; i < size; i = at(i).after) out.push_back(at(i).token);
}

BytePairEncoding::Worker::Worker(const BytePairEncoding& encoding) : encoding_(encoding) {
  const std::lock_guard lock(encoding.mutex_);
  if (encoding.idle_.empty()) {
    memory_ = std::make_unique<Memory>();
  } else {
    memory_ = std::move(encoding.idle_.back());
    encoding.idle_.pop_back();
  }
}

BytePairEncoding::Worker::~Worker() {
  const std::lock_guard lock(encoding_.mutex_);
  encoding_.idle_.push_back(std::move(memory_));
}

void BytePairEncoding::Worker::encode(std::string_view word, std::vector<int32_t>& out) {
  if (word.size() == 1) {
    out.push_back(encoding_.options_.token_of_byte[static_cast<unsigned char>(word[0])]);
    return;
  }
  Memory::Slot* slot = nullptr;
  if (word.size() <= Memory::kBytes) {
    slot = &memory_->slots[XXH3_64bits(word.data(), word.size()) % Memory::kSlots];
    if (slot->tokens > 0 && slot->bytes == word.size() &&
        std::memcmp(slot->word.data(), word.data(), word.size()) == 0) {
      out.insert(out.end(), slot->token.begin(), slot->token.begin() + slot->tokens);
      return;
    }
  }
  const size_t before = out.size();
  const auto& whole = encoding_.options_.whole_words;
  const auto found = whole.empty() ? whole.end() : whole.find(std::string(word));
  if (found != whole.end()) {
    out.push_back(found->second);
  } else {
    encoding_.merge(word, out);
  }
  const size_t count = out.size() - before;
  if (slot == nullptr || count > Memory::kTokens) return;
  slot->bytes = static_cast<uint8_t>(word.size());
  slot->tokens = static_cast<uint8_t>(count);
  std::memcpy(slot->word.data(), word.data(), word.size());
  std::memcpy(slot->token.data(), &out[before], count * sizeof(int32_t));
}

}  // namespace picotron
