// UTF-8 that cannot be trusted: bytes that claim to be text, as files and command lines hold them.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace picotron {

// The bytes of the well-formed character at the front of `text`, which is not empty; 0 where there
// is none (Unicode 15, table 3-7).
size_t utf8_length(std::string_view text);

bool is_utf8(std::string_view text);

// `text` with every piece that is not well-formed UTF-8 replaced by U+FFFD, one for each maximal
// ill-formed piece (Unicode 15, section 3.9).
std::string replace_invalid_utf8(std::string_view text);

// At most `most` bytes from the front of `text`, or from its end, that halve no character.
inline std::string_view utf8_prefix(std::string_view text, size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (text[most] & 0xC0) == 0x80) --most;
  return text.substr(0, most);
}
inline std::string_view utf8_suffix(std::string_view text, size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (text[text.size() - most] & 0xC0) == 0x80) --most;
  return text.substr(text.size() - most);
}

}  // namespace picotron
