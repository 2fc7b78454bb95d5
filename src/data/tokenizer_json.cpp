// Reading the file, key by key, and the way of a text through it.
#include "data/tokenizer_json.h"

#include <fmt/format.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace picotron {

using nlohmann::json;

// A value of the file and the path to it, for messages.
struct JsonReader {
  const json& value;
  std::string place;  // "gpt2/tokenizer.json: model.vocab"

  [[nodiscard]] UserError error(const std::string& what) const {
    return user_error("{} {}", place, what);
  }
  [[nodiscard]] UserError unknown(const std::string& known) const {
    return error(fmt::format("is {}, which is not known here; known: {}", value.dump(), known));
  }
  bool has(const char* key) const {
    return value.is_object() && value.contains(key) && !value.at(key).is_null();
  }
  JsonReader at(const std::string& key) const {
    static const json null;
    const bool there = value.is_object() && value.contains(key);
    return {there ? value.at(key) : null, place + (place.ends_with(": ") ? "" : ".") + key};
  }
  std::vector<JsonReader> elements() const {
    if (!value.is_array()) throw error("is no list");
    std::vector<JsonReader> all;
    for (size_t i = 0; i < value.size(); ++i)
      all.push_back({value[i], fmt::format("{}[{}]", place, i)});
    return all;
  }
  std::string text() const {
    if (!value.is_string()) throw error("is no string");
    return value.get<std::string>();
  }
  int32_t token() const {
    constexpr int64_t most = 1 << 24;
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= most)
      throw error(
          fmt::format("is {}, and a token is a number from 0 to {}", value.dump(), most - 1));
    return value.get<int32_t>();
  }
  bool flag(const char* key) const {
    if (!has(key)) return false;
    if (!value.at(key).is_boolean()) throw at(key).error("is neither true nor false");
    return value.at(key).get<bool>();
  }
  // A key that is only known when it is absent, null, false, 0 or "".
  void want_none(const char* key) const {
    if (!has(key)) return;
    const json& set = value.at(key);
    if (set == false || set == json("") || set == 0.0) return;
    throw at(key).unknown("null");
  }
};

namespace {

// The 256 characters that spell bytes: printable ones themselves, the others from U+0100 on.
const std::array<char32_t, 256>& characters_of_bytes() {
  static const auto table = [] {
    std::array<char32_t, 256> characters{};
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      characters[byte] = printable ? byte : next++;
    }
    return characters;
  }();
  return table;
}

// The bytes that a vocabulary's entry spells; none where a character of it spells no byte.
std::optional<std::string> bytes_of(std::string_view entry) {
  static const auto bytes = [] {
    std::unordered_map<char32_t, char> map;
    for (size_t byte = 0; byte < 256; ++byte)
      map[characters_of_bytes()[byte]] = static_cast<char>(byte);
    return map;
  }();
  std::string out;
  while (!entry.empty()) {
    const size_t length = utf8_length(entry);
    if (length == 0 || length > 2) return std::nullopt;
    const auto unit = [&](size_t i) { return static_cast<unsigned char>(entry[i]); };
    const char32_t character =
        length == 1 ? unit(0) : static_cast<char32_t>((unit(0) & 0x1F) << 6 | (unit(1) & 0x3F));
    const auto found = bytes.find(character);
    if (found == bytes.end()) return std::nullopt;
    out += found->second;
    entry.remove_prefix(length);
  }
  return out;
}

// The `tokenizers` library normalizes as Unicode 9 does: to it, later characters are ones that no
// form changes and that nothing combines with. So must we, for models were trained on its tokens.
icu::FilteredNormalizer2 normalizer_of(const std::string& kind) {
  UErrorCode error = U_ZERO_ERROR;
  static const icu::UnicodeSet& known = *new icu::UnicodeSet(u"[:age=9.0:]", error);
  const bool composes = kind.ends_with("c");
  const icu::Normalizer2* found =
      icu::Normalizer2::getInstance(nullptr, kind.starts_with("nfk") ? "nfkc" : "nfc",
                                    composes ? UNORM2_COMPOSE : UNORM2_DECOMPOSE, error);
  check(U_SUCCESS(error) && found != nullptr, "ICU has the four normal forms");
  return {*found, known};
}

std::string normalized(const std::string& kind, std::string_view text) {
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode error = U_ZERO_ERROR;
  normalizer_of(kind).normalizeUTF8(
      0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr, error);
  check(U_SUCCESS(error), "well-formed text is normalized");
  return out;
}

std::string read_normalizer(const JsonReader& normalizer) {
  if (normalizer.value.is_null()) return "";
  const JsonReader type = normalizer.at("type");
  std::string kind = type.value.is_string() ? type.text() : "";
  if (kind == "Sequence") {
    const auto parts = normalizer.at("normalizers").elements();
    if (parts.empty()) return "";
    if (parts.size() == 1) return read_normalizer(parts[0]);
    throw normalizer.error("is a sequence of several, and one is known here");
  }
  for (char& c : kind) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (kind != "nfc" && kind != "nfd" && kind != "nfkc" && kind != "nfkd")
    throw type.unknown("NFC, NFD, NFKC, NFKD");
  return kind;
}

void read_pre_tokenizer(const JsonReader& reader, std::vector<PreTokenizer::Step>& steps,
                        bool& spells_bytes) {
  const JsonReader type = reader.at("type");
  const std::string kind = type.value.is_string() ? type.text() : "";
  if (kind == "Sequence") {
    for (const JsonReader& part : reader.at("pretokenizers").elements())
      read_pre_tokenizer(part, steps, spells_bytes);
  } else if (kind == "ByteLevel") {
    reader.want_none("add_prefix_space");
    spells_bytes = true;
    if (!reader.has("use_regex") || reader.flag("use_regex")) steps.push_back({kGpt2Words});
  } else if (kind == "Digits") {
    steps.push_back({reader.flag("individual_digits") ? R"(\p{N})" : R"(\p{N}+)"});
  } else if (kind == "Split") {
    const JsonReader pattern = reader.at("pattern");
    if (!pattern.has("Regex")) throw pattern.unknown("a Regex");
    const JsonReader behavior = reader.at("behavior");
    if (behavior.text() != "Isolated" && behavior.text() != "Removed")
      throw behavior.unknown("Isolated, Removed");
    steps.push_back({.expression = pattern.at("Regex").text(),
                     .behavior = behavior.text() == "Removed" ? PreTokenizer::Behavior::removed
                                                              : PreTokenizer::Behavior::isolated,
                     .invert = reader.flag("invert")});
  } else {
    throw type.unknown("Sequence, ByteLevel, Digits, Split");
  }
}

bool is_space(std::string_view character) {
  static constexpr std::string_view spaces[] = {
      "\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u0085", "\u00A0", "\u1680",
      "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008",
      "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  return std::ranges::find(spaces, character) != std::end(spaces);
}

// How many bytes of spaces the text begins with.
size_t leading_spaces(std::string_view text) {
  size_t length = 0;
  while (length < text.size()) {
    const size_t next = utf8_length(text.substr(length));
    if (!is_space(text.substr(length, next))) break;
    length += next;
  }
  return length;
}

// How many bytes of it are left without the spaces that it ends with.
size_t without_trailing_spaces(std::string_view text) {
  size_t length = text.size();
  while (length > 0) {
    size_t begin = length - 1;
    while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
    if (!is_space(text.substr(begin, length - begin))) break;
    length = begin;
  }
  return length;
}

}  // namespace

JsonTokenizer::JsonTokenizer(std::string_view text, const std::string& name) : name_(name) {
  json root;
  try {
    root = json::parse(text);
  } catch (const json::exception& error) {
    throw user_error("{} is no JSON: {}", name, error.what());
  }
  const JsonReader reader{root, name + ": "};
  if (!root.is_object() || !root.contains("model"))
    throw user_error("{} is no tokenizer.json: it has no model", name);
  read_model(reader.at("model"));
  normalizer_ = read_normalizer(reader.at("normalizer"));
  read_added_tokens(reader);
  std::vector<PreTokenizer::Step> steps;
  bool spells_bytes = false;
  read_pre_tokenizer(reader.at("pre_tokenizer"), steps, spells_bytes);
  words_.emplace(steps, name);
  if (!spells_bytes)
    throw reader.at("pre_tokenizer")
        .error("has no ByteLevel, and only byte-level models are known here");
  const JsonReader decoder = reader.at("decoder");
  if (!decoder.value.is_null() && decoder.at("type").value != "ByteLevel")
    throw decoder.at("type").unknown("ByteLevel");
  read_post_processor(reader.at("post_processor"));
}

void JsonTokenizer::read_model(const JsonReader& model) {
  if (model.has("type") && model.at("type").text() != "BPE") throw model.at("type").unknown("BPE");
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"})
    model.want_none(key);
  const JsonReader vocabulary = model.at("vocab");
  if (!vocabulary.value.is_object()) throw vocabulary.error("is no object");
  std::unordered_map<std::string, int32_t> tokens;
  for (const auto& [entry, id] : vocabulary.value.items()) {
    const int32_t token =
        JsonReader{id, fmt::format("{}[\"{}\"]", vocabulary.place, entry)}.token();
    tokens[entry] = token;
    if (token >= vocab_size()) spelled_.resize(static_cast<size_t>(token) + 1);
    spelled_[static_cast<size_t>(token)] = bytes_of(entry).value_or(entry);
  }
  const auto token_named = [&](const std::string& entry, const JsonReader& by) {
    const auto found = tokens.find(entry);
    if (found == tokens.end())
      throw by.error(fmt::format("names {}, which is not in the vocabulary", json(entry).dump()));
    return found->second;
  };
  BytePairEncoding::Options options;
  for (const auto& [entry, token] : tokens) {
    const auto bytes = bytes_of(entry);
    if (bytes && model.flag("ignore_merges")) options.whole_words[*bytes] = token;
  }
  std::array<bool, 256> known{};
  for (const auto& [entry, token] : tokens) {
    const auto bytes = bytes_of(entry);
    if (!bytes || bytes->size() != 1) continue;
    const auto byte = static_cast<unsigned char>(bytes->front());
    options.token_of_byte[byte] = token;
    known[byte] = true;
  }
  const auto* missing = std::ranges::find(known, false);
  if (missing != known.end()) {
    throw vocabulary.error(fmt::format("has no token for byte {}: a text could not be spelled",
                                       missing - known.begin()));
  }
  for (const JsonReader& merge : model.at("merges").elements()) {
    std::string left, right;
    if (merge.value.is_array() && merge.value.size() == 2) {
      left = merge.elements()[0].text(), right = merge.elements()[1].text();
    } else {
      const std::string both = merge.text();
      const size_t space = both.find(' ');
      if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
        throw merge.error("is not two tokens with a space between them");
      left = both.substr(0, space), right = both.substr(space + 1);
    }
    options.merges.push_back(
        {token_named(left, merge), token_named(right, merge), token_named(left + right, merge)});
  }
  encoding_ = std::make_unique<BytePairEncoding>(std::move(options));
}

void JsonTokenizer::read_added_tokens(const JsonReader& root) {
  if (!root.has("added_tokens")) return;
  for (const JsonReader& entry : root.at("added_tokens").elements()) {
    entry.want_none("single_word");
    const std::string content = entry.at("content").text();
    AddedToken token{.searched = content,
                     .id = entry.at("id").token(),
                     .lstrip = entry.flag("lstrip"),
                     .rstrip = entry.flag("rstrip"),
                     .normalized = entry.flag("normalized")};
    if (token.normalized && !normalizer_.empty())
      token.searched = picotron::normalized(normalizer_, content);
    if (token.searched.empty()) throw entry.at("content").error("is empty");
    if (token.id >= vocab_size()) spelled_.resize(static_cast<size_t>(token.id) + 1);
    spelled_[static_cast<size_t>(token.id)] = content;
    added_.push_back(token);
  }
  std::ranges::stable_sort(added_, std::greater{},
                           [](const AddedToken& token) { return token.searched.size(); });
}

// Of what is put around a text the first token is kept: it begins a prompt, never a document of a
// corpus.
void JsonTokenizer::read_post_processor(const JsonReader& processor) {
  if (processor.value.is_null()) return;
  const JsonReader type = processor.at("type");
  const std::string kind = type.value.is_string() ? type.text() : "";
  if (kind == "Sequence") {
    for (const JsonReader& part : processor.at("processors").elements()) read_post_processor(part);
  } else if (kind == "TemplateProcessing") {
    const auto single = processor.at("single").elements();
    if (single.empty() || !single[0].has("SpecialToken")) return;
    const JsonReader first = single[0].at("SpecialToken").at("id");
    bos_ = token_of(first.text());
    if (!bos_) throw first.error("is no added token");
  } else if (kind != "ByteLevel") {
    throw type.unknown("Sequence, ByteLevel, TemplateProcessing");
  }
}

std::optional<int32_t> JsonTokenizer::token_of(std::string_view content) const {
  const auto entry = std::ranges::find(spelled_, content);
  if (entry == spelled_.end()) return std::nullopt;
  return static_cast<int32_t>(entry - spelled_.begin());
}

void JsonTokenizer::cut_at_added(std::string_view text, bool are_normalized,
                                 std::vector<int32_t>& out, const Take& rest) const {
  std::array<bool, 256> begins{};
  for (const AddedToken& token : added_)
    if (token.normalized == are_normalized)
      begins[static_cast<unsigned char>(token.searched.front())] = true;
  size_t done = 0;
  for (size_t i = 0; i < text.size();) {
    const auto is_here = [&](const AddedToken& token) {
      return token.normalized == are_normalized && text.substr(i).starts_with(token.searched);
    };
    const auto found = begins[static_cast<unsigned char>(text[i])]
                           ? std::ranges::find_if(added_, is_here)
                           : added_.end();
    if (found == added_.end()) {
      ++i;
      continue;
    }
    size_t begin = i, end = i + found->searched.size();
    if (found->lstrip) begin = done + without_trailing_spaces(text.substr(done, begin - done));
    if (found->rstrip) end += leading_spaces(text.substr(end));
    if (begin > done) rest(text.substr(done, begin - done));
    out.push_back(found->id);
    i = done = end;
  }
  if (done < text.size()) rest(text.substr(done));
}

std::vector<int32_t> JsonTokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (!is_utf8(text)) text = repaired = replace_invalid_utf8(text);
  std::vector<int32_t> out;
  out.reserve(text.size() / 3);
  BytePairEncoding::Worker worker(*encoding_);
  const auto words = [&](std::string_view piece) {
    words_->split(piece, [&](std::string_view word) { worker.encode(word, out); });
  };
  cut_at_added(text, /*are_normalized=*/false, out, [&](std::string_view piece) {
    const std::string normal = normalizer_.empty() ? "" : normalized(normalizer_, piece);
    cut_at_added(normalizer_.empty() ? piece : normal, /*are_normalized=*/true, out, words);
  });
  return out;
}

std::string_view JsonTokenizer::spelled(int32_t token) const {
  if (token < 0 || token >= vocab_size()) {
    throw user_error("token {} cannot be decoded: {} knows 0 to {}", token, name_,
                     vocab_size() - 1);
  }
  return spelled_[static_cast<size_t>(token)];
}

std::string JsonTokenizer::decode(std::span<const int32_t> tokens) const {
  std::string bytes;
  for (const int32_t token : tokens) bytes += spelled(token);
  return replace_invalid_utf8(bytes);
}

int64_t JsonTokenizer::num_bytes(std::span<const int32_t> tokens) const {
  int64_t bytes = 0;
  for (const int32_t token : tokens) bytes += static_cast<int64_t>(spelled(token).size());
  return bytes;
}

}  // namespace picotron
