// The shapes of published models, family by family: what the members of a family share stands once,
// and each model adds what is its own. The numbers are those of the config.json beside the weights;
// a test holds them against published counts of parameters.
// Read known_architectures.h first.
#include "model/known_architectures.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/config_table.h"

namespace picotron {
namespace {

// What the members of a family share; each model below then says what is its own.
LlamaConfig smollm(int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads,
                   int64_t kv_heads) {
  LlamaConfig config;
  config.vocab_size = 49152;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_hidden_layers = layers;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.rms_norm_eps = 1e-5;
  config.tie_word_embeddings = true;
  config.bos_token_id = 0;
  config.eos_token_id = 0;
  return config;
}

LlamaConfig smollm2(LlamaConfig config, double theta) {
  config.max_position_embeddings = 8192;
  config.rope_theta = theta;
  return config;
}

// The chat models mark turns by two tokens of their own.
LlamaConfig instruct(LlamaConfig config) {
  config.bos_token_id = 1;
  config.eos_token_id = 2;
  return config;
}

LlamaConfig llama2(int64_t hidden, int64_t intermediate, int64_t layers, int64_t kv_heads,
                   int64_t positions) {
  LlamaConfig config;
  config.vocab_size = 32000;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 32;
  config.num_key_value_heads = kv_heads;
  config.head_dim = hidden / 32;
  config.max_position_embeddings = positions;
  config.rms_norm_eps = 1e-5;
  config.bos_token_id = 1;
  config.eos_token_id = 2;
  return config;
}

LlamaConfig llama3(int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads) {
  LlamaConfig config;
  config.vocab_size = 128256;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_hidden_layers = layers;
  config.num_attention_heads = heads;
  config.num_key_value_heads = 8;
  config.head_dim = hidden / heads;
  config.max_position_embeddings = 8192;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 500000;
  config.bos_token_id = 128000;
  config.eos_token_id = 128001;
  return config;
}

LlamaConfig llama3_2(LlamaConfig config) {
  config.max_position_embeddings = 131072;
  config.rope_scaling = RopeScaling{.factor = 32,
                                    .low_freq_factor = 1,
                                    .high_freq_factor = 4,
                                    .original_max_position_embeddings = 8192};
  config.tie_word_embeddings = true;
  return config;
}

LlamaConfig wide_initial(LlamaConfig config) {
  config.initializer_range = 1.0 / 24;  // 1 / √576, as its config.json has it
  return config;
}

std::vector<LlamaConfig> make_table() {
  const LlamaConfig small = smollm(576, 1536, 30, 9, 3);
  const LlamaConfig medium = smollm(960, 2560, 32, 15, 5);
  const LlamaConfig large = smollm(2048, 8192, 24, 32, 32);
  const LlamaConfig small2 = wide_initial(smollm2(small, 100000));
  const LlamaConfig medium2 = smollm2(medium, 100000);
  const LlamaConfig large2 = smollm2(large, 130000);
  const LlamaConfig tiny = llama2(2048, 5632, 22, 4, 2048);
  const std::vector<std::pair<const char*, LlamaConfig>> named = {
      {"HuggingFaceTB/SmolLM-135M", small},
      {"HuggingFaceTB/SmolLM-135M-Instruct", instruct(small)},
      {"HuggingFaceTB/SmolLM-360M", medium},
      {"HuggingFaceTB/SmolLM-360M-Instruct", instruct(medium)},
      {"HuggingFaceTB/SmolLM-1.7B", large},
      {"HuggingFaceTB/SmolLM-1.7B-Instruct", instruct(large)},
      {"HuggingFaceTB/SmolLM2-135M", small2},
      {"HuggingFaceTB/SmolLM2-135M-Instruct", instruct(small2)},
      {"HuggingFaceTB/SmolLM2-360M", medium2},
      {"HuggingFaceTB/SmolLM2-360M-Instruct", instruct(medium2)},
      {"HuggingFaceTB/SmolLM2-1.7B", large2},
      {"HuggingFaceTB/SmolLM2-1.7B-Instruct", instruct(large2)},
      {"TinyLlama/TinyLlama_v1.1", tiny},
      {"TinyLlama/TinyLlama-1.1B-Chat-v1.0", tiny},
      {"meta-llama/Llama-2-7b-hf", llama2(4096, 11008, 32, 32, 4096)},
      {"meta-llama/Meta-Llama-3-8B", llama3(4096, 14336, 32, 32)},
      {"meta-llama/Llama-3.2-1B", llama3_2(llama3(2048, 8192, 16, 32))},
      {"meta-llama/Llama-3.2-3B", llama3_2(llama3(3072, 8192, 28, 24))},
  };
  std::vector<LlamaConfig> table;
  for (const auto& [name, config] : named) table.emplace_back(config).name = name;
  return table;
}

const std::vector<LlamaConfig>& table() {
  static const std::vector<LlamaConfig> architectures = make_table();
  return architectures;
}

}  // namespace

const LlamaConfig* find_architecture(std::string_view name) {
  const auto found = std::find_if(table().begin(), table().end(),
                                  [&](const LlamaConfig& known) { return known.name == name; });
  return found == table().end() ? nullptr : &*found;
}

std::vector<std::string> known_architectures() {
  std::vector<std::string> names;
  for (const LlamaConfig& known : table()) names.push_back(known.name);
  return names;
}

std::string nearest_architecture(std::string_view name) {
  std::string best;
  int best_distance = 1 + static_cast<int>(name.size()) / 3;
  for (const LlamaConfig& known : table()) {
    const std::string_view full = known.name;
    const std::string_view last = full.substr(full.find('/') + 1);
    const int distance =
        std::min(config_table::edit_distance(name, full), config_table::edit_distance(name, last));
    if (distance < best_distance) std::tie(best, best_distance) = std::pair(known.name, distance);
  }
  return best;
}

}  // namespace picotron
