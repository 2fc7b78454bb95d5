// config.json, as a person or a program may have written it. What is taken keeps the promises that
// the sums of the program rest on, and printed (`picotron config`) it reads back as the same.
#include <nlohmann/json.hpp>

#include "core/config.h"
#include "support.h"

namespace picotron::fuzz {
namespace {

// A model whose sizes are the keys', so that the checks of the layout run too.
std::optional<LayoutSizes> sizes_of(const ModelKeys& keys) {
  return LayoutSizes{.num_attention_heads = keys.num_attention_heads.value_or(32),
                     .num_key_value_heads = keys.num_key_value_heads.value_or(4),
                     .num_hidden_layers = keys.num_hidden_layers.value_or(24),
                     .intermediate_size = keys.intermediate_size.value_or(1024),
                     .vocab_size = keys.vocab_size.value_or(49152)};
}

void look_at(const Config& config) {
  require(world_size(config) >= 1 && world_size(config) <= 65536, "there are 1 to 65536 ranks");
  require(gradient_accumulation_steps(config) >= 1, "a step has a micro batch");
  require(config.training.global_batch_size.value_or(global_batch_size(config)) ==
              global_batch_size(config),
          "the global batch is the one that was asked for");
  require(tokens_per_step(config) >= 1 && tokens_per_step(config) <= int64_t{1000000000000000},
          "a step has 1 to 1e15 tokens");
  for (const std::string& sentence : warnings(config)) require_readable(sentence);

  const std::string printed = to_json(config);
  require(nlohmann::json::accept(printed), "what is printed is JSON");
  require(to_json(parse_config(printed, "printed.json", {}, sizes_of)) == printed,
          "what is printed reads back as the same");
}

}  // namespace
}  // namespace picotron::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace fuzz = picotron::fuzz;
  const std::string_view text = fuzz::text_of(data, size);
  std::optional<picotron::Config> config;
  const auto parse = [&] {
    config = picotron::parse_config(text, "config.json", {}, fuzz::sizes_of);
  };
  if (fuzz::takes(parse)) fuzz::look_at(*config);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  static const std::string every_key = picotron::to_json(picotron::Config{});
  picotron::fuzz::begin_at(every_key, data, size, max_size, seed);
  return picotron::fuzz::mutate_words(data, size, max_size, seed);
}
