// A Hugging Face config.json, read into a LlamaConfig and written from one. It comes in two
// spellings, which differ in where RoPE's numbers stand:
//
//   transformers 4   "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", …} or null
//   transformers 5   "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, …}
//
// Such a file comes from anywhere, so it is checked number by number: a bad one is one sentence
// here and never an allocation or a wrong shape later.
// Read next: huggingface_config.cpp; checkpoint/huggingface.h for the weights beside the file.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "model/architectures.h"

namespace picotron {

// Reads the contents of a Hugging Face config.json; `file` is for messages. Every number is checked
// (sign, size, divisibility). Throws UserError naming the file and the key: a model that is not
// Llama, an activation that is not SiLU, a RoPE scaling that is not Llama 3's.
LlamaConfig from_huggingface(const nlohmann::json& contents, const std::string& file);

// The same, from a file or from a folder that holds config.json.
LlamaConfig read_huggingface_config(const std::string& file_or_folder);

// The config.json that transformers 4 and 5 both read. `dtype` is that of the weights beside it.
nlohmann::json to_huggingface(const LlamaConfig& config, DType dtype);

}  // namespace picotron
