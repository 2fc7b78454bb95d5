// `tokenizer.json`, the file of the `tokenizers` library, for byte-level byte-pair models: GPT-2,
// SmolLM and SmolLM2, Llama 3, Qwen 2 and their like.
//
//     text ─▶ added tokens    "<|endoftext|>" in the text is one token
//          ─▶ normalizer      none, or Unicode's NFC, NFD, NFKC, NFKD
//          ─▶ pre-tokenizer   words (pre_tokenizer.h)
//          ─▶ model           byte-pair encoding of each word (byte_pair_encoding.h)
//     and back: each token's bytes, joined
//
// A vocabulary spells bytes as characters, printable ones as themselves and the rest from U+0100 on
// (Radford et al. 2019): "Ġthe" is " the". What a file asks for that is not known here is an
// error that names it: tokens that differ silently would spoil a training run. Its truncation and
// padding are of a model's input and mean nothing to a corpus. Read next: tokenizer.h.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/byte_pair_encoding.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer.h"

namespace picotron {

class JsonTokenizer : public Tokenizer {
 public:
  // `json`: the file's text; `name`: what messages begin with. UserError naming the key.
  JsonTokenizer(std::string_view json, const std::string& name);

  int64_t vocab_size() const override { return static_cast<int64_t>(spelled_.size()); }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens) const override;
  int64_t num_bytes(std::span<const int32_t> tokens) const override;
  std::optional<int32_t> bos() const override { return bos_; }
  std::optional<int32_t> eos() const override { return eos_; }
  std::optional<int32_t> token_of(std::string_view content) const override;

  void set_eos(std::optional<int32_t> eos) { eos_ = eos; }

 private:
  struct AddedToken {
    std::string searched;  // as it stands in the text that is searched
    int32_t id = 0;
    bool lstrip = false, rstrip = false;  // spaces beside it belong to it
    bool normalized = false;              // it is looked for in normalized text
  };
  using Take = std::function<void(std::string_view)>;
  void read_added_tokens(const struct JsonReader& root);
  void read_model(const struct JsonReader& model);
  void read_post_processor(const struct JsonReader& processor);
  // Appends the added tokens of one kind that `text` holds; `rest` takes what lies between them.
  void cut_at_added(std::string_view text, bool are_normalized, std::vector<int32_t>& out,
                    const Take& rest) const;
  std::string_view spelled(int32_t token) const;

  std::string name_;
  std::vector<AddedToken> added_;     // the longest first
  std::vector<std::string> spelled_;  // by token
  std::string normalizer_;            // "nfc", "nfkc", …, ""
  std::optional<PreTokenizer> words_;
  std::unique_ptr<BytePairEncoding> encoding_;
  std::optional<int32_t> bos_, eos_;
};

}  // namespace picotron
