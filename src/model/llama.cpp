// The parameters, one layer forward and one backward, then the stage that is made of layers.
#include "model/llama.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "core/error.h"
#include "kernels/swiglu.h"
#include "model/key_value_cache.h"

namespace picotron {

Llama::Llama(const LlamaConfig& c, const Mesh& mesh, const Options& options)
    : config_(c),
      mesh_(mesh),
      tp_(mesh, options.sequence_parallel),
      body_(options.body),
      recompute_(options.recompute) {
  const int64_t tp = mesh.tp.size(), sharing = mesh.key_value.size();
  check(c.num_attention_heads % tp == 0 && c.num_key_value_heads * sharing % tp == 0,
        "tp divides the heads");
  attention_ = {.attention = {&mesh.cp, 1 / std::sqrt(static_cast<double>(c.head_dim))},
                .key_value_heads = c.num_key_value_heads * sharing / tp,
                .head_dim = c.head_dim};
  const auto matrix = [&](const char* name, Role role) {
    return VocabMatrix::declare(parameters_, name, role, c.vocab_size, c.hidden_size, tp_);
  };
  const bool tied = c.tie_word_embeddings;
  if (mesh.is_first_stage()) embedding_ = {matrix("model.embed_tokens.weight", Role::embedding)};
  std::vector<Range> chunks = options.chunks;
  if (chunks.empty()) chunks = {{0, c.num_hidden_layers}};
  for (const Range& range : chunks) {
    std::vector<Layer>& layers = chunks_.emplace_back();
    for (int64_t i = range.begin; i < range.end; ++i) layers.push_back(declare_layer(i));
  }
  if (mesh.is_last_stage()) {
    final_norm_ =
        Norm::declare(parameters_, "model.norm", c.hidden_size, c.rms_norm_eps, body_, tp_);
    head_ = {!tied                   ? matrix("lm_head.weight", Role::linear)
             : mesh.is_first_stage() ? embedding_
                                     : matrix("model.embed_tokens.weight", Role::embedding),
             body_};
  }
  if (tied) tie(parameters_, embedding_.weight, head_.weight, mesh.tied);
  parameters_.allocate(options.tensors);
  rope_ = rope_tables(options.max_positions, c.head_dim, c.rope_theta, c.rope_scaling,
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

void Llama::rotate(const at::Tensor& qkv, const TokenBatch& batch, bool inverse) const {
  const at::Tensor heads = qkv.view({qkv.size(0), -1, config_.head_dim});
  const int64_t queries_and_keys = heads.size(1) - attention_.key_value_heads;
  apply_rope_(heads.narrow(1, 0, queries_and_keys), batch.positions, rope_, inverse, body_);
}

void Llama::layer_forward(const Layer& layer, const TokenBatch& batch, const at::Tensor& x,
                          const at::Tensor& delta, LayerSaved& saved) {
  saved.input = layer.input_norm.forward(x, delta);
  saved.qkv = layer.qkv_proj.forward(saved.input.y);
  rotate(saved.qkv, batch, /*inverse=*/false);
  saved.attention = batch.cache == nullptr ? attention_.forward(saved.qkv, batch)
                                           : batch.cache->attend(attention_, saved.qkv, batch.rows);
  const at::Tensor attended = layer.o_proj.forward(attention_.merge_heads(saved.attention));

  saved.mid = layer.post_attention_norm.forward(saved.input.sum, attended);
  saved.gate_up = layer.gate_up_proj.forward(saved.mid.y);
  saved.act = swiglu(saved.gate_up, body_);
}

at::Tensor Llama::layer_backward(const Layer& layer, const TokenBatch& batch, const at::Tensor& dx,
                                 LayerSaved& saved, Gradients& gradients) {
  if (!saved.qkv.defined()) layer_forward(layer, batch, saved.input.sum, {}, saved);
  if (!saved.attention.out.defined()) saved.attention = attention_.forward(saved.qkv, batch);
  if (!saved.act.defined()) saved.act = swiglu(saved.gate_up, body_);
  const at::Tensor dact = layer.down_proj.backward(dx, saved.act, gradients);
  const at::Tensor dgate_up = swiglu_backward(dact, saved.gate_up, body_);
  const at::Tensor dn2 = layer.gate_up_proj.backward(dgate_up, saved.mid.y, gradients);
  const at::Tensor dmid = layer.post_attention_norm.backward(dn2, saved.mid, dx, gradients);

  const at::Tensor dout =
      layer.o_proj.backward(dmid, attention_.merge_heads(saved.attention), gradients);
  const at::Tensor dqkv = attention_.backward(dout, saved.qkv, saved.attention, batch);
  rotate(dqkv, batch, /*inverse=*/true);
  const at::Tensor dn1 = layer.qkv_proj.backward(dqkv, saved.input.y, gradients);
  return layer.input_norm.backward(dn1, saved.input, dmid, gradients);
}

at::Tensor Llama::chunk_forward(int chunk, const TokenBatch& batch, const at::Tensor& input,
                                LlamaSaved* kept) {
  at::Tensor x = begins_with_ids(chunk) ? embedding_.forward(batch.ids) : input;
  at::Tensor delta;
  for (const Layer& layer : chunks_.at(static_cast<size_t>(chunk))) {
    LayerSaved saved;
    layer_forward(layer, batch, x, delta, saved);
    x = saved.mid.sum;
    delta = layer.down_proj.forward(saved.act);
    if (kept == nullptr) continue;
    if (recompute_ == Recompute::full) saved = LayerSaved{.input = {.sum = saved.input.sum}};
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
  auto* kept = new LlamaSaved;  // its owner knows it as Saved
  saved.reset(kept);
  return chunk_forward(chunk, batch, x, kept);
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
    dx = final_norm_.backward(dnormed, kept.final, {}, gradients);
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
