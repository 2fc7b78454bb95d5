// The library's calls in the interface's words.
#include "data/sentencepiece_tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "core/error.h"

namespace picotron {
namespace {

std::optional<int32_t> if_there(int id) {
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& file)
    : name_(file.string()), processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {
  const auto status = processor_->Load(file.string());
  if (!status.ok())
    throw user_error("{} is no model of sentencepiece: {}", name_, status.ToString());
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

int64_t SentencePieceTokenizer::vocab_size() const {
  return processor_->GetPieceSize();
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  std::vector<int> ids;
  const auto status = processor_->Encode(replace_invalid_utf8(text), &ids);
  check(status.ok(), fmt::format("sentencepiece encodes: {}", status.ToString()));
  return {ids.begin(), ids.end()};
}

std::string SentencePieceTokenizer::decode(std::span<const int32_t> tokens) const {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab_size()) {
      throw user_error("token {} cannot be decoded: {} knows 0 to {}", token, name_,
                       vocab_size() - 1);
    }
  }
  std::string text;
  const auto status = processor_->Decode(std::vector<int>(tokens.begin(), tokens.end()), &text);
  check(status.ok(), fmt::format("sentencepiece decodes: {}", status.ToString()));
  return text;
}

std::optional<int32_t> SentencePieceTokenizer::bos() const {
  return if_there(processor_->bos_id());
}

std::optional<int32_t> SentencePieceTokenizer::eos() const {
  return if_there(processor_->eos_id());
}

std::optional<int32_t> SentencePieceTokenizer::token_of(std::string_view content) const {
  const int id = processor_->PieceToId(content);
  if (processor_->IsUnknown(id) && processor_->IdToPiece(id) != content) return std::nullopt;
  return id;
}

}  // namespace picotron
