// The reader of a config.json, key by key, and its writer.
// Read huggingface_config.h first.
#include "model/huggingface_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

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

}  // namespace

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

}  // namespace picotron
