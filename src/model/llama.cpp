// The parameters, one layer forward and one backward, then the stage made of layers. Read it beside
// the formulas of llama.h.
#include "model/llama.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "core/error.h"
#include "kernels/swiglu.h"

namespace picotron {

Llama::Llama(const LlamaConfig& config, const Mesh& mesh, const Options& options)
    : config_(config) {
  const Group& tp = mesh.tp;
  const Body body = body_ = options.body;
  if (config.num_attention_heads % tp.size() != 0 || config.num_key_value_heads % tp.size() != 0) {
    throw user_error(
        "tp_size {} does not divide num_attention_heads {} and num_key_value_heads {}; "
        "use tp_size 1",
        tp.size(), config.num_attention_heads, config.num_key_value_heads);
  }
  heads_ = config.num_attention_heads / tp.size();
  key_value_heads_ = config.num_key_value_heads / tp.size();
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q_size = config.num_attention_heads * config.head_dim;
  const int64_t kv_size = config.num_key_value_heads * config.head_dim;
  const auto norm = [&](const std::string& name) {
    return Norm::declare(parameters_, name, hidden, config.rms_norm_eps, body, tp);
  };
  embedding_ = {VocabMatrix::declare(parameters_, "model.embed_tokens.weight", Role::embedding,
                                     config.vocab_size, hidden, tp)};
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    Layer layer;
    layer.input_norm = norm(prefix + "input_layernorm");
    layer.qkv_proj = ColumnParallelLinear::declare(
        parameters_, attention, {{"q_proj", q_size}, {"k_proj", kv_size}, {"v_proj", kv_size}},
        hidden, config.attention_bias, tp);
    layer.o_proj = RowParallelLinear::declare(parameters_, attention + "o_proj", hidden, q_size,
                                              config.attention_bias, tp);
    layer.post_attention_norm = norm(prefix + "post_attention_layernorm");
    layer.gate_up_proj = ColumnParallelLinear::declare(
        parameters_, mlp, {{"gate_proj", inner}, {"up_proj", inner}}, hidden, config.mlp_bias, tp);
    layer.down_proj = RowParallelLinear::declare(parameters_, mlp + "down_proj", hidden, inner,
                                                 config.mlp_bias, tp);
    layers_.push_back(layer);
  }
  final_norm_ = norm("model.norm");
  if (config.tie_word_embeddings) {
    head_ = {embedding_, body};
    embedding_.weight->uses = 2;
  } else {
    head_ = {VocabMatrix::declare(parameters_, "lm_head.weight", Role::linear, config.vocab_size,
                                  hidden, tp),
             body};
  }
  parameters_.allocate(options.tensors);
  rope_ =
      rope_tables(options.max_positions, config.head_dim, config.rope_theta, config.rope_scaling,
                  c10::typeMetaToScalarType(options.tensors.dtype()), options.tensors.device());
}

Llama::Heads Llama::split_heads(const at::Tensor& qkv, const TokenBatch& batch) const {
  const at::Tensor all =
      qkv.view({batch.rows, batch.columns, heads_ + 2 * key_value_heads_, config_.head_dim})
          .transpose(1, 2);
  return {all.narrow(1, 0, heads_), all.narrow(1, heads_, key_value_heads_),
          all.narrow(1, heads_ + key_value_heads_, key_value_heads_)};
}

void Llama::layer_forward(const Layer& layer, const TokenBatch& batch, at::Tensor& x,
                          at::Tensor& delta, LayerSaved& saved) {
  const int64_t tokens = batch.rows * batch.columns;
  const AddNormOutput first = layer.input_norm.forward(x, delta);
  saved.x = first.sum, saved.n1 = first.y, saved.rstd1 = first.rstd;
  saved.qkv = layer.qkv_proj.forward(saved.n1);  // [tokens, (heads + 2 kv heads)/tp · head_dim]
  apply_rope_(
      saved.qkv.view({tokens, -1, config_.head_dim}).narrow(1, 0, heads_ + key_value_heads_),
      batch.positions, rope_, /*inverse=*/false, body_);
  const Heads heads = split_heads(saved.qkv, batch);
  saved.attention =
      attention(heads.q, heads.k, heads.v, /*causal=*/true, 1 / std::sqrt(config_.head_dim));
  const at::Tensor attended =
      layer.o_proj.forward(saved.attention.out.transpose(1, 2).reshape({tokens, -1}));

  const AddNormOutput second = layer.post_attention_norm.forward(saved.x, attended);
  saved.mid = second.sum, saved.n2 = second.y, saved.rstd2 = second.rstd;
  saved.gate_up = layer.gate_up_proj.forward(saved.n2);  // [tokens, 2 · intermediate/tp]
  saved.act = swiglu(saved.gate_up, body_);
  x = saved.mid;
  delta = layer.down_proj.forward(saved.act);
}

at::Tensor Llama::layer_backward(const Layer& layer, const TokenBatch& batch, const at::Tensor& dx,
                                 LayerSaved& saved, Gradients& gradients) {
  const int64_t tokens = batch.rows * batch.columns;
  const at::Tensor dact = layer.down_proj.backward(dx, saved.act, gradients);
  const at::Tensor dgate_up = swiglu_backward(dact, saved.gate_up, body_);
  const at::Tensor dn2 = layer.gate_up_proj.backward(dgate_up, saved.n2, gradients);
  const at::Tensor dmid =
      layer.post_attention_norm.backward(dn2, saved.mid, saved.rstd2, dx, gradients);

  const at::Tensor out = saved.attention.out.transpose(1, 2).reshape({tokens, -1});
  const at::Tensor dout = layer.o_proj.backward(dmid, out, gradients)
                              .view({batch.rows, batch.columns, heads_, config_.head_dim})
                              .transpose(1, 2);
  const Heads heads = split_heads(saved.qkv, batch);
  const at::Tensor dqkv = at::empty_like(saved.qkv);
  const Heads into = split_heads(dqkv, batch);
  attention_backward_into({into.q, into.k, into.v}, dout, heads.q, heads.k, heads.v,
                          saved.attention, /*causal=*/true, 1 / std::sqrt(config_.head_dim));
  apply_rope_(dqkv.view({tokens, -1, config_.head_dim}).narrow(1, 0, heads_ + key_value_heads_),
              batch.positions, rope_, /*inverse=*/true, body_);
  const at::Tensor dn1 = layer.qkv_proj.backward(dqkv, saved.n1, gradients);
  return layer.input_norm.backward(dn1, saved.x, saved.rstd1, dmid, gradients);
}

at::Tensor Llama::forward(int /*chunk*/, const TokenBatch& batch, const at::Tensor& /*x*/,
                          std::unique_ptr<Saved>& saved) {
  auto kept = std::make_unique<LlamaSaved>();
  kept->layers.resize(layers_.size());
  at::Tensor x = embedding_.forward(batch.ids);  // [tokens, hidden]
  at::Tensor delta;
  for (size_t i = 0; i < layers_.size(); ++i)
    layer_forward(layers_[i], batch, x, delta, kept->layers[i]);
  kept->final = final_norm_.forward(x, delta);
  const at::Tensor y = kept->final.y;
  saved = std::move(kept);
  return y;
}

at::Tensor Llama::backward(int /*chunk*/, const TokenBatch& batch, const at::Tensor& /*dy*/,
                           std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                           Gradients& gradients) {
  auto& kept = static_cast<LlamaSaved&>(*saved);
  auto [sum_of_losses, dnormed] =
      head_.loss_and_gradient(kept.final.y, batch.targets, scale, gradients);
  loss.add_(sum_of_losses);
  at::Tensor dx = final_norm_.backward(dnormed, kept.final.sum, kept.final.rstd, {}, gradients);
  for (size_t i = layers_.size(); i-- > 0;) {
    dx = layer_backward(layers_[i], batch, dx, kept.layers[i], gradients);
    kept.layers[i] = {};  // frees this layer's activations while backward goes on
  }
  embedding_.backward(dx, batch.ids, gradients);
  return {};
}

at::Tensor Llama::hidden_states(const TokenBatch& batch) {
  at::Tensor x = embedding_.forward(batch.ids);
  at::Tensor delta;
  for (const Layer& layer : layers_) {
    LayerSaved saved;
    layer_forward(layer, batch, x, delta, saved);
  }
  return final_norm_.forward(x, delta).y;
}

at::Tensor Llama::evaluate(const TokenBatch& batch) {
  return head_.loss(hidden_states(batch), batch.targets);
}

at::Tensor Llama::logits(const TokenBatch& batch) {
  return head_.logits(hidden_states(batch));
}

at::Tensor Llama::next_token_logits(const TokenBatch& batch) {
  const at::Tensor last =
      hidden_states(batch).view({batch.rows, batch.columns, -1}).select(1, batch.columns - 1);
  return head_.logits(last.contiguous());
}

}  // namespace picotron
