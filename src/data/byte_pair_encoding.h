// Byte-pair encoding (Gage 1994; Sennrich et al. 2016, arXiv:1508.07909): from bytes to tokens by
// joining neighbours. A list of merges, best first, says which pairs may be joined:
//
//     0: l o    1: lo w    2: e r        l o w e r  ─▶  lo w e r  ─▶  low e r  ─▶  low er
//
// At every moment the best pair anywhere in the word is joined, the leftmost of equals. A heap
// holds the pairs, so that a word of n bytes takes O(n log n), however long it is; and as few words
// make up most of any text, each thread's words of the moment are kept with their tokens.
// Read next: tokenizer_json.h.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace picotron {

class BytePairEncoding {
 public:
  struct Merge {
    int32_t left, right, joined;  // tokens; in order, best first
  };
  struct Options {
    std::array<int32_t, 256> token_of_byte{};
    std::vector<Merge> merges;
    // A word that is a token is that token, whatever the merges say (`ignore_merges`). Else empty.
    std::unordered_map<std::string, int32_t> whole_words;
  };
  explicit BytePairEncoding(Options options);
  ~BytePairEncoding();

  // One thread's memory while it encodes: its words of the moment. Handed back when it goes.
  class Worker {
   public:
    explicit Worker(const BytePairEncoding& encoding);
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    // Appends the tokens of a word of any bytes.
    void encode(std::string_view word, std::vector<int32_t>& out);

   private:
    friend class BytePairEncoding;
    struct Memory;
    const BytePairEncoding& encoding_;
    std::unique_ptr<Memory> memory_;
  };

 private:
  // (left, right) → rank and joined token: a table of two powers, searched on from its hash.
  struct Pair {
    uint64_t key;
    int32_t rank, joined;
  };
  const Pair* find(int32_t left, int32_t right) const;
  void merge(std::string_view word, std::vector<int32_t>& out) const;

  Options options_;
  std::vector<Pair> pairs_;
  mutable std::mutex mutex_;  // of idle_
  mutable std::vector<std::unique_ptr<Worker::Memory>> idle_;
};

}  // namespace picotron
