// Hub ids where a configuration or a flag may name a model or tokenizer, and the folders in which
// they are on this machine (hub/hub.h).
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "hub/hub.h"
#include "model/architectures.h"

namespace picotron {

HubOptions hub_options(const Config& config);

// The keys with folders in place of hub ids: init_from with its weights, a name that is not built
// in with its config.json. What was downloaded is added to `notes`. UserError, RunError: hub.h.
ModelKeys with_folders(const ModelKeys& keys, const HubOptions& hub,
                       std::vector<std::string>& notes);

// resolve_architecture() of them.
LlamaConfig resolve_named_architecture(const Config& config,
                                       std::optional<int64_t> dataset_vocab_size);

// The folder of a checkpoint's or a Hugging Face model, or of a hub id, whose files are fetched,
// with the token of HF_TOKEN, else the one given.
std::filesystem::path model_folder_of(const std::string& name,
                                      const std::optional<std::string>& given_token = {});
// A tokenizer's name as open_tokenizer() wants it: a hub id becomes a folder.
std::string tokenizer_name_of(const std::string& name);

}  // namespace picotron
