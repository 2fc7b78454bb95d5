// How far two checkpoints are from each other, tensor by tensor. Both are mapped; a piece of one
// tensor is in memory at a time, so the size of a checkpoint does not matter.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace picotron {

struct TensorDifference {
  std::string tensor;  // "optimizer/exp_avg/model.norm.weight"
  std::string what;    // why they cannot be compared: "only in A", "F32 [2, 3] and F32 [3]"; ""
  bool equal_bits = false;  // the same dtype, shape and bytes
  // max|a - b| / max|b|, 0 where the numbers are equal; infinite where one is not finite and the
  // bytes differ, or where b is all zeros and a is not.
  double distance = 0;
  double largest = 0;  // max|a - b|
};
// Of the model and of everything the optimizer keeps; the worst first.
std::vector<TensorDifference> compare_tensors(const std::filesystem::path& a,
                                              const std::filesystem::path& b);

// What else differs in state.json, a line for each value: "train.step: 3 | 4".
std::vector<std::string> compare_states(const std::filesystem::path& a,
                                        const std::filesystem::path& b);

}  // namespace picotron
