// Small Llamas with odd sizes, and the whole model once more in plain ATen operators: the
// definition that the written forward and backward are held against. Nothing here calls a kernel of
// ours.
#pragma once
#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "kernels_support.h"
#include "model/llama.h"

namespace picotron {

// Hidden 10, three heads of 4 (not hidden / heads), inner 7, 2 layers, vocabulary 13.
inline LlamaConfig tiny_llama() {
  return {.name = "tiny",
          .vocab_size = 13,
          .hidden_size = 10,
          .intermediate_size = 7,
          .num_hidden_layers = 2,
          .num_attention_heads = 3,
          .num_key_value_heads = 1,
          .head_dim = 4,
          .max_position_embeddings = 64,
          .rms_norm_eps = 1e-5,
          .rope_theta = 100.0};
}

// Values of a size at which every non-linearity bends: N(0, 0.5), norms around 1.
inline void fill_random(Parameters& parameters, uint64_t seed) {
  for (Parameter& parameter : parameters.list()) {
    const at::Tensor drawn = random_tensor(parameter.local_shape(), at::kDouble, seed++) * 0.5;
    parameter.value.copy_(parameter.role == Role::norm ? drawn + 1 : drawn);
  }
}

// Row r stands at positions r, r + 2, r + 4, …: not what a model that ignored them would assume.
inline TokenBatch random_batch(int64_t rows, int64_t columns, int64_t vocab, uint64_t seed) {
  const auto ids = [&](uint64_t of) {
    const at::Tensor real = random_tensor({rows * columns}, at::kDouble, of).abs() * 1000;
    return real.to(at::kLong).remainder(vocab);
  };
  const at::Tensor positions =
      at::arange(columns, at::kLong).mul(2).unsqueeze(0) + at::arange(rows, at::kLong).unsqueeze(1);
  return {rows, columns, ids(seed), ids(seed + 1), positions.reshape({-1})};
}

namespace plain {

using Named = std::map<std::string, at::Tensor>;  // by Hugging Face name

inline at::Tensor norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + eps) * weight;
}

inline at::Tensor linear(const at::Tensor& x, const Named& p, const std::string& name) {
  const at::Tensor y = x.matmul(p.at(name + ".weight").t());
  return p.contains(name + ".bias") ? y + p.at(name + ".bias") : y;
}

// Angle of each pair: [head_dim / 2].
inline at::Tensor inverse_frequencies(const LlamaConfig& config) {
  std::vector<double> result;
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const double f = std::pow(config.rope_theta, -double(i) / double(config.head_dim));
    double scaled = f;
    if (const auto& s = config.rope_scaling) {
      const auto original = static_cast<double>(s->original_max_position_embeddings);
      const double turns = original * f / (2 * std::numbers::pi);
      const double smooth =
          (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
      if (turns < s->low_freq_factor)
        scaled = f / s->factor;
      else if (turns <= s->high_freq_factor)
        scaled = (1 - smooth) * f / s->factor + smooth * f;
    }
    result.push_back(scaled);
  }
  return at::tensor(result, at::kDouble);
}

// x [tokens, heads, head_dim], as complex numbers a + ib times exp(i · angle).
inline at::Tensor rope(const at::Tensor& x, const at::Tensor& positions,
                       const LlamaConfig& config) {
  const at::Tensor angle =
      positions.to(at::kDouble).unsqueeze(1) * inverse_frequencies(config).unsqueeze(0);
  const at::Tensor cos = angle.cos().unsqueeze(1), sin = angle.sin().unsqueeze(1);
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

inline at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t repeat = q.size(1) / k.size(1), columns = q.size(2);
  const at::Tensor keys = k.repeat_interleave(repeat, 1), values = v.repeat_interleave(repeat, 1);
  const at::Tensor scores = q.matmul(keys.transpose(-1, -2)) / std::sqrt(double(q.size(3)));
  const at::Tensor future = at::ones({columns, columns}, at::kBool).triu(1);
  return scores.masked_fill(future, -INFINITY).softmax(-1).matmul(values);
}

// → logits [tokens, vocab]
inline at::Tensor logits(const LlamaConfig& config, const Named& p, const TokenBatch& batch) {
  const auto heads_of =
      [&](const at::Tensor& x) {  // [tokens, heads · d] → [rows, heads, columns, d]
        return x.view({batch.rows, batch.columns, -1, config.head_dim}).transpose(1, 2);
      };
  const auto rotated = [&](const at::Tensor& x) {
    const at::Tensor split = x.view({x.size(0), -1, config.head_dim});
    return rope(split, batch.positions, config).reshape({x.size(0), -1});
  };
  at::Tensor x = p.at("model.embed_tokens.weight").index_select(0, batch.ids);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attn = layer + "self_attn.", mlp = layer + "mlp.";
    at::Tensor n = norm(x, p.at(layer + "input_layernorm.weight"), config.rms_norm_eps);
    const at::Tensor attended = attention(heads_of(rotated(linear(n, p, attn + "q_proj"))),
                                          heads_of(rotated(linear(n, p, attn + "k_proj"))),
                                          heads_of(linear(n, p, attn + "v_proj")));
    x = x + linear(attended.transpose(1, 2).reshape({x.size(0), -1}), p, attn + "o_proj");
    n = norm(x, p.at(layer + "post_attention_layernorm.weight"), config.rms_norm_eps);
    const at::Tensor gate = linear(n, p, mlp + "gate_proj");
    x = x + linear(gate * gate.sigmoid() * linear(n, p, mlp + "up_proj"), p, mlp + "down_proj");
  }
  x = norm(x, p.at("model.norm.weight"), config.rms_norm_eps);
  return x.matmul(
      p.at(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight").t());
}

// → Σ of the tokens' losses, 0-dim
inline at::Tensor loss(const at::Tensor& logits, const at::Tensor& targets) {
  const at::Tensor log_probability = logits - logits.logsumexp(-1, /*keepdim=*/true);
  return -log_probability.gather(1, targets.unsqueeze(1)).sum();
}

}  // namespace plain
}  // namespace picotron
