// What a Llama is, in numbers. Every matrix of the model has its shape from these fields:
//
//   embedding    vocab x hidden                      q_proj  (heads * head_dim) x hidden
//   k, v_proj    (kv_heads * head_dim) x hidden      o_proj  hidden x (heads * head_dim)
//   gate, up     intermediate x hidden               down    hidden x intermediate
//   norms        hidden, two per layer and a last    head    vocab x hidden, or the embedding
//
// The numbers come from a Hugging Face config.json (huggingface_config.h), from the table of
// published models (known_architectures.h), or from the keys under `model` of our own
// configuration, which override either.
// Papers: Touvron et al. 2023 (Llama), Ainslie et al. 2023 (grouped key/value heads).
// Read next: architectures.cpp, then llama.h.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "core/config.h"
#include "kernels/rope.h"

namespace picotron {

struct LlamaConfig {
  std::string name;  // the hub id, the folder, or "custom": for messages alone
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // divides num_attention_heads
  int64_t head_dim = 0;             // even, for RoPE turns pairs; need not be hidden / heads
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  double initializer_range = 0.02;
  std::optional<RopeScaling> rope_scaling;  // Llama 3; absent: plain RoPE
  bool tie_word_embeddings = false;         // the head is the embedding
  bool attention_bias = false;              // on q, k, v and o
  bool mlp_bias = false;                    // on gate, up and down
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;  // the first one, where the file lists several
};

// The architecture that `model` of a configuration asks for. `name` is a folder with config.json or
// a name of the table; `init_from` alone (name null) implies its own; with neither, the keys say it
// all (hidden_size, num_hidden_layers and num_attention_heads must be there), and the vocabulary is
// the data set's. Keys given under `model` override the named ones; what the named model derives
// from an overridden key (head_dim, key/value heads equal to the heads) follows.
LlamaConfig resolve_architecture(const ModelKeys& keys, std::optional<int64_t> dataset_vocab_size);

// Throws UserError, opening with `source`, when the numbers make no model.
void check_architecture(const LlamaConfig& config, const std::string& source);

// Stored numbers: a tied head counts once.
int64_t count_parameters(const LlamaConfig& config);

// Floating-point operations of forward and backward for one token. Two definitions are in use:
//   reference: 6 (stored parameters) + 12 layers hidden seq. What published MFU figures divide by.
//   hardware:  6 (weights used in matrix products) + 6 layers heads head_dim seq. What causal
//              attention really multiplies: the head counts once even when tied, the embedding's
//              lookup and the norms not at all.
double reference_flops_per_token(const LlamaConfig& config, int64_t seq_length);
double hardware_flops_per_token(const LlamaConfig& config, int64_t seq_length);

}  // namespace picotron
