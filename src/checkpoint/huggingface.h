// A Hugging Face model folder, in and out:
//
//     config.json               the architecture (model/huggingface_config.h)
//     model.safetensors         the weights (safetensors.h); above 5 GB several files, and
//                               model.safetensors.index.json, which says what is where
//     generation_config.json    which tokens begin and end a text
//
// Tensors are mapped, never loaded whole: each is read, cut to the shard that lives here, converted
// and forgotten. A folder is written beside its place, flushed, then renamed: it is there whole or
// not at all. Weights keep the names of transformers' LlamaForCausalLM, which are Parameter::name.
// Read next: huggingface.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "model/architectures.h"
#include "parallel/parameter.h"

namespace picotron {

// Name and full shape of every tensor that a folder of this architecture holds.
std::map<std::string, std::vector<int64_t>> huggingface_tensors(const LlamaConfig& config);

// Fills a flat buffer of the layout of `parameters` with the weights of `folder`: this rank's shard
// of each, converted from float64, float32, float16 or bfloat16 to the buffer's dtype. `flat` is
// parameters.flat(), or another of as many elements (fp32 for the master weights of a bf16 model).
// The folder must hold the architecture's tensors, all of them and no others; what transformers
// ignores too is passed over: rotary_emb.inv_freq, and the second copy of a tied head. UserError
// naming folder or file and tensor.
void load_huggingface(const std::filesystem::path& folder, const LlamaConfig& config,
                      const Parameters& parameters, const at::Tensor& flat);
void load_huggingface(const std::filesystem::path& folder, const LlamaConfig& config,
                      const Parameters& parameters);

struct SaveOptions {
  std::optional<DType> dtype = {};  // of the weights in the files; null: the buffer's own
  std::string tokenizer = {};       // what turns text into this model's tokens: "bytes"; "": unsaid
  int64_t file_bytes = 5'000'000'000;  // above it the next file begins
};

// Writes `folder` from a model that is whole on this rank. Parents are made. A model folder that is
// there is replaced in one step; a folder that holds anything else is a UserError. RunError where
// the disk is full.
void save_huggingface(const std::filesystem::path& folder, const LlamaConfig& config,
                      const Parameters& parameters, const SaveOptions& options);

// The files beside the weights, by name: config.json, generation_config.json.
std::map<std::string, std::string> huggingface_texts(const LlamaConfig& config, DType dtype,
                                                     const std::string& tokenizer);

// Copies a model folder, tokenizer files included, and converts its weights where a dtype is given.
// One tensor is in memory at a time. Returns the bytes of weights written.
int64_t copy_huggingface(const std::filesystem::path& from, const std::filesystem::path& to,
                         std::optional<DType> dtype);

// SaveOptions::tokenizer of a folder we wrote; "" where its config.json does not say.
std::string tokenizer_of(const std::filesystem::path& folder);

// What a person means by a checkpoint: a model folder itself, a step's folder (its model/), or a
// save_dir (the newest step that has one). UserError where there is none.
std::filesystem::path find_model_folder(const std::filesystem::path& path);

}  // namespace picotron
