// What the targets share. A target hands made-up bytes to a reader of the program; there are two
// good ends, and libFuzzer keeps the bytes that led to any other:
//
//     it reads them      then what it hands out is looked at to the last byte (require)
//     it throws          one UserError, fit to be shown to a person
//
//     anything else      another exception, a crash, a read beyond the bytes, undefined behaviour,
//                        a
//                        leak, seconds of work, memory out of proportion to the file: a finding
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"

// libFuzzer's: changes `size` bytes in place, to at most `max_size`, and returns their new number.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace picotron::fuzz {

// Ends the run, naming what does not hold.
void require(bool holds, std::string_view what);

// Of a message: at most three lines of UTF-8 without control characters, each within its limit.
void require_readable(std::string_view message);

// Does the reader take what it is given? If not, its message has to be fit to be read.
template <class Reader>
bool takes(Reader&& reader) {
  try {
    reader();
    return true;
  } catch (const UserError& error) {
    require_readable(error.what());
    return false;
  }
}

// A folder of this process's own, below TMPDIR, and a file in it that is written anew for each
// input.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& name);
  const std::filesystem::path& path() const { return path_; }
  void write(std::string_view bytes) const;

 private:
  std::filesystem::path path_;
  int fd_;
};

std::filesystem::path scratch_folder();

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Reads every byte, so that the sanitizer sees each.
uint64_t sum_of(std::span<const std::byte> bytes);

// How files are made up. libFuzzer's own changes, of bytes, soon make a heap of files that are
// refused at once; so half of the changes are others, which are seen behind the parser:
//
//     a quarter begin anew at a sound file (begin_at)
//     words (strings in quotes, numbers, literals) are put in the place of others (mutate_words)
//     a header's length, where it is written before it, stays true (mutate_header)
//
// All are given what LLVMFuzzerCustomMutator is given; sizes are updated or returned.
void begin_at(std::string_view sound, uint8_t* data, size_t& size, size_t max_size, unsigned seed);
size_t mutate_words(uint8_t* data, size_t size, size_t max_size, unsigned seed);
// Of data[begin, end) alone; what follows moves. Returns the new end.
size_t mutate_header(uint8_t* data, size_t& size, size_t max_size, size_t begin, size_t end,
                     unsigned seed);

}  // namespace picotron::fuzz
