// One table decides: the bytes that may follow the first (Unicode, table 3-7).
#include "core/utf8.h"

namespace picotron {
namespace {

// As utf8_length, and where that is 0, `ill_formed` is the length of the maximal piece that could
// have begun a character.
size_t length_of_first(std::string_view text, size_t& ill_formed) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  ill_formed = 1;
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // The second byte's range is narrower after four leads: no overlong forms, no surrogates, nothing
  // above U+10FFFF.
  unsigned char low = 0x80, high = 0xBF;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size() || byte(i) < low || byte(i) > high) return 0;
    ill_formed = i + 1;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace

size_t utf8_length(std::string_view text) {
  size_t ill_formed = 0;
  return length_of_first(text, ill_formed);
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    size_t ill_formed = 0;
    if (const size_t length = length_of_first(text, ill_formed); length > 0) {
      out += text.substr(0, length);
      text.remove_prefix(length);
    } else {
      out += "\uFFFD";
      text.remove_prefix(ill_formed);
    }
  }
  return out;
}

}  // namespace picotron
