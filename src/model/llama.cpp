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
    : config_(config),
      tp_(mesh, options.sequence_parallel),
      body_(options.body),
      recompute_(options.recompute),
      is_first_stage_(mesh.is_first_stage()),
      is_last_stage_(mesh.is_last_stage()),
      attention_{&mesh.cp, 1 / std::sqrt(static_cast<double>(config.head_dim))} {
  const int64_t tp = mesh.tp.size(), sharing = mesh.key_value.size();
  check(config.num_attention_heads % tp == 0 && config.num_key_value_heads * sharing % tp == 0,
        "tp divides the heads");
  heads_ = config.num_attention_heads / tp;
  key_value_heads_ = config.num_key_value_heads * sharing / tp;
  const auto matrix = [&](const char* name, Role role) {
    return VocabMatrix::declare(parameters_, name, role, config.vocab_size, config.hidden_size,
                                tp_);
  };
  const bool tied = config.tie_word_embeddings;
  if (is_first_stage_) embedding_ = {matrix("model.embed_tokens.weight", Role::embedding)};
  std::vector<Range> chunks = options.chunks;
  if (chunks.empty()) chunks = {{0, config.num_hidden_layers}};
  for (const Range& range : chunks) {
    std::vector<Layer>& layers = chunks_.emplace_back();
    for (int64_t i = range.begin; i < range.end; ++i) layers.push_back(declare_layer(i));
  }
  if (is_last_stage_) {
    final_norm_ = Norm::declare(parameters_, "model.norm", config.hidden_size, config.rms_norm_eps,
                                body_, tp_);
    head_ = {!tied             ? matrix("lm_head.weight", Role::linear)
             : is_first_stage_ ? embedding_
                               : matrix("model.embed_tokens.weight", Role::embedding),
             body_};
  }
  if (tied) tie(parameters_, embedding_.weight, head_.weight, mesh.tied);
  parameters_.allocate(options.tensors);
  rope_ =
      rope_tables(options.max_positions, config.head_dim, config.rope_theta, config.rope_scaling,
                  c10::typeMetaToScalarType(options.tensors.dtype()), options.tensors.device());
}

Llama::Layer Llama::declare_layer(int64_t index) {
  const LlamaConfig& c = config_;
  const std::string layer = fmt::format("model.layers.{}.", index);
  const int64_t q_size = c.num_attention_heads * c.head_dim;
  const int64_t kv_size = c.num_key_value_heads * c.head_dim;
  const auto norm = [&](const char* name) {
    return Norm::declare(parameters_, layer + name, c.hidden_size, c.rms_norm_eps, body_, tp_);
  };
  const auto columns = [&](const char* in, const std::vector<Output>& outputs, bool bias) {
    return ColumnParallelLinear::declare(parameters_, layer + in, outputs, c.hidden_size, bias,
                                         tp_);
  };
  const auto rows = [&](const char* name, int64_t in, bool bias) {
    return RowParallelLinear::declare(parameters_, layer + name, c.hidden_size, in, bias, tp_);
  };
  return {norm("input_layernorm"),
          columns("self_attn.",
                  {{"q_proj", q_size}, {"k_proj", kv_size, true}, {"v_proj", kv_size, true}},
                  c.attention_bias),
          rows("self_attn.o_proj", q_size, c.attention_bias),
          norm("post_attention_layernorm"),
          columns("mlp.", {{"gate_proj", c.intermediate_size}, {"up_proj", c.intermediate_size}},
                  c.mlp_bias),
          rows("mlp.down_proj", c.intermediate_size, c.mlp_bias)};
}

void Llama::attend(const TokenBatch& batch, LayerSaved& saved) const {
  const auto [q, k, v] = heads_of(saved.qkv, batch);
  saved.attention = attention_.forward(q, k, v);
}

void Llama::layer_forward(const Layer& layer, const TokenBatch& batch, const at::Tensor& x,
                          const at::Tensor& delta, LayerSaved& saved) {
  const int64_t tokens = batch.rows * batch.columns;
  const AddNormOutput first = layer.input_norm.forward(x, delta);
  saved.x = first.sum, saved.n1 = first.y, saved.rstd1 = first.rstd;
  saved.qkv = layer.qkv_proj.forward(saved.n1);  // [tokens, (heads + 2 kv heads)/tp · head_dim]
  apply_rope_(
      saved.qkv.view({tokens, -1, config_.head_dim}).narrow(1, 0, heads_ + key_value_heads_),
      batch.positions, rope_, /*inverse=*/false, body_);
  attend(batch, saved);
  const at::Tensor attended =
      layer.o_proj.forward(saved.attention.out.transpose(1, 2).reshape({tokens, -1}));

  const AddNormOutput second = layer.post_attention_norm.forward(saved.x, attended);
  saved.mid = second.sum, saved.n2 = second.y, saved.rstd2 = second.rstd;
  saved.gate_up = layer.gate_up_proj.forward(saved.n2);  // [tokens, 2 · intermediate/tp]
  saved.act = swiglu(saved.gate_up, body_);
}

at::Tensor Llama::layer_backward(const Layer& layer, const TokenBatch& batch, const at::Tensor& dx,
                                 LayerSaved& saved, Gradients& gradients) {
  if (!saved.qkv.defined()) layer_forward(layer, batch, saved.x, {}, saved);
  if (!saved.attention.out.defined()) attend(batch, saved);
  if (!saved.act.defined()) saved.act = swiglu(saved.gate_up, body_);
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
  const auto [q, k, v] = heads_of(saved.qkv, batch);
  const AttentionGradients d = attention_.backward(dout, q, k, v, saved.attention);
  const at::Tensor dqkv = at::empty_like(saved.qkv);
  const Heads into = heads_of(dqkv, batch);
  into.q.copy_(d.dq), into.k.copy_(d.dk), into.v.copy_(d.dv);
  apply_rope_(dqkv.view({tokens, -1, config_.head_dim}).narrow(1, 0, heads_ + key_value_heads_),
              batch.positions, rope_, /*inverse=*/true, body_);
  const at::Tensor dn1 = layer.qkv_proj.backward(dqkv, saved.n1, gradients);
  return layer.input_norm.backward(dn1, saved.x, saved.rstd1, dmid, gradients);
}

at::Tensor Llama::chunk_forward(int chunk, const TokenBatch& batch, const at::Tensor& input,
                                LlamaSaved* kept) {
  at::Tensor x = begins_with_ids(chunk) ? embedding_.forward(batch.ids) : input;
  at::Tensor delta;
  for (const Layer& layer : chunks_.at(static_cast<size_t>(chunk))) {
    LayerSaved saved;
    layer_forward(layer, batch, x, delta, saved);
    x = saved.mid;
    delta = layer.down_proj.forward(saved.act);
    if (kept == nullptr) continue;
    if (recompute_ == Recompute::full) saved = LayerSaved{.x = saved.x};
    if (recompute_ == Recompute::selective) saved.attention = {}, saved.act.reset();
    kept->layers.push_back(std::move(saved));
  }
  if (!ends_with_loss(chunk)) return x + delta;
  const AddNormOutput final = final_norm_.forward(x, delta);
  if (kept != nullptr) kept->final = final;
  return final.y;
}

at::Tensor Llama::forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                          std::unique_ptr<Saved>& saved) {
  auto kept = std::make_unique<LlamaSaved>();
  const at::Tensor y = chunk_forward(chunk, batch, x, kept.get());
  saved = std::move(kept);
  return y;
}

at::Tensor Llama::backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                           std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                           Gradients& gradients) {
  auto& kept = static_cast<LlamaSaved&>(*saved);
  at::Tensor dx = dy;
  if (ends_with_loss(chunk)) {
    auto [sum_of_losses, dnormed] =
        head_.loss_and_gradient(kept.final.y, batch.targets, scale, gradients);
    loss.add_(sum_of_losses);
    dx = final_norm_.backward(dnormed, kept.final.sum, kept.final.rstd, {}, gradients);
    kept.final = {};
  }
  const std::vector<Layer>& layers = chunks_.at(static_cast<size_t>(chunk));
  for (size_t i = layers.size(); i-- > 0;) {
    dx = layer_backward(layers[i], batch, dx, kept.layers[i], gradients);
    kept.layers[i] = {};  // frees this layer's activations while backward goes on
  }
  if (!begins_with_ids(chunk)) return dx;
  embedding_.backward(dx, batch.ids, gradients);
  return {};
}

at::Tensor Llama::evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                           const at::Tensor& loss) {
  const at::Tensor y = chunk_forward(chunk, batch, x, nullptr);
  if (!ends_with_loss(chunk)) return y;
  loss.add_(head_.loss(y, batch.targets));
  return {};
}

at::Tensor Llama::empty_input(const TokenBatch& batch) const {
  const int64_t ranks = tp_.sequence_parallel ? tp_.group->size() : 1;
  return at::empty({batch.rows * batch.columns / ranks, config_.hidden_size},
                   parameters_.flat().options());
}

}  // namespace picotron
