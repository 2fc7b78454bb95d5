// Tokenizers: text → a list of small integers, and back. A model predicts integers; only this room
// knows what they spell.
//
//   "bytes"            every byte of UTF-8 is a token, vocabulary 256: nothing to learn, nothing to
//                      download, but four times the tokens of a word-piece vocabulary
//   builtin:stories    one token a word or punctuation mark (data/stories.h)
//
// Encoding is strict (an unknown word is a sentence for the user); decoding never fails on ids in
// [0, vocab_size), for a model under training may say anything.
// Next: data/dataset.h.
#pragma once
#include <cstdint>
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
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // UserError for an id outside [0, vocab_size).
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  // The tokens to put before a prompt and the token that ends a text, where the vocabulary has
  // them.
  virtual std::optional<int32_t> bos() const { return std::nullopt; }
  virtual std::optional<int32_t> eos() const { return std::nullopt; }
};

// kind: "bytes". UserError for any other.
std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view kind);

// `text` with every byte that is not part of well-formed UTF-8 replaced by U+FFFD, one per maximal
// ill-formed piece (Unicode 15, section 3.9).
std::string replace_invalid_utf8(std::string_view text);

}  // namespace picotron
