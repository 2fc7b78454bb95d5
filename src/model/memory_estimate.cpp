// The table of memory_estimate.h, multiplied out.
#include "model/memory_estimate.h"

#include <algorithm>

namespace picotron {
namespace {

struct Bytes {
  double compute, gradient, optimizer;  // per number; optimizer: master weights and two moments
};

Bytes bytes_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return {2, 4, 12};
    case DType::float32:
      return {4, 4, 8};
    case DType::float64:
      return {8, 8, 16};
  }
  return {};
}

double real(int64_t value) {
  return static_cast<double>(value);
}

double activations(const RunShape& shape, const Bytes& bytes) {
  const double query = real(shape.heads) * real(shape.head_dim);
  const double qkv = query + 2 * real(shape.key_value_heads) * real(shape.head_dim);
  const double hidden = real(shape.hidden), intermediate = real(shape.intermediate);
  const double statistic = std::max(4.0, bytes.compute);  // log-sum-exp and norms are never bf16
  const double kept = bytes.compute * (4 * hidden + qkv + query + 3 * intermediate) +
                      statistic * (real(shape.heads) + 2);
  // The backward of one layer, at its widest: dx, dact, dgate_up and dn2 beside what is kept.
  const double one_layer = bytes.compute * (2 * hidden + 3 * intermediate);
  // The head works on chunks of tokens whose logits take about 64 MB (vocab_parallel.cpp).
  const double chunk =
      std::min(real(shape.tokens), std::clamp(double{32 << 20} / real(shape.vocab), 256.0, 4096.0));
  const double head = bytes.compute * (chunk * real(shape.vocab) + real(shape.tokens) * hidden);
  const double last_norm = real(shape.tokens) * bytes.compute * 2 * hidden;
  return real(shape.tokens) * real(shape.layers) * kept + last_norm +
         std::max(head, real(shape.tokens) * one_layer);
}

}  // namespace

RunShape run_shape(const Config& config, const LlamaConfig& model, DType dtype) {
  return {.parameters = count_parameters(model),
          .hidden = model.hidden_size,
          .intermediate = model.intermediate_size,
          .layers = model.num_hidden_layers,
          .heads = model.num_attention_heads,
          .key_value_heads = model.num_key_value_heads,
          .head_dim = model.head_dim,
          .vocab = model.vocab_size,
          .tokens = config.training.micro_batch_size * config.training.seq_length,
          .replicas = config.distributed.dp_size * config.distributed.cp_size,
          .zero_stage = config.distributed.zero_stage,
          .dtype = dtype};
}

MemoryEstimate estimate_memory(const RunShape& shape) {
  const Bytes bytes = bytes_of(shape.dtype);
  const double shards = shape.zero_stage == 1 ? real(shape.replicas) : 1;
  return {.weights = bytes.compute * real(shape.parameters),
          .gradients = bytes.gradient * real(shape.parameters),
          .optimizer = bytes.optimizer * real(shape.parameters) / shards,
          .activations = activations(shape, bytes)};
}

}  // namespace picotron
