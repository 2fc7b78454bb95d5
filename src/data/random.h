// Randomness by counter: the n-th draw is a hash of (key, n), so that nothing is stored, any draw
// can be made first, and ranks need no common state (Salmon et al. 2011, "Parallel random numbers:
// as easy as 1, 2, 3"). The hash is SplitMix64 (Steele, Lea and Flood 2014).
#pragma once
#include <cstdint>

namespace picotron {

inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A key from two: not symmetric, and one to one in `b` for each `a`.
inline uint64_t combine_keys(uint64_t a, uint64_t b) {
  return mix64(mix64(a + 0x9e3779b97f4a7c15ULL) + b * 0x9e3779b97f4a7c15ULL);
}

// Draws 0, 1, 2, … of `key`.
class CounterRandom {
 public:
  explicit CounterRandom(uint64_t key) : key_(key) {}
  uint64_t next() { return mix64(key_ + ++counter_ * 0x9e3779b97f4a7c15ULL); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // [0, 1)
  // [0, n), each with probability 1/n to within 2^-32.
  uint32_t below(uint32_t n) {
    return static_cast<uint32_t>(((next() >> 32) * static_cast<uint64_t>(n)) >> 32);
  }

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

}  // namespace picotron
