// Cutting text into words, within which byte-pair encoding then joins bytes: a list of steps, each
// a regular expression that cuts every piece of the step before it.
//
//     "I'll pay $12"  ─▶  I | 'll |  pay |  $ | 12      by GPT-2's expression
//                     ─▶  I | 'll |  pay |  $ | 1 | 2   and then by \p{N}
//
// Expressions are those of Oniguruma, with which the `tokenizers` library matches; PCRE2 compiles
// them to machine code. Where the two differ, the expression is translated: \s is Unicode's
// White_Space, to which PCRE2 adds U+180E, and \p{L} and \p{N} are those of Unicode 16.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace picotron {

class PreTokenizer {
 public:
  enum class Behavior {
    isolated,  // a match is a piece, and so is what lies between two
    removed,   // what lies between two matches is a piece, matches are dropped
  };
  struct Step {
    std::string expression;
    Behavior behavior = Behavior::isolated;
    bool invert = false;  // what lies between two matches counts as a match, and they do not
  };
  // UserError, beginning with `name`, for an expression that PCRE2 does not compile.
  PreTokenizer(const std::vector<Step>& steps, const std::string& name);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;

  // Calls `take` with each piece of well-formed UTF-8, in order. Thread-safe.
  void split(std::string_view text, const std::function<void(std::string_view)>& take) const;

  // One expression that matches what the text holds, as PCRE2 takes it.
  static std::string translated(std::string_view expression);

 private:
  struct Compiled;
  std::vector<Compiled> steps_;
};

// The expression of GPT-2 (Radford et al. 2019), which ByteLevel stands for.
inline constexpr char kGpt2Words[] =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace picotron
