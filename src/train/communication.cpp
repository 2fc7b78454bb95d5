// Counts collectives as the layers call them; each comment names the calls.
#include "train/communication.h"

#include <algorithm>

#include "parallel/context_parallel.h"

namespace picotron {
namespace {

using record::Axis;

class Counter {
 public:
  Counter(const Config& config, const LlamaConfig& model, c10::ScalarType dtype, int64_t reduced)
      : d_(config.distributed),
        model_(model),
        dtype_(dtype),
        recompute_(config.training.recompute),
        microbatches_(gradient_accumulation_steps(config)),
        rows_(config.training.micro_batch_size),
        columns_(config.training.seq_length / d_.cp_size),
        replicas_(d_.dp_size * d_.cp_size),
        size_(static_cast<int64_t>(c10::elementSize(dtype))),
        wide_(dtype == c10::kDouble ? 8 : 4),
        reduced_(reduced) {}

  std::vector<Volume> count() {
    if (d_.tp_size > 1) tensor_parallel();
    if (d_.cp_size > 1) context_parallel();
    if (d_.pp_size > 1) pipeline_parallel();
    if (replicas_ > 1) data_parallel();
    // The norm's sum of squares: one float64, all-reduced.
    const int64_t world = replicas_ * d_.pp_size * d_.tp_size;
    if (world > 1) add(Axis::world, "gradient norm", "2 (ranks − 1) · 8", 2 * (world - 1) * 8);
    return std::move(volumes_);
  }

 private:
  void add(Axis axis, const char* what, const char* formula, int64_t bytes) {
    if (bytes > 0) volumes_.push_back({axis, what, formula, bytes});
  }

  void tensor_parallel() {
    const int64_t t = d_.tp_size, layers = model_.num_hidden_layers, hidden = model_.hidden_size;
    const int64_t tokens = rows_ * columns_;
    const bool cut = d_.sequence_parallel;
    const int64_t unit = (t - 1) * tokens * hidden * size_;  // U
    const int64_t m = microbatches_ * replicas_;
    // A layer: o_proj's and down_proj's outputs are all-reduced; cut, they are reduce-scattered and
    // the inputs of qkv_proj and gate_up_proj gathered. The embedding's output is all-reduced or
    // reduce-scattered; the head gathers its input if it is cut.
    add(Axis::tp, "activations, forward", "m (4 L + 2) U", m * (4 * layers + 2) * unit);
    // A layer: the input gradients of qkv_proj and gate_up_proj are all-reduced; cut, they are
    // reduce-scattered, dy of o_proj and down_proj gathered, and the two inputs once more. The
    // head's input gradient as a layer's; the embedding gathers dy if it is cut.
    add(Axis::tp, "activations, backward", cut ? "m (6 L + 2) U" : "m (4 L + 2) U",
        m * ((cut ? 6 : 4) * layers + 2) * unit);
    // All of a layer's forward but down_proj.
    if (recompute_ == Recompute::full)
      add(Axis::tp, "activations, again", cut ? "m 3 L U" : "m 2 L U",
          m * (cut ? 3 : 2) * layers * unit);
    // Maximum, Σ exp and target's logit of each token, from each rank, gathered.
    add(Axis::tp, "loss", "m (t − 1) t · 3 tokens · w", m * (t - 1) * t * 3 * tokens * wide_);

    // Once a step: gradients of which each rank has a part.
    const int64_t sharing = std::max<int64_t>(1, t / model_.num_key_value_heads);
    const int64_t rows = 2 * model_.num_key_value_heads * model_.head_dim;  // of k and v
    const int64_t numbers = rows * (hidden + (model_.attention_bias ? 1 : 0));
    add(Axis::tp, "key/value gradients", "dp·cp · 2 (ranks of a head − 1) L · (k, v) · w",
        replicas_ * 2 * (sharing - 1) * layers * numbers * wide_);
    const int64_t biases = (model_.attention_bias ? 1 : 0) + (model_.mlp_bias ? 1 : 0);
    if (cut)
      add(Axis::tp, "norm and bias gradients",
          "dp·cp · 2 (t − 1) (2 L + 1 + biases of rows) hidden · w",
          replicas_ * 2 * (t - 1) * (2 * layers + 1 + layers * biases) * hidden * wide_);
  }

  // One ring per layer and direction, on every rank that has the layer.
  void context_parallel() {
    const int64_t sharing = std::max<int64_t>(1, d_.tp_size / model_.num_key_value_heads);
    const int64_t heads = model_.num_key_value_heads * sharing / d_.tp_size;
    const RingBytes ring =
        ring_bytes({rows_, heads, columns_, model_.head_dim}, dtype_, static_cast<int>(d_.cp_size));
    const int64_t calls = microbatches_ * replicas_ * d_.tp_size * model_.num_hidden_layers;
    add(Axis::cp, "keys and values, forward", "m t L (c − 1) · (k, v) · size",
        calls * ring.forward);
    if (recompute_ != Recompute::none)
      add(Axis::cp, "keys and values, again", "m t L (c − 1) · (k, v) · size",
          calls * ring.forward);
    add(Axis::cp, "keys, values and gradients, backward", "m t L (c − 1) · (k, v) · (size + w)",
        calls * ring.backward);
  }

  void pipeline_parallel() {
    // Between virtual stages, there and back; under sequence parallel each rank sends its tokens.
    const int64_t links = d_.pp_size * d_.pp_chunks - 1;
    const int64_t senders = d_.sequence_parallel ? 1 : d_.tp_size;
    const int64_t stream = rows_ * columns_ * model_.hidden_size * size_;
    add(Axis::pp, "activations and their gradients",
        d_.sequence_parallel ? "m · 2 (V − 1) tokens · hidden · size"
                             : "m t · 2 (V − 1) tokens · hidden · size",
        microbatches_ * replicas_ * senders * 2 * links * stream);
    // The last stage sends its gradient to the first, which sends back the new values.
    if (model_.tie_word_embeddings)
      add(Axis::pp, "tied embedding", "dp·cp · vocabulary · hidden · (w + size)",
          replicas_ * model_.vocab_size * model_.hidden_size * (wide_ + size_));
  }

  void data_parallel() {
    const bool sharded = d_.zero_stage == 1;
    add(Axis::dp_cp, "gradients", sharded ? "(R − 1) · numbers · w" : "2 (R − 1) · numbers · w",
        (sharded ? 1 : 2) * (replicas_ - 1) * reduced_ * wide_);
    if (sharded)
      add(Axis::dp_cp, "new weights", "(R − 1) · numbers · size",
          (replicas_ - 1) * reduced_ * size_);
  }

  const Distributed& d_;
  const LlamaConfig& model_;
  const c10::ScalarType dtype_;
  const Recompute recompute_;
  const int64_t microbatches_, rows_, columns_;  // rows, columns: of a microbatch on a rank
  const int64_t replicas_;                       // dp · cp
  const int64_t size_, wide_;
  const int64_t reduced_;
  std::vector<Volume> volumes_;
};

}  // namespace

std::vector<Volume> communication(const Config& config, const LlamaConfig& model,
                                  c10::ScalarType dtype, int64_t reduced) {
  return Counter(config, model, dtype, reduced).count();
}

record::Bytes sum_of(const std::vector<Volume>& volumes) {
  record::Bytes bytes{};
  for (const Volume& volume : volumes) bytes[static_cast<size_t>(volume.axis)] += volume.bytes;
  return bytes;
}

}  // namespace picotron
