// PCRE2's calls: an expression is compiled once, for all threads.
#include "data/pre_tokenizer.h"

#include "core/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace picotron {
namespace {

// Unicode's White_Space, as the inside of a class.
constexpr char kSpaces[] =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f})"
    R"(\x{3000})";

// Letters and numbers of Unicode 15 and 16, which the PCRE2 of Unicode 14 does not know yet.
constexpr char kNewLetters[] =
    R"(\x{1c89}-\x{1c8a}\x{a7cb}-\x{a7cd}\x{a7da}-\x{a7dc}\x{105c0}-\x{105f3})"
    R"(\x{10d4a}-\x{10d65}\x{10d6f}-\x{10d85}\x{10ec2}-\x{10ec4}\x{1123f}-\x{11240})"
    R"(\x{11380}-\x{11389}\x{1138b}\x{1138e}\x{11390}-\x{113b5}\x{113b7}\x{113d1}\x{113d3})"
    R"(\x{11bc0}-\x{11be0}\x{11f02}\x{11f04}-\x{11f10}\x{11f12}-\x{11f33}\x{1342f})"
    R"(\x{13441}-\x{13446}\x{13460}-\x{143fa}\x{16100}-\x{1611d}\x{16d40}-\x{16d6c}\x{18cff})"
    R"(\x{1b132}\x{1b155}\x{1df25}-\x{1df2a}\x{1e030}-\x{1e06d}\x{1e4d0}-\x{1e4eb})"
    R"(\x{1e5d0}-\x{1e5ed}\x{1e5f0}\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";
constexpr char kNewNumbers[] =
    R"(\x{10d40}-\x{10d49}\x{116d0}-\x{116e3}\x{11bf0}-\x{11bf9}\x{11f50}-\x{11f59})"
    R"(\x{16130}-\x{16139}\x{16d70}-\x{16d79}\x{1ccf0}-\x{1ccf9}\x{1d2c0}-\x{1d2d3})"
    R"(\x{1e4f0}-\x{1e4f9}\x{1e5f1}-\x{1e5fa})";

std::string_view between(std::string_view text, size_t begin, size_t end) {
  return text.substr(begin, end - begin);
}

struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
// A place for the bounds of a match.
using MatchData = std::unique_ptr<pcre2_match_data, FreeMatch>;

}  // namespace

struct PreTokenizer::Compiled {
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::unique_ptr<pcre2_code, Free> code;
  Behavior behavior;
  bool invert;

  // Begin and end of the first match that is not empty, from `from` on; false where there is none.
  bool find(std::string_view text, size_t from, const MatchData& data, size_t& begin,
            size_t& end) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const int count = pcre2_match(code.get(), subject, text.size(), from,
                                  PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (count == PCRE2_ERROR_NOMATCH) return false;
    check(count > 0, "a compiled expression matches or does not");
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    begin = bounds[0], end = bounds[1];
    return true;
  }
};

PreTokenizer::PreTokenizer(const std::vector<Step>& steps, const std::string& name) {
  for (const Step& step : steps) {
    const std::string expression = translated(step.expression);
    int error = 0;
    PCRE2_SIZE place = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                      PCRE2_UTF | PCRE2_UCP, &error, &place, nullptr);
    if (code == nullptr) {
      PCRE2_UCHAR text[256];
      pcre2_get_error_message(error, text, sizeof text);
      throw user_error("{}: the expression {} of its pre_tokenizer is not understood: {}", name,
                       step.expression, reinterpret_cast<const char*>(text));
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it cannot, matching is slower
    steps_.push_back(
        {std::unique_ptr<pcre2_code, Compiled::Free>(code), step.behavior, step.invert});
  }
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;

std::string PreTokenizer::translated(std::string_view expression) {
  std::string out;
  bool in_class = false;
  const auto add = [&](const std::string& members, bool negated = false) {
    out += in_class ? members : (negated ? "[^" : "[") + members + "]";
  };
  for (size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '\\' && i + 1 < expression.size()) {
      const char escaped = expression[++i];
      const std::string_view property = expression.substr(i).substr(0, 4);
      if (property == "p{L}" || property == "p{N}") {
        i += 3;
        add(property == "p{L}" ? std::string(R"(a-zA-Z\p{L})") + kNewLetters
                               : std::string(R"(0-9\p{N})") + kNewNumbers);
      } else if (escaped == 's') {
        add(kSpaces);
      } else if (escaped == 'S' && !in_class) {
        add(kSpaces, /*negated=*/true);
      } else {
        out += c, out += escaped;
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

void PreTokenizer::split(std::string_view text,
                         const std::function<void(std::string_view)>& take) const {
  const MatchData data(pcre2_match_data_create(1, nullptr));
  const std::function<void(std::string_view, size_t)> cut = [&](std::string_view piece, size_t i) {
    if (i == steps_.size()) return take(piece);
    const Compiled& step = steps_[i];
    const auto part = [&](size_t begin, size_t end, bool is_match) {
      if (begin == end || (step.behavior == Behavior::removed && is_match != step.invert)) return;
      cut(between(piece, begin, end), i + 1);
    };
    size_t done = 0, begin = 0, end = 0;
    while (done < piece.size() && step.find(piece, done, data, begin, end)) {
      part(done, begin, false);
      part(begin, end, true);
      done = end;
    }
    part(done, piece.size(), false);
  };
  if (!text.empty()) cut(text, 0);
}

}  // namespace picotron
