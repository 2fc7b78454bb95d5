// A shuffle that is never written down: a random permutation of [0, n) whose i-th value is computed
// alone, in no memory, so that rank and resume need to know nothing but (seed, epoch).
//
//   i = (left, right)    eight times: (left, right) ← (right, left ⊕ hash(key, round, right))
//
// A Feistel network permutes pairs whatever its hash is (Luby and Rackoff 1988). It permutes
// [0, 4^k) for the smallest 4^k ≥ n; a value that falls outside [0, n) is put through again until
// it falls inside ("cycle walking", Black and Rogaway 2002, "Ciphers with Arbitrary Finite
// Domains"), which takes fewer than four rounds on average and keeps the map one to one.
#pragma once
#include <cstdint>

#include "data/random.h"

namespace picotron {

class Permutation {
 public:
  // n at least 1 and at most 2^62.
  Permutation(uint64_t key, int64_t n) : key_(key), n_(static_cast<uint64_t>(n)) {
    while ((uint64_t{1} << (2 * half_bits_)) < n_) ++half_bits_;
  }

  int64_t operator()(int64_t i) const {
    auto value = static_cast<uint64_t>(i);
    do value = feistel(value);
    while (value >= n_);
    return static_cast<int64_t>(value);
  }

 private:
  uint64_t feistel(uint64_t value) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = value >> half_bits_, right = value & mask;
    for (uint64_t round = 0; round < 8; ++round) {
      const uint64_t next = left ^ (combine_keys(key_ + round, right) & mask);
      left = right;
      right = next;
    }
    return left << half_bits_ | right;
  }

  uint64_t key_;
  uint64_t n_;
  int half_bits_ = 1;
};

}  // namespace picotron
