// Pieces of mapped tensors, converted to float64 and subtracted.
#include "checkpoint/difference.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/stored_types.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPiece = int64_t{1} << 22;  // elements

// "model", "optimizer/exp_avg", …: where a checkpoint has tensors.
std::set<std::string> tensor_folders(const fs::path& checkpoint) {
  std::set<std::string> folders;
  const auto add = [&](const fs::path& folder) {
    if (SafetensorsFolder::has_weights(folder))
      folders.insert(folder.lexically_relative(checkpoint).generic_string());
  };
  add(checkpoint / "model");
  std::error_code absent;
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoint / "optimizer", absent))
    add(entry.path());
  return folders;
}

double distance_of(double largest, double scale) {
  return largest == 0                          ? 0
         : std::isfinite(largest) && scale > 0 ? largest / scale
                                               : std::numeric_limits<double>::infinity();
}

void compare_values(const StoredTensor& a, const StoredTensor& b, TensorDifference& result) {
  const at::Tensor left = view_of(a).view({-1}), right = view_of(b).view({-1});
  result.equal_bits = a.type == b.type;
  double scale = 0;
  for (int64_t begin = 0; begin < left.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, left.numel() - begin);
    const at::Tensor x = left.narrow(0, begin, count), y = right.narrow(0, begin, count);
    const bool same =
        a.type == b.type && std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
    result.equal_bits = result.equal_bits && same;
    const at::Tensor reference = y.to(at::kDouble);
    const auto size = reference.abs().max().item<double>();
    scale = std::isnan(size) ? size : std::max(scale, size);
    if (!same) {
      const auto difference = (x.to(at::kDouble) - reference).abs().max().item<double>();
      // NaN is larger than any number, and stays.
      if (!(difference <= result.largest)) result.largest = difference;
    }
    release_pages(a.bytes);
    release_pages(b.bytes);
  }
  result.distance = distance_of(result.largest, scale);
}

std::string kind_of(const StoredTensor& tensor) {
  return fmt::format("{} [{}]", stored_type_name(tensor.type), fmt::join(tensor.shape, ", "));
}

TensorDifference compare(const std::string& name, const StoredTensor* a, const StoredTensor* b) {
  TensorDifference result{.tensor = name, .what = ""};
  if (a == nullptr || b == nullptr) {
    result.what = a == nullptr ? "only in B" : "only in A";
  } else if (a->shape != b->shape || !scalar_type(a->type) || !scalar_type(b->type)) {
    result.what = kind_of(*a) + " and " + kind_of(*b);
  } else {
    compare_values(*a, *b, result);
  }
  if (!result.what.empty()) result.distance = std::numeric_limits<double>::infinity();
  return result;
}

}  // namespace

std::vector<TensorDifference> compare_tensors(const fs::path& a, const fs::path& b) {
  const std::set<std::string> in_a = tensor_folders(a), in_b = tensor_folders(b);
  std::set<std::string> folders = in_a;
  folders.insert(in_b.begin(), in_b.end());
  std::vector<TensorDifference> differences;
  for (const std::string& folder : folders) {
    std::optional<SafetensorsFolder> left, right;
    std::set<std::string> names;
    if (in_a.contains(folder)) left.emplace(a / folder);
    if (in_b.contains(folder)) right.emplace(b / folder);
    for (const auto* side : {&left, &right})
      if (*side)
        for (const auto& [name, tensor] : (*side)->tensors()) names.insert(name);
    const auto find = [](const std::optional<SafetensorsFolder>& side, const std::string& name) {
      const bool has = side && side->tensors().contains(name);
      return has ? &side->tensors().at(name) : nullptr;
    };
    for (const std::string& name : names)
      differences.push_back(compare(folder + "/" + name, find(left, name), find(right, name)));
  }
  const auto badness = [](const TensorDifference& d) {
    return std::tuple(-d.distance, d.equal_bits, d.what.empty());
  };
  std::stable_sort(differences.begin(), differences.end(),
                   [&](const auto& x, const auto& y) { return badness(x) < badness(y); });
  return differences;
}

std::vector<std::string> compare_states(const fs::path& a, const fs::path& b) {
  // {"/train/step": 3, …}
  const auto values = [](const fs::path& checkpoint) {
    auto state = nlohmann::ordered_json::parse(to_json(read_state(checkpoint)));
    state.erase("files");
    state.erase("checksum");
    std::map<std::string, std::string> flat;
    const nlohmann::ordered_json flattened = state.flatten();
    for (const auto& [pointer, value] : flattened.items()) {
      std::string key = pointer.substr(1);
      std::replace(key.begin(), key.end(), '/', '.');
      flat[key] = value.dump();
    }
    return flat;
  };
  const std::map<std::string, std::string> left = values(a), right = values(b);
  std::map<std::string, std::string> all = left;
  all.insert(right.begin(), right.end());
  const auto text = [](const std::map<std::string, std::string>& side, const std::string& key) {
    const auto found = side.find(key);
    return found == side.end() ? "absent" : found->second;
  };
  std::vector<std::string> lines;
  for (const auto& [key, ignored] : all)
    if (text(left, key) != text(right, key))
      lines.push_back(fmt::format("{}: {} | {}", key, text(left, key), text(right, key)));
  return lines;
}

}  // namespace picotron
