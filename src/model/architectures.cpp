// Which numbers make a model, where the keys of a configuration override them, and what they amount
// to in parameters and operations.
// Read architectures.h first.
#include "model/architectures.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/error.h"
#include "core/limits.h"
#include "model/huggingface_config.h"
#include "model/known_architectures.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

std::string divisors_of(int64_t number) {
  std::vector<int64_t> divisors;
  for (int64_t i = 1; i <= number; ++i) {
    if (number % i == 0) divisors.push_back(i);
  }
  return fmt::format("{}", fmt::join(divisors, ", "));
}

void check_rope_scaling(const RopeScaling& rope, const std::string& source) {
  if (!(rope.factor >= 1 && rope.factor <= 1e6)) {
    throw user_error("{}: rope_scaling factor {} is not between 1 and 1e6", source, rope.factor);
  }
  if (!(rope.low_freq_factor > 0 && rope.low_freq_factor < rope.high_freq_factor &&
        rope.high_freq_factor <= 1e6)) {
    throw user_error(
        "{}: rope_scaling low_freq_factor {} and high_freq_factor {} must be above 0 and in order",
        source, rope.low_freq_factor, rope.high_freq_factor);
  }
  if (rope.original_max_position_embeddings < 1 ||
      rope.original_max_position_embeddings > limits::kPositions) {
    throw user_error("{}: rope_scaling original_max_position_embeddings {} is not from 1 to {}",
                     source, rope.original_max_position_embeddings, limits::kPositions);
  }
}

template <class T>
void override_by(const std::optional<T>& key, T& field) {
  if (key) field = *key;
}

LlamaConfig named_architecture(const std::string& name, const char* key) {
  std::error_code ignored;
  if (fs::exists(name, ignored)) return read_huggingface_config(name);
  if (const LlamaConfig* known = find_architecture(name)) return *known;
  const std::string near = nearest_architecture(name);
  const std::string hint = near.empty() ? "" : fmt::format(" (did you mean {}?)", near);
  throw user_error("{} {} is neither a folder nor in the built-in table{}; known are {}", key, name,
                   hint, fmt::join(known_architectures(), ", "));
}

// A model that the keys alone describe: what they leave out is as transformers has it, and the
// feed-forward is 8/3 as wide as the model, rounded up to 32, Llama's own rule.
LlamaConfig unnamed_architecture(const ModelKeys& keys, std::optional<int64_t> dataset_vocab_size) {
  LlamaConfig config;
  config.name = "custom";
  const auto required = [](const std::optional<int64_t>& key, const char* name) {
    if (!key) throw user_error("model.{} is missing; give it, or a model.name", name);
    return *key;
  };
  config.hidden_size = required(keys.hidden_size, "hidden_size");
  config.num_hidden_layers = required(keys.num_hidden_layers, "num_hidden_layers");
  config.num_attention_heads = required(keys.num_attention_heads, "num_attention_heads");
  if (!keys.vocab_size && !dataset_vocab_size) {
    throw user_error(
        "model.vocab_size is missing, and the data set does not say it; give it, or a model.name");
  }
  config.vocab_size = dataset_vocab_size.value_or(0);
  config.num_key_value_heads = config.num_attention_heads;
  if (config.hidden_size > 0 && config.hidden_size <= limits::kHidden) {
    config.intermediate_size = (8 * config.hidden_size / 3 + 31) / 32 * 32;
  }
  if (config.num_attention_heads > 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
  return config;
}

// Weights of one layer that are used in matrix products.
int64_t layer_matrix_parameters(const LlamaConfig& config) {
  const int64_t q = config.num_attention_heads * config.head_dim;
  const int64_t kv = config.num_key_value_heads * config.head_dim;
  return config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size);
}

}  // namespace

void check_architecture(const LlamaConfig& config, const std::string& source) {
  const auto within = [&](const char* key, int64_t value, int64_t most) {
    if (value < 1 || value > most) {
      throw user_error("{}: {} {} is not from 1 to {}", source, key, value, most);
    }
  };
  within("vocab_size", config.vocab_size, limits::kVocabulary);
  within("hidden_size", config.hidden_size, limits::kHidden);
  within("intermediate_size", config.intermediate_size, limits::kIntermediate);
  within("num_hidden_layers", config.num_hidden_layers, limits::kLayers);
  within("num_attention_heads", config.num_attention_heads, limits::kHeads);
  within("num_key_value_heads", config.num_key_value_heads, limits::kHeads);
  within("max_position_embeddings", config.max_position_embeddings, limits::kPositions);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    throw user_error("{}: num_key_value_heads {} does not divide num_attention_heads {}; use {}",
                     source, config.num_key_value_heads, config.num_attention_heads,
                     divisors_of(config.num_attention_heads));
  }
  // Needed even where head_dim is given: transformers refuses a config without it.
  if (config.hidden_size % config.num_attention_heads != 0) {
    throw user_error(
        "{}: num_attention_heads {} does not divide hidden_size {}; {} or {} would do", source,
        config.num_attention_heads, config.hidden_size,
        config.hidden_size / config.num_attention_heads * config.num_attention_heads,
        (config.hidden_size / config.num_attention_heads + 1) * config.num_attention_heads);
  }
  within("head_dim", config.head_dim, limits::kHeadDim);
  if (config.head_dim % 2 != 0) {
    throw user_error("{}: head_dim {} is odd; RoPE turns pairs, so it must be even", source,
                     config.head_dim);
  }
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1)) {
    throw user_error("{}: rms_norm_eps {} is not between 0 and 1", source, config.rms_norm_eps);
  }
  if (!(config.rope_theta >= 1 && config.rope_theta <= limits::kRopeTheta)) {
    throw user_error("{}: rope_theta {} is not from 1 to {}", source, config.rope_theta,
                     limits::kRopeTheta);
  }
  if (!(config.initializer_range >= 0 && config.initializer_range <= limits::kInitializerRange)) {
    throw user_error("{}: initializer_range {} is not from 0 to {}", source,
                     config.initializer_range, limits::kInitializerRange);
  }
  if (config.rope_scaling) check_rope_scaling(*config.rope_scaling, source);
}

LlamaConfig resolve_architecture(const ModelKeys& keys, std::optional<int64_t> dataset_vocab_size) {
  const std::optional<std::string>& name = keys.name ? keys.name : keys.init_from;
  LlamaConfig config = name
                           ? named_architecture(*name, keys.name ? "model.name" : "model.init_from")
                           : unnamed_architecture(keys, dataset_vocab_size);
  // What followed from a number that is now overridden follows the new one.
  const bool head_dim_follows = config.num_attention_heads > 0 &&
                                config.head_dim == config.hidden_size / config.num_attention_heads;
  const bool kv_heads_follow = config.num_key_value_heads == config.num_attention_heads;
  override_by(keys.vocab_size, config.vocab_size);
  override_by(keys.hidden_size, config.hidden_size);
  override_by(keys.intermediate_size, config.intermediate_size);
  override_by(keys.num_hidden_layers, config.num_hidden_layers);
  override_by(keys.num_attention_heads, config.num_attention_heads);
  if (kv_heads_follow) config.num_key_value_heads = config.num_attention_heads;
  override_by(keys.num_key_value_heads, config.num_key_value_heads);
  if (head_dim_follows && config.num_attention_heads > 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
  override_by(keys.head_dim, config.head_dim);
  override_by(keys.max_position_embeddings, config.max_position_embeddings);
  override_by(keys.rms_norm_eps, config.rms_norm_eps);
  override_by(keys.rope_theta, config.rope_theta);
  override_by(keys.initializer_range, config.initializer_range);
  override_by(keys.attention_bias, config.attention_bias);
  override_by(keys.mlp_bias, config.mlp_bias);
  override_by(keys.tie_word_embeddings, config.tie_word_embeddings);
  if (keys.rope_scaling && keys.rope_scaling->rope_type == "default") {
    config.rope_scaling.reset();
  } else if (keys.rope_scaling) {
    config.rope_scaling = RopeScaling{
        .factor = keys.rope_scaling->factor,
        .low_freq_factor = keys.rope_scaling->low_freq_factor,
        .high_freq_factor = keys.rope_scaling->high_freq_factor,
        .original_max_position_embeddings = keys.rope_scaling->original_max_position_embeddings};
  }
  for (std::optional<int64_t>* token : {&config.bos_token_id, &config.eos_token_id}) {
    if (*token && **token >= config.vocab_size) token->reset();
  }
  check_architecture(config, name ? fmt::format("model {}", *name) : "model");
  return config;
}

int64_t count_parameters(const LlamaConfig& config) {
  const int64_t q = config.num_attention_heads * config.head_dim;
  const int64_t kv = config.num_key_value_heads * config.head_dim;
  int64_t layer = layer_matrix_parameters(config) + 2 * config.hidden_size;
  if (config.attention_bias) layer += q + 2 * kv + config.hidden_size;
  if (config.mlp_bias) layer += 2 * config.intermediate_size + config.hidden_size;
  const int64_t embeddings = config.tie_word_embeddings ? 1 : 2;
  return config.num_hidden_layers * layer + config.hidden_size +
         embeddings * config.vocab_size * config.hidden_size;
}

double reference_flops_per_token(const LlamaConfig& config, int64_t seq_length) {
  return 6.0 * static_cast<double>(count_parameters(config)) +
         12.0 * static_cast<double>(config.num_hidden_layers * config.hidden_size) *
             static_cast<double>(seq_length);
}

double hardware_flops_per_token(const LlamaConfig& config, int64_t seq_length) {
  const int64_t in_products = config.num_hidden_layers * layer_matrix_parameters(config) +
                              config.vocab_size * config.hidden_size;
  const int64_t attended = config.num_hidden_layers * config.num_attention_heads * config.head_dim;
  return 6.0 * static_cast<double>(in_products) +
         6.0 * static_cast<double>(attended) * static_cast<double>(seq_length);
}

}  // namespace picotron
