// Safetensors files, and the indexes of folders of them: the bytes are read as both. As an index
// they stand beside two sound files, so that an index can be right.
#include <cstring>
#include <fstream>
#include <optional>

#include "checkpoint/safetensors.h"
#include "support.h"

namespace picotron::fuzz {
namespace {

namespace fs = std::filesystem;
using Tensors = std::map<std::string, StoredTensor>;

constexpr size_t kPrefix = sizeof(uint64_t);  // the header's length

// Element for element, with no overflow; what the format promises of each tensor.
size_t look_at(const Tensors& tensors) {
  size_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    unsigned __int128 bits = static_cast<unsigned>(stored_type_bits(tensor.type));
    for (const int64_t size : tensor.shape) {
      require(size >= 0, "a shape is not negative");
      bits *= static_cast<uint64_t>(size);
      require(bits >> 64 == 0, "a tensor's size fits 64 bits");
    }
    require(bits == static_cast<unsigned __int128>(tensor.bytes.size()) * 8,
            "a tensor's bytes are those of its type and shape");
    require(stored_type_name(tensor.type).size() >= 2, "a type has a name");
    bytes += tensor.bytes.size();
    sum_of(tensor.bytes);
  }
  return bytes;
}

void look_at_file(std::string_view bytes) {
  static const ScratchFile file("file.safetensors");
  file.write(bytes);
  std::optional<SafetensorsFile> read;
  if (!takes([&] { read.emplace(file.path()); })) return;
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), kPrefix);
  require(kPrefix + header + look_at(read->tensors()) == bytes.size(),
          "header and tensors are all there is in the file");
  require(!read->tensors().contains("__metadata__"), "the metadata are no tensor");
}

std::string file_of(const std::string& header, const std::string& data) {
  std::string bytes(kPrefix, '\0');
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, kPrefix);
  return bytes + header + data;
}

fs::path folder_with_sound_files() {
  const fs::path folder = scratch_folder();
  const auto write = [&](const char* name, const std::string& bytes) {
    std::ofstream(folder / name, std::ios::binary) << bytes;
  };
  write("a.safetensors",
        file_of(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "01234567"));
  write("b.safetensors",
        file_of(R"({"v":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", "012"));
  return folder;
}

void look_at_index(std::string_view bytes) {
  static const fs::path folder = folder_with_sound_files();
  static const ScratchFile index("model.safetensors.index.json");
  index.write(bytes);
  std::optional<SafetensorsFolder> read;
  if (!takes([&] { read.emplace(folder); })) return;
  look_at(read->tensors());
  for (const auto& [name, tensor] : read->tensors())
    require(read->file_of(name).parent_path() == folder, "a file is inside its folder");
}

}  // namespace
}  // namespace picotron::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes = picotron::fuzz::text_of(data, size);
  picotron::fuzz::look_at_file(bytes);
  picotron::fuzz::look_at_index(bytes);
  return 0;
}

// Changes of an index are of its words; three of four of a file are of its header and leave the
// header's length true: else nearly all end there.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  using picotron::fuzz::kPrefix;
  static const std::string sound = picotron::fuzz::file_of(
      R"({"__metadata__":{"a":"b"},"w":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]},)"
      R"("v":{"dtype":"F64","shape":[],"data_offsets":[4,12]}})",
      "0123456789ab");
  picotron::fuzz::begin_at(sound, data, size, max_size, seed);
  uint64_t length = 0;
  if (size >= kPrefix) std::memcpy(&length, data, kPrefix);
  if (size < kPrefix || length > size - kPrefix)
    return picotron::fuzz::mutate_words(data, size, max_size, seed);
  if (seed % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
  length =
      picotron::fuzz::mutate_header(data, size, max_size, kPrefix, kPrefix + length, seed / 4) -
      kPrefix;
  std::memcpy(data, &length, kPrefix);
  return size;
}
