// The table of published models, and the readers that check a config.json number by number, so that
// a bad file is one sentence here and never an allocation or a wrong shape later.
// Read architectures.h first.
#include "model/architectures.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "core/config_table.h"
#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// ------------------------------------------------------------------------------------- the table

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

// Also matches the part after the slash, which is what people remember.
std::string nearest_name(std::string_view name) {
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

// -------------------------------------------------------------------------------------- checking

// Far above any model, and low enough that no product of them overflows 64 bits.
constexpr int64_t kMaxVocabulary = int64_t{1} << 31;
constexpr int64_t kMaxHidden = int64_t{1} << 20;
constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHeads = int64_t{1} << 14;
constexpr int64_t kMaxHeadDim = int64_t{1} << 12;
constexpr int64_t kMaxPositions = int64_t{1} << 31;

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
      rope.original_max_position_embeddings > kMaxPositions) {
    throw user_error("{}: rope_scaling original_max_position_embeddings {} is not from 1 to {}",
                     source, rope.original_max_position_embeddings, kMaxPositions);
  }
}

// --------------------------------------------------------------------------------------- reading

// The keys of one JSON object, typed. A key that is null counts as absent, as in transformers.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  [[nodiscard]] const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  [[nodiscard]] int64_t integer(const char* key) const {
    const json* value = find(key);
    if (!value) throw user_error("{}: \"{}\" is missing; it must be an integer", where_, key);
    return as_integer(key, *value);
  }
  [[nodiscard]] int64_t integer(const char* key, int64_t otherwise) const {
    const json* value = find(key);
    return value ? as_integer(key, *value) : otherwise;
  }
  [[nodiscard]] double number(const char* key) const {
    const json* value = find(key);
    if (!value) throw user_error("{}: \"{}\" is missing; it must be a number", where_, key);
    if (!value->is_number()) wrong(key, *value, "a number");
    return value->get<double>();
  }
  [[nodiscard]] double number(const char* key, double otherwise) const {
    return find(key) ? number(key) : otherwise;
  }
  [[nodiscard]] bool boolean(const char* key, bool otherwise) const {
    const json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_boolean()) wrong(key, *value, "true or false");
    return value->get<bool>();
  }
  [[nodiscard]] std::string text(const char* key, const char* otherwise) const {
    const json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_string()) wrong(key, *value, "a string");
    return value->get<std::string>();
  }
  [[nodiscard]] int64_t as_integer(const char* key, const json& value) const {
    if (!value.is_number_integer()) wrong(key, value, "an integer");
    if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) {
      throw user_error("{}: \"{}\" is {}, which is too large", where_, key, value.dump());
    }
    return value.get<int64_t>();
  }
  [[noreturn]] void wrong(const char* key, const json& value, const char* expected) const {
    std::string shown = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (shown.size() > 40) shown = shown.substr(0, 37) + "...";
    throw user_error("{}: \"{}\" is {}; it must be {}", where_, key, shown, expected);
  }

 private:
  const json& object_;
  std::string where_;
};

// RoPE as either spelling has it. transformers 5 moves the base into the object:
//   4: "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, …} or null
//   5: "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, …}
void read_rope(const Reader& reader, const std::string& file, LlamaConfig& config) {
  config.rope_theta = reader.number("rope_theta", 10000.0);
  if (reader.number("partial_rotary_factor", 1.0) != 1.0) {
    throw user_error("{}: a partial_rotary_factor is not supported; RoPE turns whole heads", file);
  }
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* object = reader.find(key);
    if (!object) continue;
    if (!object->is_object()) reader.wrong(key, *object, "an object");
    const Reader rope(*object, fmt::format("{}: {}", file, key));
    const std::string type = rope.text("rope_type", rope.text("type", "default").c_str());
    config.rope_theta = rope.number("rope_theta", config.rope_theta);
    if (rope.number("partial_rotary_factor", 1.0) != 1.0) {
      throw user_error("{}: a partial_rotary_factor is not supported; RoPE turns whole heads",
                       file);
    }
    if (type == "llama3") {
      config.rope_scaling =
          RopeScaling{.factor = rope.number("factor"),
                      .low_freq_factor = rope.number("low_freq_factor"),
                      .high_freq_factor = rope.number("high_freq_factor"),
                      .original_max_position_embeddings = rope.integer(
                          "original_max_position_embeddings", config.max_position_embeddings)};
    } else if (type != "default") {
      throw user_error("{}: {} of type \"{}\" is not supported; \"default\" and \"llama3\" are",
                       file, key, type);
    }
    return;  // transformers, too, reads the first of the two that is there
  }
}

// Absent: `otherwise`, transformers' default. null, negative or outside the vocabulary: none.
std::optional<int64_t> read_token(const Reader& reader, const json& contents, const char* key,
                                  int64_t vocab_size, int64_t otherwise) {
  const auto found = contents.find(key);
  int64_t token = otherwise;
  if (found != contents.end()) {
    if (found->is_null() || (found->is_array() && found->empty())) return std::nullopt;
    token = reader.as_integer(key, found->is_array() ? found->front() : *found);
  }
  return token >= 0 && token < vocab_size ? std::optional(token) : std::nullopt;
}

json parse_file(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream contents;
  // A folder opens as a stream but cannot be read.
  if (!stream || !(contents << stream.rdbuf())) {
    throw user_error("cannot read {}; give a Hugging Face folder with a config.json",
                     file.string());
  }
  const std::string text = contents.str();
  constexpr int kMaxDepth = 32;  // real files have 3; nesting costs memory out of proportion
  bool too_deep = false;
  try {
    json parsed = json::parse(text, [&](int depth, json::parse_event_t, json&) {
      too_deep = too_deep || depth > kMaxDepth;
      return !too_deep;
    });
    if (!too_deep) return parsed;
  } catch (const json::parse_error& error) {
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(error.byte, text.size()));
    const auto line = 1 + std::count(text.begin(), end, '\n');
    throw user_error("{}:{}: this is not JSON here; download or write the file again",
                     file.string(), line);
  } catch (const json::exception&) {
    throw user_error("{} holds a number that no model has; correct it", file.string());
  }
  throw user_error("{} is nested deeper than {} levels; it is no config of a model", file.string(),
                   kMaxDepth);
}

template <class T>
void override_by(const std::optional<T>& key, T& field) {
  if (key) field = *key;
}

LlamaConfig named_architecture(const std::string& name, const char* key) {
  std::error_code ignored;
  if (fs::exists(name, ignored)) return read_huggingface_config(name);
  if (const LlamaConfig* known = find_architecture(name)) return *known;
  const std::string near = nearest_name(name);
  const std::string hint = near.empty() ? "" : fmt::format(" (did you mean {}?)", near);
  if (std::count(name.begin(), name.end(), '/') == 1 && !name.starts_with('.') &&
      !name.starts_with('/') && !name.ends_with('/')) {
    throw user_error(
        "{} {} is not in the built-in table{}, and downloading from the hub is not built yet: "
        "download it and give the folder",
        key, name, hint);
  }
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
  if (config.hidden_size > 0 && config.hidden_size <= kMaxHidden) {
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

void check_architecture(const LlamaConfig& config, const std::string& source) {
  const auto within = [&](const char* key, int64_t value, int64_t most) {
    if (value < 1 || value > most) {
      throw user_error("{}: {} {} is not from 1 to {}", source, key, value, most);
    }
  };
  within("vocab_size", config.vocab_size, kMaxVocabulary);
  within("hidden_size", config.hidden_size, kMaxHidden);
  within("intermediate_size", config.intermediate_size, kMaxIntermediate);
  within("num_hidden_layers", config.num_hidden_layers, kMaxLayers);
  within("num_attention_heads", config.num_attention_heads, kMaxHeads);
  within("num_key_value_heads", config.num_key_value_heads, kMaxHeads);
  within("max_position_embeddings", config.max_position_embeddings, kMaxPositions);
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
  within("head_dim", config.head_dim, kMaxHeadDim);
  if (config.head_dim % 2 != 0) {
    throw user_error("{}: head_dim {} is odd; RoPE turns pairs, so it must be even", source,
                     config.head_dim);
  }
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1)) {
    throw user_error("{}: rms_norm_eps {} is not between 0 and 1", source, config.rms_norm_eps);
  }
  if (!(config.rope_theta >= 1 && config.rope_theta <= 1e15)) {
    throw user_error("{}: rope_theta {} is not from 1 to 1e15", source, config.rope_theta);
  }
  if (!(config.initializer_range >= 0 && config.initializer_range <= 1)) {
    throw user_error("{}: initializer_range {} is not from 0 to 1", source,
                     config.initializer_range);
  }
  if (config.rope_scaling) check_rope_scaling(*config.rope_scaling, source);
}

LlamaConfig from_huggingface(const json& contents, const std::string& file) {
  if (!contents.is_object()) throw user_error("{}: this is not a JSON object", file);
  const Reader reader(contents, file);
  const std::string model_type = reader.text("model_type", "");
  if (model_type != "llama") {
    throw user_error("{}: model_type is \"{}\"; only \"llama\" can be trained", file, model_type);
  }
  if (const std::string act = reader.text("hidden_act", "silu"); act != "silu") {
    throw user_error("{}: hidden_act \"{}\" is not supported; Llama's is \"silu\"", file, act);
  }
  if (const double dropout = reader.number("attention_dropout", 0.0); dropout != 0.0) {
    throw user_error("{}: attention_dropout {} is not supported; set it to 0", file, dropout);
  }
  LlamaConfig config;
  config.name = file;
  config.vocab_size = reader.integer("vocab_size");
  config.hidden_size = reader.integer("hidden_size");
  config.intermediate_size = reader.integer("intermediate_size");
  config.num_hidden_layers = reader.integer("num_hidden_layers");
  config.num_attention_heads = reader.integer("num_attention_heads");
  config.num_key_value_heads = reader.integer("num_key_value_heads", config.num_attention_heads);
  // Guarded, for the numbers are checked below, all together.
  const int64_t heads = std::max<int64_t>(config.num_attention_heads, 1);
  config.head_dim = reader.integer("head_dim", config.hidden_size / heads);
  config.max_position_embeddings = reader.integer("max_position_embeddings", 2048);
  config.rms_norm_eps = reader.number("rms_norm_eps", 1e-6);
  config.initializer_range = reader.number("initializer_range", 0.02);
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", false);
  config.attention_bias = reader.boolean("attention_bias", false);
  config.mlp_bias = reader.boolean("mlp_bias", false);
  read_rope(reader, file, config);
  config.bos_token_id = read_token(reader, contents, "bos_token_id", config.vocab_size, 1);
  config.eos_token_id = read_token(reader, contents, "eos_token_id", config.vocab_size, 2);
  check_architecture(config, file);
  return config;
}

LlamaConfig read_huggingface_config(const std::string& file_or_folder) {
  std::error_code ignored;
  fs::path file = file_or_folder;
  const bool is_folder = fs::is_directory(file, ignored);
  if (is_folder) file /= "config.json";
  if (is_folder && !fs::exists(file, ignored)) {
    throw user_error("{} holds no config.json; give a Hugging Face folder", file_or_folder);
  }
  LlamaConfig config = from_huggingface(parse_file(file), file.string());
  config.name = file_or_folder;
  return config;
}

json to_huggingface(const LlamaConfig& config, DType dtype) {
  json contents = {
      {"architectures", {"LlamaForCausalLM"}},
      {"model_type", "llama"},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_attention_heads", config.num_attention_heads},
      {"num_key_value_heads", config.num_key_value_heads},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"max_position_embeddings", config.max_position_embeddings},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_theta", config.rope_theta},
      {"rope_scaling", nullptr},
      {"initializer_range", config.initializer_range},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"attention_bias", config.attention_bias},
      {"attention_dropout", 0.0},
      {"mlp_bias", config.mlp_bias},
      {"use_cache", true},
      {"torch_dtype", to_string(dtype)},
      // Written even when there is none: absent means 1 and 2 to transformers.
      {"bos_token_id", nullptr},
      {"eos_token_id", nullptr},
  };
  if (config.bos_token_id) contents["bos_token_id"] = *config.bos_token_id;
  if (config.eos_token_id) contents["eos_token_id"] = *config.eos_token_id;
  if (config.rope_scaling) {
    contents["rope_scaling"] = {
        {"rope_type", "llama3"},
        {"factor", config.rope_scaling->factor},
        {"low_freq_factor", config.rope_scaling->low_freq_factor},
        {"high_freq_factor", config.rope_scaling->high_freq_factor},
        {"original_max_position_embeddings", config.rope_scaling->original_max_position_embeddings},
    };
  }
  return contents;
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
