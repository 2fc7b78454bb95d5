// Bytes and words: encoding, decoding, and what an unknown word is answered with.
#include "data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <numeric>

#include "core/error.h"
#include "core/utf8.h"
#include "data/stories.h"

namespace picotron {
namespace {

constexpr std::string_view open_quote = "“";
constexpr std::string_view close_quote = "”";

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// Levenshtein's distance, capped by nothing: words are short.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

void check_token(int32_t token, int64_t vocab_size) {
  if (token < 0 || token >= vocab_size) {
    throw user_error("token {} cannot be decoded: the tokenizer knows 0 to {}", token,
                     vocab_size - 1);
  }
}

// Words longer than any entry could be are cut in messages.
std::string in_quotes(std::string_view word) {
  return "\"" + replace_invalid_utf8(word.substr(0, 40)) + (word.size() > 40 ? "…\"" : "\"");
}

}  // namespace

std::vector<int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::string ByteTokenizer::decode(std::span<const int32_t> tokens) const {
  std::string bytes;
  bytes.reserve(tokens.size());
  for (const int32_t token : tokens) {
    check_token(token, 256);
    bytes.push_back(static_cast<char>(token));
  }
  return replace_invalid_utf8(bytes);
}

WordTokenizer::WordTokenizer(std::vector<std::string> vocabulary) : words_(std::move(vocabulary)) {
  for (size_t i = 0; i < words_.size(); ++i) {
    const bool is_new = tokens_.emplace(lower(words_[i]), static_cast<int32_t>(i)).second;
    check(is_new, "no two words of a vocabulary differ in case alone");
  }
}

int32_t WordTokenizer::token_of(const std::string& word) const {
  const auto found = tokens_.find(lower(word));
  if (found != tokens_.end()) return found->second;
  const std::string wanted = lower(word.substr(0, 40));
  std::vector<std::pair<size_t, std::string>> near;
  for (size_t i = 1; i < words_.size(); ++i) {
    if (std::isalpha(static_cast<unsigned char>(words_[i][0]))) {
      near.emplace_back(edit_distance(wanted, lower(words_[i])), words_[i]);
    }
  }
  std::ranges::sort(near);
  std::string nearest;
  for (size_t i = 0; i < std::min<size_t>(3, near.size()); ++i) {
    nearest += (i == 0 ? "" : i == 1 ? ", " : " or ") + near[i].second;
  }
  throw user_error("{} is not one of the {} words this tokenizer knows; near ones are {}",
                   in_quotes(word), words_.size(), nearest);
}

std::vector<int32_t> WordTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  bool inside_quotes = false;
  const auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  const auto is_word =
      [](char c) {  // a byte ≥ 0x80 is part of a word, so that errors show it whole
        return std::isalnum(static_cast<unsigned char>(c)) || c == '\'' || (c & 0x80);
      };
  while (!text.empty()) {
    size_t length = 1;
    if (is_space(text[0])) {
      while (length < text.size() && is_space(text[length])) ++length;
      if (std::ranges::count(text.substr(0, length), '\n') >= 2) {
        tokens.push_back(0);
        inside_quotes = false;
      }
    } else if (text.starts_with(words_[0])) {
      length = words_[0].size();
      tokens.push_back(0);
      inside_quotes = false;
    } else if (text[0] == '"' || text.starts_with(open_quote) || text.starts_with(close_quote)) {
      length = text[0] == '"' ? 1 : open_quote.size();
      const bool opens = text[0] == '"' ? !inside_quotes : text.starts_with(open_quote);
      tokens.push_back(token_of(std::string(opens ? open_quote : close_quote)));
      inside_quotes = opens;
    } else {
      if (is_word(text[0])) {
        while (length < text.size() && is_word(text[length]) &&
               !text.substr(length).starts_with(open_quote) &&
               !text.substr(length).starts_with(close_quote)) {
          ++length;
        }
      }
      tokens.push_back(token_of(std::string(text.substr(0, length))));
    }
    text.remove_prefix(length);
  }
  return tokens;
}

std::string WordTokenizer::decode(std::span<const int32_t> tokens) const {
  std::string out;
  bool capital = true;   // the next word begins a sentence
  bool attached = true;  // no space before the next word
  bool ended = false;    // the last mark was a full stop
  for (const int32_t token : tokens) {
    check_token(token, vocab_size());
    std::string word = words_[token];
    if (token == 0) {
      if (!out.empty()) out += "\n\n";
      capital = attached = true;
      continue;
    }
    const bool ends = word == "." || word == "!" || word == "?";
    if (ends || word == "," || word == close_quote) {
      out += word;
      // “Why?” asked Tom: only a full stop inside the quotes ends the sentence around them.
      capital = ends || (word == close_quote && ended);
    } else {
      if (!attached) out += ' ';
      if (capital || word == "i") {
        word[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(word[0])));
      }
      out += word;
      capital = word == open_quote;
    }
    attached = word == open_quote;
    ended = word == ".";
  }
  return out;
}

std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view kind) {
  if (kind == "bytes") return std::make_shared<ByteTokenizer>();
  if (kind == "builtin:stories") return story_tokenizer();
  throw user_error("tokenizer {} is not built yet; use \"bytes\" or \"builtin:stories\"",
                   in_quotes(kind));
}

}  // namespace picotron
