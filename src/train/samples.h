// What the model writes at the end of a run: three short texts, from the beginning of a text or
// from a prompt.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "model/sampling.h"
#include "train/run.h"

namespace picotron {

// The tokens that stand before a text of this tokenizer: its bos, or a newline.
std::vector<int64_t> prompt_tokens(const Tokenizer& tokenizer, const std::string& prompt);

// Receives a text piece by piece.
using TextSink = std::function<void(std::string_view)>;

// A text that continues `prompt`, the prompt first, each piece as soon as its characters are whole.
// Ends at the tokenizer's eos.
void stream_text(Llama& model, const Tokenizer& tokenizer, const std::string& prompt,
                 SamplingOptions options, const TextSink& write);

// `samples` texts that continue `prompt`, the prompt included. Ends each at the tokenizer's eos.
std::vector<std::string> write_texts(Llama& model, const Tokenizer& tokenizer,
                                     const std::string& prompt, int64_t samples,
                                     SamplingOptions options);

// Prints three texts by the model that a run has saved in `folder`, if it was trained on words we
// can spell; nothing where the data are bare tokens; for a large model the command that does it.
// On rank 0, alone.
void show_samples(const std::string& folder, const Run& run);

}  // namespace picotron
