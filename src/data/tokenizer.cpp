// Bytes and words: encoding, decoding, and what an unknown word is answered with. Then which
// tokenizer a name means, and what ends a text.
#include "data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "core/utf8.h"
#include "data/sentencepiece_tokenizer.h"
#include "data/stories.h"
#include "data/tokenizer_json.h"

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

int32_t WordTokenizer::token_of_word(const std::string& word) const {
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
      tokens.push_back(token_of_word(std::string(opens ? open_quote : close_quote)));
      inside_quotes = opens;
    } else {
      if (is_word(text[0])) {
        while (length < text.size() && is_word(text[length]) &&
               !text.substr(length).starts_with(open_quote) &&
               !text.substr(length).starts_with(close_quote)) {
          ++length;
        }
      }
      tokens.push_back(token_of_word(std::string(text.substr(0, length))));
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

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view usual_ends[] = {"<|endoftext|>", "<|end_of_text|>", "</s>"};

std::string contents_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw user_error("{} cannot be read", file.string());
  return text;
}

// A key of a JSON file beside the tokenizer; null where file or key is not there.
json value_beside(const fs::path& file, const char* key) {
  std::error_code absent;
  if (!fs::exists(file, absent)) return nullptr;
  const json root = json::parse(contents_of(file), nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) throw user_error("{} is no JSON object", file.string());
  return root.contains(key) ? root.at(key) : json();
}

std::optional<int32_t> end_said_beside(const fs::path& folder, const Tokenizer& tokenizer) {
  // "</s>", or {"content": "</s>", …}.
  const fs::path file = folder / "tokenizer_config.json";
  json spelled = value_beside(file, "eos_token");
  if (spelled.is_object() && spelled.contains("content")) spelled = spelled.at("content");
  if (spelled.is_string()) {
    const auto token = tokenizer.token_of(spelled.get<std::string>());
    if (!token)
      throw user_error("{}: eos_token {} is no token of the tokenizer", file.string(),
                       spelled.dump());
    return token;
  }
  // A number, or several, of which the first ends a text.
  const fs::path config = folder / "config.json";
  json id = value_beside(config, "eos_token_id");
  if (id.is_array() && !id.empty()) id = json(id.front());
  if (!id.is_number_integer()) return std::nullopt;
  if (id.get<int64_t>() < 0 || id.get<int64_t>() >= tokenizer.vocab_size())
    throw user_error("{}: eos_token_id {} is not below the vocabulary of {}", config.string(),
                     id.dump(), tokenizer.vocab_size());
  return id.get<int32_t>();
}

std::optional<int32_t> only_usual_end(const Tokenizer& tokenizer) {
  std::optional<int32_t> only;
  for (const std::string_view spelled : usual_ends) {
    const auto token = tokenizer.token_of(spelled);
    if (token && only) return std::nullopt;
    if (token) only = token;
  }
  return only;
}

std::shared_ptr<const Tokenizer> open_json(const fs::path& file) {
  auto tokenizer = std::make_shared<JsonTokenizer>(contents_of(file), file.string());
  const auto said = end_said_beside(file.parent_path(), *tokenizer);
  tokenizer->set_eos(said ? said : only_usual_end(*tokenizer));
  return tokenizer;
}

}  // namespace

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_shared<ByteTokenizer>();
  if (name == "builtin:stories") return story_tokenizer();
  fs::path file = name;
  std::error_code absent;
  if (fs::is_directory(file, absent)) {
    file = file / "tokenizer.json";
    if (!fs::exists(file, absent)) file = fs::path(name) / "tokenizer.model";
    if (!fs::exists(file, absent))
      throw user_error("{} holds neither tokenizer.json nor tokenizer.model", name);
  }
  if (!fs::is_regular_file(file, absent)) {
    throw user_error(
        "tokenizer {} is no file or folder here; use \"bytes\", a tokenizer.json, a "
        "tokenizer.model "
        "of sentencepiece or a folder that holds one",
        in_quotes(name));
  }
  if (file.extension() == ".json") return open_json(file);
  if (file.extension() == ".model") return std::make_shared<SentencePieceTokenizer>(file);
  throw user_error("tokenizer {} is neither a .json nor a .model file", in_quotes(name));
}

std::map<std::string, fs::path> files_of_tokenizer(const std::string& name) {
  if (name == "bytes" || name.starts_with("builtin:")) return {};
  std::error_code ignored;
  fs::path file = name;
  if (fs::is_directory(file, ignored)) {
    file /= "tokenizer.json";
    if (!fs::exists(file, ignored)) file.replace_filename("tokenizer.model");
  }
  std::map<std::string, fs::path> files;
  const auto add = [&](const std::string& as, const fs::path& from) {
    if (fs::is_regular_file(from, ignored)) files[as] = from;
  };
  add(file.extension() == ".json" ? "tokenizer.json" : "tokenizer.model", file);
  for (const char* beside : {"tokenizer_config.json", "special_tokens_map.json"})
    add(beside, file.parent_path() / beside);
  return files;
}

int32_t eos_of(const Tokenizer& tokenizer, const std::string& name, const std::string& eos_token) {
  if (!eos_token.empty()) {
    if (const auto token = tokenizer.token_of(eos_token)) return *token;
    throw user_error("eos_token {} is no token of {}", in_quotes(eos_token), name);
  }
  if (const auto token = tokenizer.eos()) return *token;
  throw user_error(
      "what ends a document is not known: no tokenizer_config.json and no config.json beside {} "
      "says "
      "it, and of {} it does not have exactly one; give --eos_token",
      name, fmt::join(usual_ends, ", "));
}

}  // namespace picotron
