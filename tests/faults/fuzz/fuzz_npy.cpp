// .npy files of tokens. What is taken is looked at as the loader would: every row of the data set,
// which here is the file twice, so that a row runs from one file on into the next.
#include <cstring>
#include <vector>

#include "data/token_files.h"
#include "support.h"

namespace picotron::fuzz {
namespace {

constexpr size_t kPrefix = 10;  // of version 1.0: the header's length is its last two bytes

void read_rows(const std::filesystem::path& file, int64_t tokens, int64_t seq_length) {
  const auto dataset = open_token_files("tokens", seq_length, {file, file}, {});
  require(dataset->num_rows() == (2 * tokens - 1) / seq_length, "every row is there");
  std::vector<int32_t> row(static_cast<size_t>(seq_length) + 1);
  for (int64_t i = 0; i < dataset->num_rows(); ++i) {
    dataset->read_row(i, row);
    for (const int32_t token : row) require(token >= 0, "a token is not negative");
    require(!dataset->locate(i, seq_length).empty(), "a token's place has a name");
  }
}

void look_at(std::string_view bytes) {
  static const ScratchFile file("tokens.npy");
  file.write(bytes);
  NpyLayout layout;
  const std::span<const std::byte> all = std::as_bytes(std::span(bytes));
  if (!takes([&] { layout = parse_npy("tokens.npy", all); })) {
    require(!takes([&] { TokenFile{file.path()}; }), "a file is refused as its bytes are");
    return;
  }
  require(layout.width == 2 || layout.width == 4, "a token has 2 or 4 bytes");
  require(layout.size >= 0 &&
              layout.offset + static_cast<size_t>(layout.size * layout.width) == bytes.size(),
          "the tokens fill the file from their offset to its end");
  require(TokenFile(file.path()).size() == layout.size, "a file has the tokens of its bytes");
  for (const int64_t seq_length : {1, 3})
    takes([&] { read_rows(file.path(), layout.size, seq_length); });
}

}  // namespace
}  // namespace picotron::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  picotron::fuzz::look_at(picotron::fuzz::text_of(data, size));
  return 0;
}

// Three changes of four are of the header and leave its length true: else nearly all end there.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  using picotron::fuzz::kPrefix;
  uint16_t length = 0;
  if (size >= kPrefix) std::memcpy(&length, data + kPrefix - sizeof length, sizeof length);
  if (seed % 4 == 0 || size < kPrefix || length > size - kPrefix)
    return LLVMFuzzerMutate(data, size, max_size);
  length = static_cast<uint16_t>(
      picotron::fuzz::mutate_header(data, size, max_size, kPrefix, kPrefix + length, seed / 4) -
      kPrefix);
  std::memcpy(data + kPrefix - sizeof length, &length, sizeof length);
  return size;
}
