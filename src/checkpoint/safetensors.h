// The safetensors format: named tensors in one file that can be memory-mapped and cannot run code.
//
//     8 bytes    n, little-endian
//     n bytes    JSON, padded by spaces so that the data begins at a multiple of 8:
//                  {"name": {"dtype": "BF16", "shape": [576, 1536], "data_offsets": [0, 1769472]},
//                   …, "__metadata__": {"format": "pt"}}
//     the rest   the data, row-major, little-endian; offsets are relative to its beginning
//
// The data must be covered exactly once: no hole, no overlap, nothing after the last tensor. So a
// truncated or lying file is found from its header alone, before a single weight is read.
// Specification: https://github.com/huggingface/safetensors. No LibTorch here.
// Read next: huggingface.h, which turns a folder of such files into Parameters.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace picotron {

// clang-format off
enum class StoredType {
  C64, F64, I64, U64,
  F32, I32, U32,
  F16, BF16, I16, U16,
  F8_E4M3, F8_E5M2, F8_E8M0, I8, U8, BOOL,
  F6_E2M3, F6_E3M2, F4
};
// clang-format on

[[nodiscard]] std::string_view stored_type_name(StoredType type);  // as the header spells it
[[nodiscard]] int64_t stored_type_bits(StoredType type);           // of one element

struct StoredTensor {
  StoredType type;
  std::vector<int64_t> shape;        // empty: a scalar
  std::span<const std::byte> bytes;  // in the mapping; its address may be unaligned
};

// Gives mapped pages of a file back: they are the file's, and can be read again.
void release_pages(std::span<const std::byte> bytes);

// One file, mapped for as long as this object lives. Throws UserError naming the file when it is
// missing, unreadable or not as the format demands.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& file);
  [[nodiscard]] const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::shared_ptr<const std::byte> mapping_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A folder with model.safetensors, or with model.safetensors.index.json and the files it names.
// Throws UserError naming the file, also for an index that names what is not there or not inside.
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(const std::filesystem::path& folder);
  [[nodiscard]] const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  // The file that holds a tensor, for messages.
  [[nodiscard]] const std::filesystem::path& file_of(const std::string& tensor) const {
    return file_of_.at(tensor);
  }
  [[nodiscard]] static bool has_weights(const std::filesystem::path& folder);

 private:
  std::vector<SafetensorsFile> files_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::filesystem::path> file_of_;
};

struct TensorHeader {
  std::string name;
  StoredType type;
  std::vector<int64_t> shape;
  [[nodiscard]] int64_t bytes() const;  // throws BrokenInvariant when it overflows
};

// Gives the bytes of one tensor; they are used before the next call, so one buffer is enough.
using TensorSource = std::function<std::span<const std::byte>(const TensorHeader&)>;

// The 8 bytes and the JSON before the data, for tensors whose data follow in the order into which
// they are sorted here: wide types first (so that each is aligned), then by name.
std::string safetensors_header(std::vector<TensorHeader>& tensors,
                               const std::map<std::string, std::string>& metadata);

// Writes `file` whole or not at all: under another name, flushed to the disk, then renamed. Tensors
// are asked for one at a time, in the order of safetensors_header: the same tensors give the same
// bytes. UserError when the folder cannot be written to, RunError naming the
// file when the disk is full or fails.
void write_safetensors(const std::filesystem::path& file, std::vector<TensorHeader> tensors,
                       const std::map<std::string, std::string>& metadata,
                       const TensorSource& source);

}  // namespace picotron
