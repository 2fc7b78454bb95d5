// Read huggingface.h first. Three parts: the tensors an architecture has, reading, writing.
#include "checkpoint/huggingface.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <iterator>

#include "checkpoint/safetensors.h"
#include "checkpoint/sharded_state.h"
#include "checkpoint/stored_types.h"
#include "core/error.h"
#include "core/files.h"
#include "model/huggingface_config.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kTokenizerKey = "picotron_tokenizer";  // in config.json; others skip it

const char* torch_name(StoredType type) {
  switch (type) {
    case StoredType::F64:
      return "float64";
    case StoredType::F16:
      return "float16";
    case StoredType::BF16:
      return "bfloat16";
    default:
      return "float32";
  }
}

// --------------------------------------------------------------------------------- reading

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

// Tables that old versions of transformers saved, and the second name of a tied matrix.
bool is_ignored(const std::string& name, const LlamaConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == kHead);
}

// "a", "b", "c" and 5 more
std::string some_of(const std::vector<std::string>& names) {
  const size_t shown = std::min<size_t>(names.size(), 3);
  const std::string more =
      names.size() > shown ? fmt::format(" and {} more", names.size() - shown) : "";
  return fmt::format(
      "{}{}", fmt::join(names.begin(), names.begin() + static_cast<long>(shown), ", "), more);
}

// Every tensor of the architecture is there in its shape and in a dtype we read, and nothing else.
void check_folder(const fs::path& folder, const SafetensorsFolder& weights,
                  const LlamaConfig& config) {
  const auto expected = huggingface_tensors(config);
  std::vector<std::string> missing, extra;
  for (const auto& [name, shape] : expected) {
    if (!weights.tensors().contains(name)) missing.push_back(name);
  }
  for (const auto& [name, tensor] : weights.tensors()) {
    if (!expected.contains(name) && !is_ignored(name, config)) extra.push_back(name);
  }
  if (missing == std::vector<std::string>{kHead}) {
    throw user_error(
        "{} has no {}: its head is tied to the embedding; set tie_word_embeddings to true",
        folder.string(), kHead);
  }
  if (!missing.empty()) {
    throw user_error("{} lacks tensors of the model: {}; is it of another architecture?",
                     folder.string(), some_of(missing));
  }
  if (!extra.empty()) {
    throw user_error("{} holds tensors that the model has not: {}; is it of another architecture?",
                     folder.string(), some_of(extra));
  }
  for (const auto& [name, shape] : expected) {
    const StoredTensor& tensor = weights.tensors().at(name);
    if (tensor.shape != shape) {
      throw user_error("{}: tensor {} has shape [{}], and the model needs [{}]",
                       weights.file_of(name).string(), name, fmt::join(tensor.shape, ", "),
                       fmt::join(shape, ", "));
    }
    if (!scalar_type(tensor.type)) {
      throw user_error("{}: tensor {} has dtype {}; F64, F32, F16 and BF16 can be read",
                       weights.file_of(name).string(), name, stored_type_name(tensor.type));
    }
  }
}

// --------------------------------------------------------------------------------- writing

// A folder that gets its name when it is whole. Leaving before commit() removes it.
class NewFolder {
 public:
  explicit NewFolder(const fs::path& folder) : folder_(fs::absolute(folder).lexically_normal()) {
    if (!folder_.has_filename()) folder_ = folder_.parent_path();  // it ended in a slash
    partial_ = folder_.string() + ".partial";
    std::error_code error;
    fs::create_directories(folder_.parent_path(), error);
    if (!error) fs::remove_all(partial_, error);  // left by a run that was killed
    if (!error) fs::create_directory(partial_, error);
    if (error) {
      throw user_error("cannot write {}: {}; choose a folder that is yours", folder_.string(),
                       error.message());
    }
  }
  ~NewFolder() {
    std::error_code ignored;
    fs::remove_all(partial_, ignored);  // after commit(): what was replaced, or nothing
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  [[nodiscard]] const fs::path& path() const { return partial_; }

  void commit() {
    sync_folder(partial_);
    std::error_code ignored;
    if (fs::is_directory(folder_, ignored) && !fs::is_empty(folder_, ignored)) {
      if (!fs::exists(folder_ / "config.json", ignored) ||
          !SafetensorsFolder::has_weights(folder_)) {
        throw user_error("{} holds something that is no model; choose an empty folder",
                         folder_.string());
      }
      replace();
    } else {
      rename_to(partial_, folder_);
    }
    sync_folder(folder_.parent_path());
  }

 private:
  // The two trade places, so that at every moment one of them is there. Network file systems cannot
  // do that (EINVAL); there, for a moment, the old one has another name.
  void replace() {
    if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, folder_.c_str(), RENAME_EXCHANGE) == 0) {
      return;
    }
    const fs::path old = folder_.string() + ".old";
    rename_to(folder_, old);
    rename_to(partial_, folder_);
    std::error_code ignored;
    fs::remove_all(old, ignored);
  }
  static void rename_to(const fs::path& from, const fs::path& to) {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      throw run_error("cannot rename {} to {}: {}", from.string(), to.string(),
                      std::strerror(errno));
    }
  }

  fs::path folder_, partial_;
};

struct Contents {
  json config;
  std::vector<TensorHeader> tensors;  // in the order in which they fill the files
  TensorSource source;
  int64_t file_bytes;
};

// model.safetensors, or model-00001-of-00003.safetensors … and their index. Returns their bytes.
int64_t write_weights(const fs::path& folder, const Contents& contents) {
  std::vector<std::vector<TensorHeader>> files(1);
  int64_t total = 0, in_file = 0;
  for (const TensorHeader& tensor : contents.tensors) {
    if (in_file > 0 && in_file + tensor.bytes() > contents.file_bytes) {
      files.emplace_back();
      in_file = 0;
    }
    files.back().push_back(tensor);
    in_file += tensor.bytes();
    total += tensor.bytes();
  }
  json weight_map = json::object();
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string name =
        files.size() == 1 ? "model.safetensors"
                          : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
    for (const TensorHeader& tensor : files[i]) weight_map[tensor.name] = name;
    write_safetensors(folder / name, files[i], {{"format", "pt"}}, contents.source);
  }
  if (files.size() > 1) {
    const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    write_text_file(folder / "model.safetensors.index.json", index.dump(2) + "\n");
  }
  return total;
}

json generation_config(const json& config) {
  json generation = {{"_from_model_config", true}};
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (!config[key].is_null()) generation[key] = config[key];
  }
  return generation;
}

int64_t write_contents(const fs::path& folder, const Contents& contents) {
  write_text_file(folder / "config.json", contents.config.dump(2) + "\n");
  write_text_file(folder / "generation_config.json",
                  generation_config(contents.config).dump(2) + "\n");
  return write_weights(folder, contents);
}

json config_with_tokenizer(const LlamaConfig& config, DType dtype, const std::string& tokenizer) {
  json result = to_huggingface(config, dtype);
  if (!tokenizer.empty()) result[kTokenizerKey] = tokenizer;
  return result;
}

DType dtype_of(at::ScalarType type) {
  if (type == at::kDouble) return DType::float64;
  return type == at::kBFloat16 ? DType::bfloat16 : DType::float32;
}

// Keeps the last converted tensor alive for the bytes that were handed out.
class Converter {
 public:
  std::span<const std::byte> bytes_of(const at::Tensor& tensor, StoredType type) {
    kept_ = tensor.to(at::TensorOptions(at::kCPU).dtype(*scalar_type(type))).contiguous();
    return {static_cast<const std::byte*>(kept_.const_data_ptr()), kept_.nbytes()};
  }

 private:
  at::Tensor kept_;
};

// What lies beside the weights and is no weight: tokenizers, chat templates, generation_config.
bool is_companion(const fs::path& file) {
  const std::string name = file.filename().string();
  return ends_with_any(name, {".json", ".txt", ".model", ".jinja"}) && name != "config.json" &&
         !name.ends_with(".index.json");
}

}  // namespace

std::map<std::string, std::vector<int64_t>> huggingface_tensors(const LlamaConfig& config) {
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  const int64_t q = config.num_attention_heads * config.head_dim;
  const int64_t kv = config.num_key_value_heads * config.head_dim;
  std::map<std::string, std::vector<int64_t>> tensors = {
      {"model.embed_tokens.weight", {config.vocab_size, hidden}}, {"model.norm.weight", {hidden}}};
  if (!config.tie_word_embeddings) tensors[kHead] = {config.vocab_size, hidden};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto linear = [&](const char* name, int64_t out, int64_t in, bool bias) {
      const std::string full = fmt::format("model.layers.{}.{}", layer, name);
      tensors[full + ".weight"] = {out, in};
      if (bias) tensors[full + ".bias"] = {out};
    };
    linear("self_attn.q_proj", q, hidden, config.attention_bias);
    linear("self_attn.k_proj", kv, hidden, config.attention_bias);
    linear("self_attn.v_proj", kv, hidden, config.attention_bias);
    linear("self_attn.o_proj", hidden, q, config.attention_bias);
    linear("mlp.gate_proj", intermediate, hidden, config.mlp_bias);
    linear("mlp.up_proj", intermediate, hidden, config.mlp_bias);
    linear("mlp.down_proj", hidden, intermediate, config.mlp_bias);
    tensors[fmt::format("model.layers.{}.input_layernorm.weight", layer)] = {hidden};
    tensors[fmt::format("model.layers.{}.post_attention_layernorm.weight", layer)] = {hidden};
  }
  return tensors;
}

void load_huggingface(const fs::path& folder, const LlamaConfig& config,
                      const Parameters& parameters, const at::Tensor& flat) {
  check(flat.numel() == parameters.flat_numel(), "the buffer has the layout of the values");
  const SafetensorsFolder weights(folder);
  check_folder(folder, weights, config);
  for (const Parameter& parameter : parameters.list()) {
    const auto found = weights.tensors().find(parameter.name);
    check(found != weights.tensors().end() && found->second.shape == parameter.full_shape,
          fmt::format("parameter {} is of the architecture", parameter.name));
    // The pages outside the shard are mapped but never touched.
    read_part(found->second, {&parameter, 0, parameter.numel()},
              flat.narrow(0, parameter.offset, parameter.numel()));
  }
}

void load_huggingface(const fs::path& folder, const LlamaConfig& config,
                      const Parameters& parameters) {
  load_huggingface(folder, config, parameters, parameters.flat());
}

void save_huggingface(const fs::path& folder, const LlamaConfig& config,
                      const Parameters& parameters, const SaveOptions& options) {
  const auto shapes = huggingface_tensors(config);
  std::map<std::string, at::Tensor> values;
  for (const Parameter& parameter : parameters.list()) {
    check(parameter.local_shape() == parameter.full_shape, "the model is whole on this rank");
    values[parameter.name] = parameter.value;
  }
  const DType dtype = options.dtype.value_or(dtype_of(parameters.flat().scalar_type()));
  const StoredType type = stored_type(dtype);
  Contents contents{.config = config_with_tokenizer(config, dtype, options.tokenizer),
                    .tensors = {},
                    .source = {},
                    .file_bytes = options.file_bytes};
  for (const auto& [name, shape] : shapes) contents.tensors.push_back({name, type, shape});
  Converter converter;
  contents.source = [&](const TensorHeader& tensor) {
    return converter.bytes_of(values.at(tensor.name), tensor.type);
  };
  NewFolder out(folder);
  write_contents(out.path(), contents);
  out.commit();
}

std::map<std::string, std::string> huggingface_texts(const LlamaConfig& config, DType dtype,
                                                     const std::string& tokenizer) {
  const json root = config_with_tokenizer(config, dtype, tokenizer);
  return {{"config.json", root.dump(2) + "\n"},
          {"generation_config.json", generation_config(root).dump(2) + "\n"}};
}

int64_t copy_huggingface(const fs::path& from, const fs::path& to, std::optional<DType> dtype) {
  const LlamaConfig config = read_huggingface_config(from.string());
  const SafetensorsFolder weights(from);
  check_folder(from, weights, config);
  const auto type_of = [&](const std::string& name) {
    return dtype ? stored_type(*dtype) : weights.tensors().at(name).type;
  };
  Contents contents{
      .config = config_with_tokenizer(config, dtype.value_or(DType::float32), tokenizer_of(from)),
      .tensors = {},
      .source = {},
      .file_bytes = SaveOptions{}.file_bytes};
  contents.config["torch_dtype"] = torch_name(type_of("model.embed_tokens.weight"));
  for (const auto& [name, shape] : huggingface_tensors(config)) {
    contents.tensors.push_back({name, type_of(name), shape});
  }
  Converter converter;
  contents.source = [&](const TensorHeader& tensor) {
    return converter.bytes_of(view_of(weights.tensors().at(tensor.name)), tensor.type);
  };
  NewFolder out(to);
  const int64_t bytes = write_contents(out.path(), contents);
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    if (!entry.is_regular_file() || !is_companion(entry.path())) continue;
    write_text_file(out.path() / entry.path().filename(), read_text_file(entry.path()));
  }
  out.commit();
  return bytes;
}

std::string tokenizer_of(const fs::path& folder) {
  const fs::path file = folder / "config.json";
  const json config = json::parse(read_text_file(file), nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) throw user_error("{} is not a JSON object", file.string());
  const auto found = config.find(kTokenizerKey);
  return found != config.end() && found->is_string() ? found->get<std::string>() : "";
}

fs::path find_model_folder(const fs::path& path) {
  std::error_code ignored;
  const auto is_model = [&](const fs::path& folder) {
    return fs::is_regular_file(folder / "config.json", ignored) &&
           SafetensorsFolder::has_weights(folder);
  };
  if (!fs::is_directory(path, ignored)) {
    throw user_error("{} is not a folder; give a checkpoint's or a Hugging Face model's",
                     path.string());
  }
  if (is_model(path)) return path;
  if (is_model(path / "model")) return path / "model";
  std::optional<std::pair<int64_t, fs::path>> newest;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool is_step =
        !name.empty() && name.size() <= 18 &&
        std::all_of(name.begin(), name.end(), [](unsigned char c) { return c >= '0' && c <= '9'; });
    if (!is_step || !is_model(entry.path() / "model")) continue;
    const int64_t step = std::stoll(name);
    if (!newest || step > newest->first) newest = {step, entry.path() / "model"};
  }
  if (!newest) {
    throw user_error(
        "{} holds no model: neither config.json with weights in safetensors, nor a step with "
        "model/",
        path.string());
  }
  return newest->second;
}

}  // namespace picotron
