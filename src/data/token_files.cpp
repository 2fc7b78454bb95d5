// Three parts: a reader of .npy headers that believes nothing, files mapped into memory, and the
// data set that is several of them end to end.
#include "data/token_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>

#include "core/error.h"
#include "core/utf8.h"

namespace picotron {
namespace {

constexpr std::string_view remedy = "save it with numpy.save(path, tokens.astype('<u2').ravel())";

// Reads the one Python literal an .npy header holds. What it does not understand is an error at
// once: a header has three keys and two shapes of value.
class NpyHeader {
 public:
  NpyHeader(const std::string& name, std::string_view text) : name_(name), text_(text) { parse(); }

  std::optional<std::string> descr;  // "" for a structured type
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;

 private:
  [[noreturn]] void reject(std::string_view why) const {
    throw user_error("{}: its .npy header {}; {}", name_, why, remedy);
  }

  bool take(std::string_view expected) {
    while (!text_.empty() && std::isspace(static_cast<unsigned char>(text_.front()))) {
      text_.remove_prefix(1);
    }
    if (!text_.starts_with(expected)) return false;
    text_.remove_prefix(expected.size());
    return true;
  }

  void parse() {
    if (!take("{")) reject("is no Python dict");
    while (!take("}")) {
      const std::string key = take_string("key");
      if (!take(":")) reject("lacks a colon after '" + key + "'");
      if (key == "descr") {
        if (take("[")) reject("says the array is structured, not plain integers");
        descr = take_string("descr");
      } else if (key == "fortran_order") {
        const bool is_true = take("True");
        if (!is_true && !take("False")) reject("has a fortran_order that is not True or False");
        fortran_order = is_true;
      } else if (key == "shape") {
        shape = take_shape();
      } else {
        reject("has an unknown key '" + key + "'");
      }
      if (!take(",") && !text_.starts_with("}")) reject("is cut off or malformed");
    }
    if (take(""); !text_.empty()) reject("goes on after its dict");
    if (!descr || !fortran_order || !shape) reject("lacks 'descr', 'fortran_order' or 'shape'");
  }

  std::string take_string(std::string_view what) {
    const char quote = take("'") ? '\'' : take("\"") ? '"' : '\0';
    const size_t end = quote ? text_.find(quote) : std::string_view::npos;
    if (end == std::string_view::npos || end > 64) reject(fmt::format("has a malformed {}", what));
    const std::string value = replace_invalid_utf8(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return value;
  }

  std::vector<int64_t> take_shape() {
    std::vector<int64_t> dims;
    if (!take("(")) reject("has a malformed shape");
    while (!take(")")) {
      int64_t value = 0;
      size_t digits = 0;
      take("");
      while (digits < text_.size() && std::isdigit(static_cast<unsigned char>(text_[digits]))) {
        if (value > (std::numeric_limits<int64_t>::max() - 9) / 10) reject("has an absurd shape");
        value = value * 10 + (text_[digits++] - '0');
      }
      if (digits == 0 || dims.size() == 32) reject("has a malformed shape");
      text_.remove_prefix(digits);
      dims.push_back(value);
      if (!take(",") && !text_.starts_with(")")) reject("has a malformed shape");
    }
    return dims;
  }

  const std::string& name_;
  std::string_view text_;
};

class TokenFilesDataset : public Dataset {
 public:
  TokenFilesDataset(std::string name, int64_t seq_length, std::vector<TokenFile> files,
                    TokenMeaning meaning)
      : name_(std::move(name)),
        seq_length_(seq_length),
        files_(std::move(files)),
        meaning_(std::move(meaning)) {
    if (const Tokenizer* tokenizer = meaning_.tokenizer.get()) {
      if (!meaning_.vocab_size) meaning_.vocab_size = tokenizer->vocab_size();
      if (!meaning_.end_of_document) meaning_.end_of_document = tokenizer->eos();
    }
    for (const TokenFile& file : files_) {
      begins_.push_back(size_);
      size_ += file.size();
    }
  }

  const std::string& name() const override { return name_; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t num_rows() const override { return (size_ - 1) / seq_length_; }

  void read_row(int64_t row, std::span<int32_t> out) const override {
    check(row >= 0 && row < num_rows(), "the row is one of the data set's");
    check(static_cast<int64_t>(out.size()) == seq_length_ + 1, "a row is seq_length + 1 tokens");
    int64_t token = row * seq_length_;
    for (size_t file = file_of(token); !out.empty(); ++file) {
      const int64_t begin = token - begins_[file];
      const int64_t count =
          std::min<int64_t>(static_cast<int64_t>(out.size()), files_[file].size() - begin);
      files_[file].read(begin, out.first(count));
      out = out.subspan(count);
      token += count;
    }
  }

  std::string locate(int64_t row, int64_t column) const override {
    const int64_t token = row * seq_length_ + column;
    const size_t file = file_of(token);
    return fmt::format("{}, token {}", files_[file].name(), token - begins_[file]);
  }

  std::optional<int64_t> vocab_size() const override { return meaning_.vocab_size; }
  std::shared_ptr<const Tokenizer> tokenizer() const override { return meaning_.tokenizer; }
  std::optional<int32_t> end_of_document() const override { return meaning_.end_of_document; }

 private:
  size_t file_of(int64_t token) const {
    return std::ranges::upper_bound(begins_, token) - begins_.begin() - 1;
  }

  std::string name_;
  int64_t seq_length_;
  std::vector<TokenFile> files_;
  std::vector<int64_t> begins_;  // [file] → its first token's place in the stream
  int64_t size_ = 0;
  TokenMeaning meaning_;
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  const auto reject = [&](int error) {
    throw user_error("{}: cannot be read: {}", path.string(), std::strerror(error));
  };
  // O_NONBLOCK: opening a pipe must not wait for its writer; fstat then tells that it is one.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) reject(errno);
  struct Closer {
    int descriptor;
    ~Closer() { ::close(descriptor); }
  } closer{descriptor};
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) reject(errno);
  if (!S_ISREG(status.st_mode)) throw user_error("{}: is not a regular file", path.string());
  if (status.st_size == 0) throw user_error("{}: is empty", path.string());
  size_ = static_cast<size_t>(status.st_size);
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) reject(errno);
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() {
  ::munmap(const_cast<std::byte*>(data_), size_);
}

NpyLayout parse_npy(const std::string& name, std::span<const std::byte> bytes) {
  constexpr std::string_view magic = "\x93NUMPY";
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!text.starts_with(magic)) throw user_error("{}: is no .npy file; {}", name, remedy);
  const auto byte = [&](size_t i) { return static_cast<size_t>(bytes[i]); };
  const size_t prefix = bytes.size() > 6 && byte(6) == 1 ? 10 : 12;
  if (bytes.size() < prefix) throw user_error("{}: is cut off within its .npy header", name);
  if (byte(6) < 1 || byte(6) > 3) {
    throw user_error("{}: is .npy version {}.{}; versions 1.0 to 3.0 are read; {}", name, byte(6),
                     byte(7), remedy);
  }
  size_t length = byte(8) | byte(9) << 8;
  if (prefix == 12) length |= byte(10) << 16 | byte(11) << 24;
  if (length > bytes.size() - prefix) {
    throw user_error("{}: its .npy header claims {} bytes, but the file ends after {}", name,
                     length, bytes.size() - prefix);
  }
  const NpyHeader header(name, text.substr(prefix, length));

  const std::string& descr = *header.descr;
  if (descr == ">u2" || descr == ">u4") {
    throw user_error("{}: holds big-endian tokens ('{}'); they must be little-endian; {}", name,
                     descr, remedy);
  }
  if (descr != "<u2" && descr != "<u4") {
    throw user_error("{}: holds '{}'; tokens must be uint16 ('<u2') or uint32 ('<u4'); {}", name,
                     descr, remedy);
  }
  if (header.shape->size() != 1) {
    throw user_error("{}: has {} dimensions; tokens must be a 1-D array; {}", name,
                     header.shape->size(), remedy);
  }
  if (*header.fortran_order) {
    throw user_error("{}: is in Fortran order; tokens must be in C order; {}", name, remedy);
  }
  const NpyLayout layout{
      .offset = prefix + length, .width = descr[2] - '0', .size = header.shape->front()};
  const auto held = static_cast<int64_t>(bytes.size() - layout.offset);
  // The quotient, not the product: a lying shape may overflow.
  if (layout.size > held / layout.width) {
    throw user_error("{}: is truncated: its header promises {} tokens, it holds {}", name,
                     layout.size, held / layout.width);
  }
  if (layout.size * layout.width != held) {
    throw user_error("{}: its header promises {} tokens, but {} bytes more follow them; {}", name,
                     layout.size, held - layout.size * layout.width, remedy);
  }
  return layout;
}

TokenFile::TokenFile(const std::filesystem::path& path)
    : name_(path.string()), file_(std::make_unique<MappedFile>(path)) {
  const std::span<const std::byte> bytes = file_->bytes();
  tokens_ = bytes.data();
  size_ = static_cast<int64_t>(bytes.size());
  if (path.extension() == ".npy") {
    const NpyLayout layout = parse_npy(name_, bytes);
    tokens_ += layout.offset;
    size_ = layout.size;
    width_ = layout.width;
  }
}

void TokenFile::read(int64_t begin, std::span<int32_t> out) const {
  const std::byte* from = tokens_ + begin * width_;
  if (width_ == 1) {
    for (int32_t& token : out) token = static_cast<int32_t>(*from++);
  } else if (width_ == 2) {
    for (int32_t& token : out) {
      uint16_t value;
      std::memcpy(&value, from, 2);
      from += 2;
      token = value;
    }
  } else {
    for (size_t i = 0; i < out.size(); ++i) {
      uint32_t value;
      std::memcpy(&value, from + 4 * i, 4);
      if (value > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
        throw user_error("{}, token {}: {} is larger than any vocabulary", name_,
                         begin + static_cast<int64_t>(i), value);
      }
      out[i] = static_cast<int32_t>(value);
    }
  }
}

std::unique_ptr<Dataset> open_token_files(const std::string& name, int64_t seq_length,
                                          const std::vector<std::filesystem::path>& files,
                                          TokenMeaning meaning) {
  std::vector<TokenFile> opened;
  int64_t size = 0;
  for (const std::filesystem::path& file : files) size += opened.emplace_back(file).size();
  if (size <= seq_length) {
    const std::string hint =
        size >= 2 ? fmt::format(", or set training.seq_length to at most {}", size - 1) : "";
    throw user_error("{}: has {} tokens, but one row takes seq_length + 1 = {}; give more text{}",
                     name, size, seq_length + 1, hint);
  }
  return std::make_unique<TokenFilesDataset>(name, seq_length, std::move(opened),
                                             std::move(meaning));
}

}  // namespace picotron
