// `tokenizer.model`, the file of the sentencepiece library (Kudo and Richardson 2018,
// arXiv:1808.06226): Llama and Llama 2. The library reads and applies it; we only bound its ids and
// repair text that is not UTF-8 first, as everywhere.
#pragma once
#include <filesystem>
#include <memory>

#include "data/tokenizer.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace picotron {

class SentencePieceTokenizer : public Tokenizer {
 public:
  // UserError where the file cannot be read or is none of sentencepiece's.
  explicit SentencePieceTokenizer(const std::filesystem::path& file);
  ~SentencePieceTokenizer() override;

  int64_t vocab_size() const override;
  // Control pieces (<s>, </s>) in the text are text.
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> tokens) const override;
  std::optional<int32_t> bos() const override;
  std::optional<int32_t> eos() const override;
  std::optional<int32_t> token_of(std::string_view content) const override;

 private:
  std::string name_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace picotron
