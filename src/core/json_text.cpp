// A recursive descent parser, one function per kind of value. Read json_text.h first.
#include "core/json_text.h"

#include <fmt/format.h>

#include <cctype>
#include <map>

#include "core/error.h"
#include "core/utf8.h"

namespace picotron::json_text {
namespace {

// A configuration has 3 levels; a hostile file must not exhaust the stack.
constexpr int deepest = 64;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

void append_utf8(std::string& out, unsigned code) {
  const auto continuation = [](unsigned bits) { return static_cast<char>(0x80 | (bits & 0x3f)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    out += continuation(code);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    out += continuation(code >> 6);
    out += continuation(code);
  } else {
    out += static_cast<char>(0xf0 | (code >> 18));
    out += continuation(code >> 12);
    out += continuation(code >> 6);
    out += continuation(code);
  }
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), name_(name) {
    if (text_.starts_with("\xef\xbb\xbf")) text_.remove_prefix(3);  // the mark some editors write
  }

  Value document() {
    Value value = any_value(0, "a value");
    skip_space();
    if (!at_end()) fail("expected the end of the file", place_);
    return value;
  }

 private:
  bool at_end() const { return at_ >= text_.size(); }
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  void advance() {
    if (text_[at_] == '\n') {
      ++place_.line;
      place_.column = 1;
    } else {
      ++place_.column;
    }
    ++at_;
  }

  [[noreturn]] void fail(const std::string& expected, Place place) const {
    throw user_error("{}:{}:{}: {}, found {}", name_, place.line, place.column, expected, found());
  }

  std::string found() const {
    if (at_end()) return "the end of the file";
    const auto is_word = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.' || c == '-';
    };
    size_t length = 0;
    while (length < 24 && is_word(peek(length))) ++length;
    if (length > 0) return fmt::format("'{}'", text_.substr(at_, length));
    if (std::isprint(static_cast<unsigned char>(peek())) != 0) return fmt::format("'{}'", peek());
    return fmt::format("the byte 0x{:02x}", static_cast<unsigned char>(peek()));
  }

  void skip_space() {
    while (!at_end()) {
      const char c = peek();
      if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        advance();
      } else if (c == '/' && peek(1) == '/') {
        while (!at_end() && peek() != '\n') advance();
      } else if (c == '/' && peek(1) == '*') {
        const Place start = place_;
        const size_t end = text_.find("*/", at_ + 2);
        if (end == std::string_view::npos) {
          at_ = text_.size();
          fail("the comment that opens here needs a closing */", start);
        }
        while (at_ < end + 2) advance();
      } else {
        return;
      }
    }
  }

  Value any_value(int depth, const char* what) {
    skip_space();
    if (depth > deepest) fail(fmt::format("expected at most {} nested levels", deepest), place_);
    Value value;
    value.place = place_;
    const char c = peek();
    if (!at_end() && c == '{') {
      object(value, depth);
    } else if (!at_end() && c == '[') {
      array(value, depth);
    } else if (c == '"') {
      value.kind = Value::Kind::string;
      value.text = string("a string");
    } else if (c == '-' || is_digit(c)) {
      number(value);
    } else {
      word(value, what);
    }
    return value;
  }

  void object(Value& value, int depth) {
    value.kind = Value::Kind::object;
    advance();
    skip_space();
    if (peek() == '}') return advance();
    std::map<std::string, int> lines;  // of the keys so far: a look at each before would be n²
    while (true) {
      skip_space();
      Member member;
      member.place = place_;
      member.key = string(value.members.empty() ? "a key in double quotes or '}'"
                                                : "a key in double quotes after ','");
      const auto [line, is_new] = lines.emplace(member.key, member.place.line);
      if (!is_new) {
        throw user_error("{}:{}:{}: {} was given on line {} already; keep one of the two", name_,
                         member.place.line, member.place.column, quote(member.key), line->second);
      }
      skip_space();
      if (peek() != ':') fail(fmt::format("expected ':' after {}", quote(member.key)), place_);
      advance();
      member.value = any_value(depth + 1, "a value after ':'");
      value.members.push_back(std::move(member));
      if (!goes_on('}')) return;
    }
  }

  void array(Value& value, int depth) {
    value.kind = Value::Kind::array;
    advance();
    skip_space();
    if (peek() == ']') return advance();
    do {
      value.elements.push_back(any_value(depth + 1, "a value"));
    } while (goes_on(']'));
  }

  // After a value inside an object or array: a comma, or the end of it.
  bool goes_on(char closing) {
    skip_space();
    const char c = peek();
    if (c != ',' && c != closing) {
      fail(fmt::format("expected ',' or '{}' after a value", closing), place_);
    }
    advance();
    return c == ',';
  }

  void number(Value& value) {
    value.kind = Value::Kind::number;
    const size_t start = at_;
    const auto digits = [&] {
      if (!is_digit(peek())) fail("expected a digit", place_);
      while (is_digit(peek())) advance();
    };
    if (peek() == '-') advance();
    if (peek() == '0' && is_digit(peek(1))) fail("expected a number without leading zeros", place_);
    digits();
    if (peek() == '.') {
      advance();
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      advance();
      if (peek() == '+' || peek() == '-') advance();
      digits();
    }
    value.text = text_.substr(start, at_ - start);
  }

  void word(Value& value, const char* what) {
    for (const std::string_view known : {"true", "false", "null"}) {
      const bool ends = std::isalnum(static_cast<unsigned char>(peek(known.size()))) == 0;
      if (text_.substr(at_).starts_with(known) && ends) {
        value.kind = known == "null" ? Value::Kind::null : Value::Kind::boolean;
        value.text = known;
        for (size_t i = 0; i < known.size(); ++i) advance();
        return;
      }
    }
    fail(fmt::format("expected {}", what), place_);
  }

  std::string string(const char* what) {
    if (peek() != '"') fail(fmt::format("expected {}", what), place_);
    const Place start = place_;
    std::string out;
    advance();
    while (true) {
      if (at_end() || peek() == '\n')
        fail("the string that opens here needs a closing '\"'", start);
      const char c = peek();
      if (c == '"') {
        advance();
        return out;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail("expected no control character", place_);
      if (c == '\\') {
        escape(out);
        continue;
      }
      const size_t length = utf8_length(text_.substr(at_));
      if (length == 0) fail("expected UTF-8", place_);
      out += text_.substr(at_, length);
      for (size_t i = 0; i < length; ++i) advance();
    }
  }

  void escape(std::string& out) {
    static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const Place start = place_;
    advance();
    const size_t which = at_end() ? std::string_view::npos : letters.find(peek());
    if (which != std::string_view::npos) {
      out += meanings[which];
      advance();
    } else if (peek() == 'u') {
      advance();
      unsigned code = four_hex_digits();
      if (code >= 0xd800 && code < 0xdc00 && peek() == '\\' && peek(1) == 'u') {
        advance();
        advance();
        const unsigned low = four_hex_digits();
        if (low < 0xdc00 || low > 0xdfff) fail("expected the second half of a \\u pair", start);
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
      if (code >= 0xd800 && code < 0xe000) fail("expected a pair of \\u escapes", start);
      append_utf8(out, code);
    } else {
      fail("expected one of \" \\ / b f n r t u after '\\'", place_);
    }
  }

  unsigned four_hex_digits() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      if (std::isxdigit(static_cast<unsigned char>(c)) == 0) {
        fail("expected four hexadecimal digits after \\u", place_);
      }
      code = code * 16 + static_cast<unsigned>(is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
      advance();
    }
    return code;
  }

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
  Place place_;
};

}  // namespace

Value parse(std::string_view text, const std::string& name) {
  return Parser(text, name).document();
}

std::string describe(const Value& value) {
  switch (value.kind) {
    case Value::Kind::null:
      return "null";
    case Value::Kind::boolean:
      return value.text;
    case Value::Kind::number:
      return value.text.size() > 40 ? value.text.substr(0, 40) + "…" : value.text;
    case Value::Kind::string:
      return value.text.size() > 40 ? quote(utf8_prefix(value.text, 40)) + "…" : quote(value.text);
    case Value::Kind::array:
      return "an array";
    case Value::Kind::object:
      return "an object";
  }
  return "";
}

std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

}  // namespace picotron::json_text
