// Tokenizers: text → a list of small integers, and back. A model predicts integers; only this room
// knows what they spell.
//
//   "bytes"            every byte of UTF-8 is a token, vocabulary 256: nothing to learn, nothing to
//                      download, but four times the tokens of a word-piece vocabulary
//   builtin:stories    one token a word or punctuation mark (data/stories.h)
//   tokenizer.json     byte-level byte-pair encoding of GPT-2, SmolLM, Llama 3, Qwen 2
//                      (data/tokenizer_json.h)
//   *.model            sentencepiece, of Llama 2 (data/sentencepiece_tokenizer.h)
//
// Encoding is strict (an unknown word is a sentence for the user); decoding never fails on ids in
// [0, vocab_size), for a model under training may say anything. Next: data/dataset.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace picotron {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int64_t vocab_size() const = 0;
  // UserError where the text holds what the vocabulary cannot spell.
  // Adds nothing around it, no beginning and no end. Thread-safe.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // UserError for an id outside [0, vocab_size).
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  // Bytes of text that these tokens spell, whole characters or not.
  virtual int64_t num_bytes(std::span<const int32_t> tokens) const {
    return static_cast<int64_t>(decode(tokens).size());
  }
  // The token to put before a prompt and the one that ends a text, where the vocabulary has them.
  virtual std::optional<int32_t> bos() const { return std::nullopt; }
  virtual std::optional<int32_t> eos() const { return std::nullopt; }
  // The token that is spelled so, "</s>"; none where there is none.
  virtual std::optional<int32_t> token_of(std::string_view /*content*/) const {
    return std::nullopt;
  }
};

// Vocabulary 256. decode() puts U+FFFD for bytes that are not UTF-8.
class ByteTokenizer : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens) const override;
  int64_t num_bytes(std::span<const int32_t> tokens) const override {
    return static_cast<int64_t>(tokens.size());
  }
};

// One token a word or punctuation mark. Token 0 marks the beginning of a text and so the end of the
// one before; in text it is an empty line. Case is not in the tokens (but for names, as the
// vocabulary spells them): encode() ignores it, decode() puts it back where a sentence begins.
// encode(decode(x)) == x for every well-formed x that does not begin with token 0.
class WordTokenizer : public Tokenizer {
 public:
  explicit WordTokenizer(std::vector<std::string> vocabulary);  // [0] is the mark
  int64_t vocab_size() const override { return static_cast<int64_t>(words_.size()); }
  // UserError for a word that is not in the vocabulary, naming it and the nearest ones that are.
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens) const override;
  std::optional<int32_t> bos() const override { return 0; }
  std::optional<int32_t> eos() const override { return 0; }

 private:
  int32_t token_of_word(const std::string& word) const;

  std::vector<std::string> words_;
  std::map<std::string, int32_t> tokens_;  // lower case → token
};

// "bytes", "builtin:stories", a tokenizer.json, a sentencepiece model (*.model), or a folder that
// holds one of them, the first before the second. What ends a text is, of a tokenizer.json, what
// tokenizer_config.json beside it says, else config.json, else the only one of <|endoftext|>,
// <|end_of_text|> and </s> that it has. UserError where there is none, or the file is not
// understood.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name);

// The files that open_tokenizer() reads, by the names under which it finds them in a folder; none
// for those that are built in. A folder with copies of them has the same tokenizer.
std::map<std::string, std::filesystem::path> files_of_tokenizer(const std::string& name);

// The token that ends a document: `eos_token` as it is spelled, or, where that is empty, the
// tokenizer's own. UserError where there is none, naming what was looked for.
int32_t eos_of(const Tokenizer& tokenizer, const std::string& name, const std::string& eos_token);

}  // namespace picotron
