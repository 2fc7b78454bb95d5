// From ids to folders.
#include "train/hub_names.h"

#include "checkpoint/huggingface.h"
#include "core/error.h"
#include "model/known_architectures.h"

namespace picotron {
namespace {

// Where the hub has no such model, it may be one of ours, misspelled.
template <class Error>
[[noreturn]] void throw_with_hint(const Error& error, const std::string& id) {
  const std::string near = nearest_architecture(id);
  if (near.empty()) throw error;
  throw Error(fmt::format("{} (did you mean {}?)", error.what(), near));
}

std::string fetched(const std::string& id, ModelFiles files, const HubOptions& hub,
                    std::vector<std::string>& notes) {
  try {
    return fetch_model(id, files, hub, notes).string();
  } catch (const UserError& error) {
    throw_with_hint(error, id);
  } catch (const RunError& error) {
    throw_with_hint(error, id);
  }
}

}  // namespace

HubOptions hub_options(const Config& config) {
  return hub_options(config.environment.HF_TOKEN);
}

ModelKeys with_folders(const ModelKeys& keys, const HubOptions& hub,
                       std::vector<std::string>& notes) {
  ModelKeys result = keys;
  if (keys.init_from && is_hub_id(*keys.init_from))
    result.init_from = fetched(*keys.init_from, ModelFiles::all, hub, notes);
  if (keys.name && is_hub_id(*keys.name) && find_architecture(*keys.name) == nullptr)
    result.name = fetched(*keys.name, ModelFiles::config, hub, notes);
  return result;
}

LlamaConfig resolve_named_architecture(const Config& config,
                                       std::optional<int64_t> dataset_vocab_size) {
  std::vector<std::string> notes;
  return resolve_architecture(with_folders(config.model, hub_options(config), notes),
                              dataset_vocab_size);
}

std::filesystem::path model_folder_of(const std::string& name,
                                      const std::optional<std::string>& given_token) {
  std::vector<std::string> notes;
  if (!is_hub_id(name)) return find_model_folder(name);
  return fetched(name, ModelFiles::all, hub_options(given_token), notes);
}

std::string tokenizer_name_of(const std::string& name) {
  std::vector<std::string> notes;
  if (!is_hub_id(name)) return name;
  return fetched(name, ModelFiles::tokenizer, hub_options(std::nullopt), notes);
}

}  // namespace picotron
