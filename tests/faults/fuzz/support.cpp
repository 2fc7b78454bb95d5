// The scratch file, what makes a message readable, and the mapping whose end the sanitizer knows.
#include "support.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <vector>

#include "core/utf8.h"

// In place of mmap in the readers (CMakeLists.txt).
extern "C" void* exact_mmap(void*, size_t size, int, int, int fd, off_t) {
  void* block = std::malloc(size);
  if (block == nullptr || ::pread(fd, block, size, 0) != static_cast<ssize_t>(size)) std::abort();
  return block;
}
extern "C" int exact_munmap(void* block, size_t) {
  std::free(block);
  return 0;
}

namespace picotron::fuzz {

namespace fs = std::filesystem;

void require(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "what does not hold: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

void require_readable(std::string_view message) {
  constexpr size_t longest = 3 * 1010;
  const auto is_control = [](char c) {
    return c != '\n' && (static_cast<unsigned char>(c) < 0x20 || c == 0x7f);
  };
  const bool readable = !message.empty() && message.size() <= longest &&
                        std::count(message.begin(), message.end(), '\n') <= 2 &&
                        std::none_of(message.begin(), message.end(), is_control) &&
                        replace_invalid_utf8(message) == message;
  if (!readable) {
    const size_t shown = std::min(message.size(), longest);
    std::fprintf(stderr, "%.*s\n", static_cast<int>(shown), message.data());
  }
  require(readable, "a message is at most three lines of printable text");
}

fs::path scratch_folder() {
  static const fs::path folder = [] {
    std::string pattern = (fs::temp_directory_path() / "fuzz.XXXXXX").string();
    require(::mkdtemp(pattern.data()) != nullptr, "TMPDIR can be written to");
    return fs::path(pattern);
  }();
  return folder;
}

ScratchFile::ScratchFile(const std::string& name)
    : path_(scratch_folder() / name),
      fd_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
  require(fd_ >= 0, "the scratch file can be made");
}

void ScratchFile::write(std::string_view bytes) const {
  require(::ftruncate(fd_, 0) == 0 &&
              ::pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
          "the scratch file can be written");
}

uint64_t sum_of(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte byte : bytes) sum += std::to_integer<uint64_t>(byte);
  return sum;
}

namespace {

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  const auto in_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '+' || c == '-' || c == '.';
  };
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
    end = begin + 1;
    if (text[begin] == '"' || text[begin] == '\'') {
      while (end < text.size() && text[end] != text[begin]) end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
    } else if (in_word(text[begin])) {
      while (end < text.size() && in_word(text[end])) ++end;
    } else {
      continue;
    }
    words.push_back(text.substr(begin, end - begin));
  }
  return words;
}

}  // namespace

void begin_at(std::string_view sound, uint8_t* data, size_t& size, size_t max_size, unsigned seed) {
  if (std::minstd_rand(seed)() % 4 != 0 || sound.size() > max_size) return;
  std::copy(sound.begin(), sound.end(), data);
  size = sound.size();
}

size_t mutate_words(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  static constexpr std::string_view other_words[] = {"null",
                                                     "true",
                                                     "-1",
                                                     "-0.5",
                                                     "0",
                                                     "1",
                                                     "1e3",
                                                     "1e400",
                                                     "9007199254740993",
                                                     "9223372036854775807",
                                                     "9223372036854775808",
                                                     "18446744073709551615",
                                                     "\"\"",
                                                     "\"..\"",
                                                     "\"\\u0000\"",
                                                     "\"\\u001b[2J\"",
                                                     "[]",
                                                     "{}",
                                                     "[[[[[[[[[[]]]]]]]]]]"};
  if (max_size == 0) return 0;
  std::minstd_rand random(seed);
  std::string text(text_of(data, size));
  for (unsigned change = 0; change <= random() % 3; ++change) {
    const std::vector<std::string_view> words = words_of(text);
    if (words.empty() || (change == 0 && random() % 2 == 0))
      return LLVMFuzzerMutate(data, size, max_size);
    const std::string_view old = words[random() % words.size()];
    const std::string other(random() % 2 == 0 ? words[random() % words.size()]
                                              : other_words[random() % std::size(other_words)]);
    text.replace(static_cast<size_t>(old.data() - text.data()), old.size(), other);
  }
  text.resize(std::min(text.size(), max_size));
  std::copy(text.begin(), text.end(), data);
  return text.size();
}

size_t mutate_header(uint8_t* data, size_t& size, size_t max_size, size_t begin, size_t end,
                     unsigned seed) {
  const std::vector<uint8_t> after(data + end, data + size);
  const size_t room = max_size - after.size() - begin;
  const size_t new_end = begin + mutate_words(data + begin, end - begin, room, seed);
  std::copy(after.begin(), after.end(), data + new_end);
  size = new_end + after.size();
  return new_end;
}

}  // namespace picotron::fuzz
