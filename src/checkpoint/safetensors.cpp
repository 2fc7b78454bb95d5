// Reader and writer of safetensors; safetensors.h draws the format.
// Reading trusts nothing: each number of the header is checked against the size of the file before
// it is used, and nothing is allocated but the header itself. Writing is: header, data, fsync,
// rename, fsync of the folder, in that order; a crash at any point leaves the old file or the new.
#include "checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <tuple>

#include "core/error.h"
#include "core/files.h"

namespace picotron {
namespace {

static_assert(std::endian::native == std::endian::little, "the mapped bytes are used as they are");

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the safetensors package
constexpr size_t kMaxRank = 64;                    // LibTorch's own
constexpr int kMaxDepth = 3;                       // file, tensor, its shape

struct TypeInfo {
  StoredType type;
  std::string_view name;
  int64_t bits;
};
constexpr std::array<TypeInfo, 20> kTypes{{
    {StoredType::C64, "C64", 64},        {StoredType::F64, "F64", 64},
    {StoredType::I64, "I64", 64},        {StoredType::U64, "U64", 64},
    {StoredType::F32, "F32", 32},        {StoredType::I32, "I32", 32},
    {StoredType::U32, "U32", 32},        {StoredType::F16, "F16", 16},
    {StoredType::BF16, "BF16", 16},      {StoredType::I16, "I16", 16},
    {StoredType::U16, "U16", 16},        {StoredType::F8_E4M3, "F8_E4M3", 8},
    {StoredType::F8_E5M2, "F8_E5M2", 8}, {StoredType::F8_E8M0, "F8_E8M0", 8},
    {StoredType::I8, "I8", 8},           {StoredType::U8, "U8", 8},
    {StoredType::BOOL, "BOOL", 8},       {StoredType::F6_E2M3, "F6_E2M3", 6},
    {StoredType::F6_E3M2, "F6_E3M2", 6}, {StoredType::F4, "F4", 4},
}};

const TypeInfo& info_of(StoredType type) {
  return kTypes[static_cast<size_t>(type)];
}

template <class... Args>
[[nodiscard]] UserError unsound(const fs::path& file, fmt::format_string<Args...> format,
                                Args&&... args) {
  return user_error("{} is not a sound safetensors file: {}; download or export it again",
                    file.string(), fmt::format(format, std::forward<Args>(args)...));
}

// Absent when the size in bytes does not fit, or does not fill whole bytes.
std::optional<int64_t> byte_size(StoredType type, const std::vector<int64_t>& shape) {
  int64_t bits = info_of(type).bits;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) return std::nullopt;
  }
  return bits % 8 == 0 ? std::optional(bits / 8) : std::nullopt;
}

// A mistake found while the header is being parsed, where nlohmann-json's own checks end.
struct HeaderMistake : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Parses JSON, refusing what nlohmann-json would let pass: keys given twice (it keeps the last
// one), nesting that no honest file has, and a NUL, at which it takes the text to end.
json parse_strictly(std::string_view text, int max_depth) {
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    throw HeaderMistake(fmt::format("its byte {} is 0", nul + 1));
  }
  std::vector<std::set<std::string>> keys;
  const auto inspect = [&](int depth, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= max_depth) {
      throw HeaderMistake("it is nested too deeply");
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw HeaderMistake(fmt::format("\"{}\" is there twice", parsed.get<std::string>()));
    }
    return true;
  };
  return json::parse(text, inspect);
}

std::vector<int64_t> read_numbers(const fs::path& file, const std::string& name,
                                  const std::string& key, const json& entry) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array()) {
    throw unsound(file, "tensor \"{}\" has no list \"{}\"", name, key);
  }
  std::vector<int64_t> numbers;
  for (const json& number : *found) {
    // A negative number, a fraction and one above 2^64 are of other JSON types.
    if (!number.is_number_unsigned() || number.get<uint64_t>() > uint64_t{INT64_MAX}) {
      throw unsound(file, "{} of tensor \"{}\" holds {}", key, name, number.dump());
    }
    numbers.push_back(number.get<int64_t>());
  }
  return numbers;
}

struct Placed {
  int64_t begin, end;
  std::string name;
};

// One tensor's entry, checked by itself; where it lies among the others is checked by the caller.
StoredTensor read_entry(const fs::path& file, const std::string& name, const json& entry,
                        std::span<const std::byte> data, std::vector<Placed>& placed) {
  if (!entry.is_object()) throw unsound(file, "the entry of tensor \"{}\" is not an object", name);
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) {
    throw unsound(file, "tensor \"{}\" has no \"dtype\"", name);
  }
  const auto* known = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeInfo& info) {
    return info.name == dtype->get_ref<const std::string&>();
  });
  if (known == kTypes.end()) {
    throw unsound(file, "tensor \"{}\" has the unknown dtype {}", name, dtype->dump());
  }
  std::vector<int64_t> shape = read_numbers(file, name, "shape", entry);
  if (shape.size() > kMaxRank) {
    throw unsound(file, "tensor \"{}\" has {} dimensions", name, shape.size());
  }
  const std::vector<int64_t> offsets = read_numbers(file, name, "data_offsets", entry);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    throw unsound(file, "data_offsets of tensor \"{}\" are not a begin and an end", name);
  }
  if (static_cast<uint64_t>(offsets[1]) > data.size()) {
    throw unsound(file, "tensor \"{}\" ends at byte {} of {} bytes of data", name, offsets[1],
                  data.size());
  }
  const std::optional<int64_t> size = byte_size(known->type, shape);
  if (!size || *size != offsets[1] - offsets[0]) {
    throw unsound(file, "tensor \"{}\" of dtype {} and shape [{}] does not fill its {} bytes", name,
                  known->name, fmt::join(shape, ", "), offsets[1] - offsets[0]);
  }
  placed.push_back({offsets[0], offsets[1], name});
  return {known->type, std::move(shape),
          data.subspan(static_cast<size_t>(offsets[0]), static_cast<size_t>(*size))};
}

void check_cover(const fs::path& file, std::vector<Placed> placed, size_t data_bytes) {
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  int64_t reached = 0;
  for (const Placed& tensor : placed) {
    if (tensor.begin != reached) {
      throw unsound(file,
                    "tensor \"{}\" begins at byte {}, {} byte {}, where the one before it ends",
                    tensor.name, tensor.begin,
                    tensor.begin < reached ? "inside the data up to" : "after", reached);
    }
    reached = tensor.end;
  }
  if (static_cast<size_t>(reached) != data_bytes) {
    throw unsound(file, "{} bytes follow the last tensor",
                  data_bytes - static_cast<size_t>(reached));
  }
}

struct Mapping {
  std::shared_ptr<const std::byte> bytes;
  size_t size = 0;
};

Mapping map_file(const fs::path& file) {
  const Descriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (fd.get() < 0 || ::fstat(fd.get(), &status) != 0) {
    throw user_error("cannot read {}: {}", file.string(), std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) throw user_error("{} is not a file", file.string());
  const auto size = static_cast<size_t>(status.st_size);
  if (size < 8) throw unsound(file, "it is {} bytes long, shorter than any", size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (address == MAP_FAILED) {
    throw user_error("cannot map {}: {}", file.string(), std::strerror(errno));
  }
  return {std::shared_ptr<const std::byte>(
              static_cast<const std::byte*>(address),
              [size](const std::byte* at) { ::munmap(const_cast<std::byte*>(at), size); }),
          size};
}

}  // namespace

std::string_view stored_type_name(StoredType type) {
  return info_of(type).name;
}
int64_t stored_type_bits(StoredType type) {
  return info_of(type).bits;
}

void release_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

SafetensorsFile::SafetensorsFile(const fs::path& file) {
  const Mapping mapping = map_file(file);
  mapping_ = mapping.bytes;
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapping_.get(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes) {
    throw unsound(file, "it says its header is {} bytes long, above the limit of {}", header_bytes,
                  kMaxHeaderBytes);
  }
  if (header_bytes > mapping.size - 8) {
    throw unsound(file, "it says its header is {} bytes long, and {} bytes follow", header_bytes,
                  mapping.size - 8);
  }
  const std::string_view text(reinterpret_cast<const char*>(mapping_.get()) + 8, header_bytes);
  const std::span<const std::byte> data(mapping_.get() + 8 + header_bytes,
                                        mapping.size - 8 - header_bytes);
  json header;
  try {
    if (!text.starts_with('{')) throw HeaderMistake("it does not begin with {");
    header = parse_strictly(text, kMaxDepth);
  } catch (const json::exception& error) {
    const auto* where = dynamic_cast<const json::parse_error*>(&error);
    throw unsound(file, "its header is not JSON from byte {} on", where ? where->byte : 0);
  } catch (const HeaderMistake& mistake) {
    throw unsound(file, "its header is wrong: {}", mistake.what());
  }
  std::vector<Placed> placed;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) throw unsound(file, "__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) throw unsound(file, "__metadata__ \"{}\" is not a string", key);
        metadata_.emplace(key, value.get<std::string>());
      }
    } else {
      tensors_.emplace(name, read_entry(file, name, entry, data, placed));
    }
  }
  check_cover(file, std::move(placed), data.size());
}

// ----------------------------------------------------------------------------------------------
// folders

namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

// tensor name -> file name, as the index says it.
std::map<std::string, std::string> read_index(const fs::path& file) {
  const Mapping mapping = map_file(file);
  if (mapping.size > kMaxHeaderBytes) {
    throw user_error("{} is {} bytes long, above the limit of {}; download or export it again",
                     file.string(), mapping.size, kMaxHeaderBytes);
  }
  const std::string_view text(reinterpret_cast<const char*>(mapping.bytes.get()), mapping.size);
  json index;
  try {
    index = parse_strictly(text, kMaxDepth);
  } catch (const json::exception& error) {
    const auto* where = dynamic_cast<const json::parse_error*>(&error);
    throw user_error("{} is not JSON from byte {} on; download or export it again", file.string(),
                     where ? where->byte : 0);
  } catch (const HeaderMistake& mistake) {
    throw user_error("{} is wrong: {}; download or export it again", file.string(), mistake.what());
  }
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw user_error("{} has no object \"weight_map\" from tensors to files", file.string());
  }
  std::map<std::string, std::string> files;
  for (const auto& [name, value] : index["weight_map"].items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    // A bare name and nothing else: an index that came with a download must not reach outside.
    if (shard.empty() || shard == "." || shard == ".." || shard.find('\0') != std::string::npos ||
        fs::path(shard).filename() != fs::path(shard)) {
      throw user_error("{} puts tensor \"{}\" in {}, which is not the name of a file beside it",
                       file.string(), name, value.dump());
    }
    files.emplace(name, shard);
  }
  return files;
}

}  // namespace

bool SafetensorsFolder::has_weights(const fs::path& folder) {
  std::error_code unreadable;  // the same as absent
  return fs::is_regular_file(folder / kSingleFile, unreadable) ||
         fs::is_regular_file(folder / kIndexFile, unreadable);
}

SafetensorsFolder::SafetensorsFolder(const fs::path& folder) {
  if (!has_weights(folder)) {
    throw user_error("{} holds neither {} nor {}; give a folder of weights in safetensors",
                     folder.string(), kSingleFile, kIndexFile);
  }
  std::error_code ignored;
  if (fs::is_regular_file(folder / kSingleFile, ignored)) {
    files_.emplace_back(folder / kSingleFile);
    tensors_ = files_.back().tensors();
    for (const auto& [name, tensor] : tensors_) file_of_.emplace(name, folder / kSingleFile);
    return;
  }
  const fs::path index = folder / kIndexFile;
  const std::map<std::string, std::string> shard_of = read_index(index);
  std::map<std::string, const SafetensorsFile*> opened;
  files_.reserve(shard_of.size());  // pointers into it stay good
  for (const auto& [name, shard] : shard_of) {
    if (!opened.contains(shard)) {
      if (!fs::exists(folder / shard, ignored)) {
        throw user_error("{} puts tensor \"{}\" in {}, which is not there; download it too",
                         index.string(), name, (folder / shard).string());
      }
      opened[shard] = &files_.emplace_back(folder / shard);
    }
    const auto found = opened[shard]->tensors().find(name);
    if (found == opened[shard]->tensors().end()) {
      throw user_error("{} puts tensor \"{}\" in {}, which does not hold it; download both again",
                       index.string(), name, (folder / shard).string());
    }
    tensors_.emplace(name, found->second);
    file_of_.emplace(name, folder / shard);
  }
}

// ----------------------------------------------------------------------------------------------
// writing

int64_t TensorHeader::bytes() const {
  const std::optional<int64_t> size = byte_size(type, shape);
  check(size.has_value(), fmt::format("the size of tensor {} overflows", name));
  return *size;
}

std::string safetensors_header(std::vector<TensorHeader>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorHeader& a, const TensorHeader& b) {
    const int64_t a_bits = stored_type_bits(a.type), b_bits = stored_type_bits(b.type);
    return std::tie(b_bits, a.name) < std::tie(a_bits, b.name);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t reached = 0;
  for (const TensorHeader& tensor : tensors) {
    check(tensor.name != "__metadata__" && !header.contains(tensor.name),
          fmt::format("tensor name {} is taken", tensor.name));
    const int64_t end = reached + tensor.bytes();
    header[tensor.name] = {{"dtype", stored_type_name(tensor.type)},
                           {"shape", tensor.shape},
                           {"data_offsets", {reached, end}}};
    reached = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  check(text.size() <= kMaxHeaderBytes, "the header is above the limit of the format");
  const uint64_t header_bytes = text.size();
  return std::string(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes) + text;
}

void write_safetensors(const fs::path& file, std::vector<TensorHeader> tensors,
                       const std::map<std::string, std::string>& metadata,
                       const TensorSource& source) {
  NewFile out(file);
  out.append(safetensors_header(tensors, metadata));
  for (const TensorHeader& tensor : tensors) {
    const std::span<const std::byte> bytes = source(tensor);
    check(static_cast<int64_t>(bytes.size()) == tensor.bytes(),
          fmt::format("tensor {} came with {} bytes", tensor.name, bytes.size()));
    out.append(bytes);
  }
  out.commit();
  sync_folder(file.has_parent_path() ? file.parent_path() : fs::path("."));
}

}  // namespace picotron
