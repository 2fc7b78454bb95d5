// Tokens before a prompt, tokens after it, and back to text.
#include "train/samples.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "checkpoint/huggingface.h"
#include "core/log.h"

namespace picotron {
namespace {

// Parameters of a model that writes three texts in seconds on one core.
constexpr int64_t kQuickToWrite = 20'000'000;

constexpr std::string_view kUnknown = "\uFFFD";  // what a character that is not whole decodes to

void stop_at_eos(SamplingOptions& options, const Llama& model, const Tokenizer& tokenizer) {
  if (tokenizer.eos()) options.end_token = *tokenizer.eos();
  options.vocab_size = std::min(model.config().vocab_size, tokenizer.vocab_size());
}

// What is shown of the tokens before a text.
std::vector<int32_t> without_bos(const std::vector<int64_t>& before, const Tokenizer& tokenizer) {
  return {before.begin() + (tokenizer.bos() ? 1 : 0), before.end()};
}

}  // namespace

std::vector<int64_t> prompt_tokens(const Tokenizer& tokenizer, const std::string& prompt) {
  std::vector<int64_t> tokens;
  if (tokenizer.bos()) tokens.push_back(*tokenizer.bos());
  for (const int32_t token : tokenizer.encode(prompt)) tokens.push_back(token);
  if (tokens.empty()) tokens.push_back(tokenizer.encode("\n").at(0));
  return tokens;
}

void stream_text(Llama& model, const Tokenizer& tokenizer, const std::string& prompt,
                 SamplingOptions options, const TextSink& write) {
  const std::vector<int64_t> before = prompt_tokens(tokenizer, prompt);
  stop_at_eos(options, model, tokenizer);
  std::vector<int32_t> tokens = without_bos(before, tokenizer);
  std::string shown;
  const auto show = [&](const std::string& text, bool is_whole) {
    const bool is_cut = !is_whole && text.ends_with(kUnknown);  // a character's first bytes
    if (is_cut || !text.starts_with(shown)) return;
    write(std::string_view(text).substr(shown.size()));
    shown = text;
  };
  show(tokenizer.decode(tokens), false);
  options.on_token = [&](int64_t /*sample*/, int64_t token) {
    tokens.push_back(static_cast<int32_t>(token));
    show(tokenizer.decode(tokens), false);
  };
  generate(model, before, 1, options);
  show(tokenizer.decode(tokens), true);
}

std::vector<std::string> write_texts(Llama& model, const Tokenizer& tokenizer,
                                     const std::string& prompt, int64_t samples,
                                     SamplingOptions options) {
  const std::vector<int64_t> before = prompt_tokens(tokenizer, prompt);
  stop_at_eos(options, model, tokenizer);
  std::vector<std::string> texts;
  for (const std::vector<int64_t>& after : generate(model, before, samples, options)) {
    std::vector<int32_t> tokens = without_bos(before, tokenizer);
    tokens.insert(tokens.end(), after.begin(), after.end());
    texts.push_back(tokenizer.decode(tokens));
  }
  return texts;
}

void show_samples(const std::string& folder, const Run& run) {
  const std::shared_ptr<const Tokenizer> tokenizer = run.datasets.train->tokenizer();
  if (tokenizer == nullptr) return;
  if (count_parameters(run.architecture) > kQuickToWrite) {
    log::print(fmt::format("Let the model write: picotron generate --checkpoint {} --prompt …",
                           std::filesystem::path(folder).parent_path().string()));
    return;
  }
  const at::NoGradGuard no_backward;
  const Mesh alone;
  Llama model(run.architecture, alone,
              {.tensors = run.dtype, .max_positions = run.config.training.seq_length});
  load_huggingface(folder, run.architecture, model.parameters());
  log::print("\nThree texts that the model has just written:");
  const SamplingOptions options{.max_new_tokens = 200,
                                .temperature = 0.8,
                                .seed = static_cast<uint64_t>(run.config.training.seed)};
  for (const std::string& text : write_texts(model, *tokenizer, "", 3, options)) {
    log::print(fmt::format("  • {}", text));
  }
}

}  // namespace picotron
