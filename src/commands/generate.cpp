// picotron generate: lets a trained model continue a prompt.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <fmt/format.h>

#include <cstdio>
#include <limits>

#include "checkpoint/huggingface.h"
#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/error.h"
#include "core/log.h"
#include "data/stories.h"
#include "model/huggingface_config.h"
#include "model/llama.h"
#include "train/hub_names.h"
#include "train/samples.h"

namespace picotron {

int generate_command(const std::vector<std::string>& arguments) {
  CLI::App app("Let a trained model continue a prompt.", "generate");
  std::string checkpoint, model_folder, prompt, tokenizer_name;
  int64_t samples = 1;
  SamplingOptions options{.max_new_tokens = 200, .temperature = 0.8};
  CLI::Option* from_checkpoint =
      app.add_option("--checkpoint", checkpoint, "A checkpoint: save_dir, or one step's folder");
  app.add_option("--model", model_folder, "A Hugging Face folder, or a hub id")
      ->excludes(from_checkpoint);
  app.add_option("--prompt", prompt, "The text to continue; without one, the beginning of a text");
  app.add_option("--max_new_tokens", options.max_new_tokens)
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--temperature", options.temperature, "0 takes the likeliest token")
      ->capture_default_str();
  app.add_option("--top_k", options.top_k, "Draw among the k likeliest; 0: all")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 30));
  app.add_option("--top_p", options.top_p,
                 "Draw among the fewest whose probabilities reach it; 1: all")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", options.seed)
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, std::numeric_limits<int64_t>::max()));
  app.add_option("--num_samples", samples, "How many texts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 16));
  app.add_option(
      "--tokenizer", tokenizer_name,
      "bytes, builtin:stories, a tokenizer.json, a tokenizer.model, a folder or hub id of "
      "one; by "
      "default the checkpoint's own");
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  // Written so that NaN fails too; a smaller temperature would divide logits to infinity.
  const double temperature = options.temperature;
  if (temperature != 0 && !(temperature >= 1e-3 && temperature <= 1e3)) {
    throw user_error("--temperature {} is neither 0 nor from 0.001 to 1000", temperature);
  }
  if (checkpoint.empty() && model_folder.empty()) {
    throw user_error(
        "generate needs --checkpoint DIR or --model DIR; a run writes its own under "
        "checkpoint.save_dir");
  }

  const std::filesystem::path folder =
      model_folder_of(checkpoint.empty() ? model_folder : checkpoint);
  const LlamaConfig config = read_huggingface_config(folder.string());
  if (tokenizer_name.empty()) tokenizer_name = tokenizer_of(folder);
  for (const char* file : {"tokenizer.json", "tokenizer.model"})
    if (tokenizer_name.empty() && std::filesystem::exists(folder / file))
      tokenizer_name = (folder / file).string();
  if (tokenizer_name.empty()) {
    throw user_error(
        "{} holds no tokenizer and does not say which one it was trained with; give --tokenizer "
        "bytes, builtin:stories, or a file or folder",
        folder.string());
  }
  const std::shared_ptr<const Tokenizer> tokenizer =
      open_tokenizer(tokenizer_name_of(tokenizer_name));
  const int64_t longest =
      options.max_new_tokens + static_cast<int64_t>(prompt_tokens(*tokenizer, prompt).size());
  const at::NoGradGuard no_grad;
  const Mesh alone;
  Llama model(config, alone,
              {at::TensorOptions(at::kFloat), std::min(longest, config.max_position_embeddings)});
  load_huggingface(folder, config, model.parameters());
  if (samples == 1) {  // word by word, as a person reads
    stream_text(model, *tokenizer, prompt, options, [](std::string_view piece) {
      fmt::print("{}", piece);
      std::fflush(stdout);
    });
    log::print("");
    return 0;
  }
  for (const std::string& text : write_texts(model, *tokenizer, prompt, samples, options))
    log::print(text);
  return 0;
}

}  // namespace picotron
