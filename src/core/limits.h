// How large the sizes of a model may be, in a configuration or in a file: far above any model, and
// low enough that no product of them overflows 64 bits.
#pragma once
#include <cstdint>

namespace picotron::limits {

inline constexpr int64_t kVocabulary = int64_t{1} << 31;
inline constexpr int64_t kHidden = int64_t{1} << 20;
inline constexpr int64_t kIntermediate = int64_t{1} << 22;
inline constexpr int64_t kLayers = 10'000;
inline constexpr int64_t kHeads = int64_t{1} << 14;
inline constexpr int64_t kHeadDim = int64_t{1} << 12;
inline constexpr int64_t kPositions = int64_t{1} << 31;
inline constexpr double kRopeTheta = 1e15;
inline constexpr double kInitializerRange = 1;

}  // namespace picotron::limits
