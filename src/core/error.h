// Errors. A person reads them, so each is one sentence: the fact and the remedy.
//
//     UserError        exit code 2   the command line, the config, or a file they name is wrong;
//                                    nothing was started
//     RunError         exit code 1   what fails later: a full disk, a lost rank, NaN
//     BrokenInvariant  exit code 1   a bug of ours; says where
//
// They are thrown anywhere and caught once, in main.cpp.
#pragma once
#include <fmt/format.h>

#include <cstdlib>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/utf8.h"

namespace picotron {

struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct RunError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct BrokenInvariant : std::logic_error {
  using std::logic_error::logic_error;
};

// A message quotes files, and those may hold anything: control characters, which could command the
// terminal, are written out, and where it is longer than a screen's few lines its middle is left
// out: the file is named at its beginning, the remedy at its end.
[[nodiscard]] inline std::string on_one_line(std::string_view text) {
  const auto shortened = [](std::string_view whole) {
    constexpr size_t kept = 500;  // bytes, at either end
    if (whole.size() <= 2 * kept + 5) return std::string(whole);
    return fmt::format("{} … {}", utf8_prefix(whole, kept), utf8_suffix(whole, kept));
  };
  const std::string raw = shortened(text);
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(raw[i]); };
  std::string line;
  for (size_t i = 0; i < raw.size(); ++i) {
    const bool is_c1 = byte(i) == 0xC2 && i + 1 < raw.size() && byte(i + 1) < 0xA0;
    if (byte(i) < 0x20 || byte(i) == 0x7F || is_c1) {
      line += fmt::format("\\u{:04x}", is_c1 ? byte(++i) : byte(i));
    } else {
      line += raw[i];
    }
  }
  return shortened(line);
}

//     throw user_error("tp_size {} does not divide {} heads; use {}", 3, 32, "1, 2, 4 or 8");
template <class... Args>
[[nodiscard]] UserError user_error(fmt::format_string<Args...> format, Args&&... args) {
  return UserError(on_one_line(fmt::format(format, std::forward<Args>(args)...)));
}
template <class... Args>
[[nodiscard]] RunError run_error(fmt::format_string<Args...> format, Args&&... args) {
  return RunError(fmt::format(format, std::forward<Args>(args)...));
}

// Several mistakes at once, a line each; beyond three lines the first would scroll out of sight.
[[nodiscard]] inline UserError user_errors(std::vector<std::string> sentences) {
  for (std::string& sentence : sentences) sentence = on_one_line(sentence);
  if (sentences.size() <= 3) return UserError(fmt::format("{}", fmt::join(sentences, "\n")));
  return UserError(fmt::format("{}\n{}\nand {} more mistakes; mend these first", sentences[0],
                               sentences[1], sentences.size() - 2));
}

// What an exception of a library says, as a sentence of ours. LibTorch's errors carry a stack trace
// below their first line, and its allocator speaks of files of its own.
inline std::string plain_sentence(std::string_view text) {
  constexpr std::string_view remedy = "a smaller model, micro_batch_size or seq_length needs less";
  const std::string line(text.substr(0, text.find('\n')));
  constexpr std::string_view asked = "you tried to allocate ";
  if (const size_t at = line.find(asked); at != std::string::npos) {
    const double bytes = std::strtod(line.c_str() + at + asked.size(), nullptr);
    return fmt::format("out of memory: {:.2f} GB more were asked for; {}", bytes / 1e9, remedy);
  }
  if (line.find("bad_alloc") != std::string::npos) return fmt::format("out of memory; {}", remedy);
  return line;
}

// An assertion that stays on in every build and names its place.
inline void check(bool holds, std::string_view what,
                  std::source_location at = std::source_location::current()) {
  if (!holds) {
    throw BrokenInvariant(
        fmt::format("broken invariant at {}:{}: {}", at.file_name(), at.line(), what));
  }
}

}  // namespace picotron
