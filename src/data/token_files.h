// Tokens on disk, read in place: a file is mapped into memory, so that opening takes no time,
// memory holds only the pages that are read, and ranks of one machine share them.
//
//   .npy   NumPy's format, versions 1.0 to 3.0, of a 1-D array of little-endian uint16 or uint32
//          (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html):
//          "\x93NUMPY" major minor length header…        header: a Python dict, padded with blanks
//          {'descr': '<u2', 'fortran_order': False, 'shape': (1000,), }
//   .txt   any bytes; each is a token
//
// The header is believed only as far as the file's size bears it out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace picotron {

// A read-only mapping of a whole regular file. UserError where it cannot be read or is empty.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class TokenFile {
 public:
  // The kind is the path's extension, .npy or .txt. UserError where the file is not what it says.
  explicit TokenFile(const std::filesystem::path& path);

  const std::string& name() const { return name_; }
  int64_t size() const { return size_; }

  // Writes tokens [begin, begin + out.size()). UserError for a token above int32's largest value.
  void read(int64_t begin, std::span<int32_t> out) const;

 private:
  std::string name_;
  std::unique_ptr<MappedFile> file_;
  const std::byte* tokens_ = nullptr;  // aligned for no type: a header may have any length
  int64_t size_ = 0;
  int width_ = 1;  // bytes of a token
};

// Where the tokens of an .npy lie in its bytes.
struct NpyLayout {
  size_t offset = 0;
  int width = 0;  // 2 or 4
  int64_t size = 0;
};

// UserError that begins with `name` where the bytes are no 1-D array of uint16 or uint32.
NpyLayout parse_npy(const std::string& name, std::span<const std::byte> bytes);

// What is known of tokens besides their numbers.
struct TokenMeaning {
  std::shared_ptr<const Tokenizer> tokenizer = nullptr;  // null: not known
  std::optional<int64_t> vocab_size = {};                // else the tokenizer's
  std::optional<int32_t> end_of_document = {};           // else the tokenizer's
};

// One data set of the tokens of `files`, in that order, as one stream: rows run on from a file to
// the next. UserError where they are too few for one row.
std::unique_ptr<Dataset> open_token_files(const std::string& name, int64_t seq_length,
                                          const std::vector<std::filesystem::path>& files,
                                          TokenMeaning meaning);

}  // namespace picotron
