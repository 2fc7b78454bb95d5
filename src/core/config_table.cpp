// Every key of config.json, one entry each: where it lives in Config, whose it is, what it means,
// what it may be. To add a key: a member in config.h, an entry here. To finish a feature: delete
// its `not_built`. The defaults are those of the struct's members; `picotron config --markdown`
// prints the result as docs/configuration.md.
#include "core/config_table.h"

#include <algorithm>
#include <type_traits>

#include "core/limits.h"

namespace picotron {

// An enum's names, in the order of its values.
#define CHOICES(Type, ...)                                     \
  static std::span<const std::string_view> names_of(Type) {    \
    static constexpr std::string_view names[] = {__VA_ARGS__}; \
    return names;                                              \
  }                                                            \
  std::string_view to_string(Type value) {                     \
    return names_of(value)[static_cast<size_t>(value)];        \
  }

CHOICES(PpEngine, "afab", "1f1b", "interleaved", "zb-h1")
CHOICES(Backend, "nccl", "gloo")
CHOICES(Balance, "layers", "flops")
CHOICES(Ranks, "processes", "threads")
CHOICES(DType, "float64", "float32", "bfloat16")
CHOICES(Init, "normal", "reference")
CHOICES(OptimizerKind, "adamw", "sgd")
CHOICES(Recompute, "none", "selective", "full")
CHOICES(LrSchedule, "constant", "cosine", "wsd")
CHOICES(WeightDecayOn, "all", "matrices")
CHOICES(Resume, "never", "auto")
#undef CHOICES

namespace config_table {
namespace {

template <class T>
Slot slot_of(T& member) {
  if constexpr (std::is_enum_v<T>) {
    return Choice{
        .names = names_of(member),
        .nullable = false,
        .get = [&member] { return std::optional(static_cast<size_t>(member)); },
        .set = [&member](std::optional<size_t> i) { member = static_cast<T>(i.value()); }};
  } else {
    return &member;
  }
}

template <class E>
requires std::is_enum_v<E> Slot slot_of(std::optional<E>& member) {
  return Choice{
      .names = names_of(E{}),
      .nullable = true,
      .get =
          [&member] { return member ? std::optional(static_cast<size_t>(*member)) : std::nullopt; },
      .set =
          [&member](std::optional<size_t> i) {
            if (i) {
              member = static_cast<E>(*i);
            } else {
              member.reset();
            }
          }};
}

constexpr Range from(double low, double high = std::numeric_limits<double>::infinity()) {
  return {.low = low, .high = high};
}
constexpr Range above(double low, double high) {
  return {.low = low, .high = high, .low_included = false};
}
constexpr Range between(double low, double high) {
  return {.low = low, .high = high, .low_included = false, .high_included = false};
}
constexpr Range up_to(int64_t high) {
  return from(1, static_cast<double>(high));
}
constexpr Range from_to_below(double low, double high) {
  return {.low = low, .high = high, .high_included = false};
}

// Limits far beyond any run, so that products of sizes stay within 64 bits.
constexpr Range ranks_of_an_axis = from(1, 65536);
constexpr Range steps = from(1, 1e9);
constexpr Range steps_or_off = from(0, 1e9);

constexpr std::string_view not_built(std::string_view instead) {
  return instead;
}

#define AT(section, key) \
#section, #key, [](Config & config) -> Slot { return slot_of(config.section.key); }
constexpr Origin reference = Origin::reference, ours = Origin::ours;

// clang-format off
const Field fields[] = {
  {AT(distributed, tp_size), reference, "Tensor parallel: ranks that share every layer's matrices.",
   ranks_of_an_axis, {}, "tp"},
  {AT(distributed, cp_size), reference, "Context parallel: ranks that share every sequence.",
   ranks_of_an_axis, {}, "cp"},
  {AT(distributed, pp_size), reference, "Pipeline parallel: stages that share the layers.",
   ranks_of_an_axis, {}, "pp"},
  {AT(distributed, dp_size), reference,
   "Data parallel: replicas, each with its own rows of the global batch.",
   ranks_of_an_axis, {}, "dp"},
  {AT(distributed, pp_engine), reference,
   "The pipeline's schedule; without pipeline parallelism it has no effect.",
   {}, {}, "pp_engine"},
  {AT(distributed, backend), reference, "The library that moves data between ranks.",
   {}, "nccl on a GPU, gloo on a CPU", "backend"},
  {AT(distributed, use_cpu), reference, "Train on the CPU.",
   {}, "a GPU where there is one", "use_cpu"},
  {AT(distributed, zero_stage), ours,
   "1 shards optimizer state and master weights over data and context parallel ranks; 0 does not.",
   from(0, 1), {}, "zero_stage"},
  {AT(distributed, sequence_parallel), ours,
   "Norms and residuals on shards of the sequence within a tensor parallel group.",
   {}, {}, "sequence_parallel"},
  {AT(distributed, pp_chunks), ours, "Chunks of layers per stage of the interleaved schedule.",
   from(1, 4096), {}, "pp_chunks"},
  {AT(distributed, balance), ours,
   "What the split of layers over stages evens out: their number or their work.",
   {}, {}, "balance"},
  {AT(distributed, mesh_order), ours,
   "The order of the axes over the ranks, innermost (fastest link) last.",
   {}, {}, "mesh_order"},
  {AT(distributed, ranks), ours,
   "Each rank a process, or all ranks threads of one process (on a CPU).",
   {}, {}, "ranks"},
  {AT(distributed, timeout_seconds), ours,
   "Seconds without an answer after which a rank counts as lost.",
   above(0, 1e6), {}, "timeout_seconds"},

  {AT(model, name), reference,
   "The architecture: a Hugging Face folder, a known name or a hub id; its weights are not read.",
   {}, "init_from's architecture, else what the keys below say", "model_name"},
  {AT(model, init_from), ours, "A Hugging Face folder whose weights are trained further.",
   {}, "random initial values", "init_from"},
  {AT(model, init), ours,
   "Initial values: N(0, initializer_range), or the reference's U(±1/√fan_in).",
   {}, {}, "init"},
  {AT(model, dtype), reference, "The precision of the computation; float64 is for tests, on a CPU.",
   {}, "bfloat16 where the machine is quick at it, else float32", "dtype"},
  {AT(model, num_hidden_layers), reference, "Transformer layers.",
   up_to(limits::kLayers), "the named model's", "num_hidden_layers"},
  {AT(model, num_attention_heads), reference, "Query heads of attention.",
   up_to(limits::kHeads), "the named model's", "num_attention_heads"},
  {AT(model, num_key_value_heads), reference,
   "Key/value heads of attention; divides num_attention_heads.",
   up_to(limits::kHeads), "the named model's, else num_attention_heads", "num_key_value_heads"},
  {AT(model, hidden_size), ours, "Width of the residual stream.",
   up_to(limits::kHidden), "the named model's", "hidden_size"},
  {AT(model, intermediate_size), ours, "Width of the feed-forward layer.",
   up_to(limits::kIntermediate), "the named model's", "intermediate_size"},
  {AT(model, vocab_size), ours, "Rows of the embedding.",
   up_to(limits::kVocabulary), "the named model's, else the data set's", "vocab_size"},
  {AT(model, max_position_embeddings), ours, "The longest sequence the model is described for.",
   up_to(limits::kPositions), "the named model's", "max_position_embeddings"},
  {AT(model, head_dim), ours, "Width of one attention head; even.",
   up_to(limits::kHeadDim),
   "the named model's, else hidden_size / num_attention_heads", "head_dim"},
  {AT(model, rms_norm_eps), ours, "Added to the mean square in RMSNorm.",
   between(0, 1), "the named model's", "rms_norm_eps"},
  {AT(model, rope_theta), ours, "Base of the rotary frequencies.",
   from(1, limits::kRopeTheta), "the named model's", "rope_theta"},
  {AT(model, rope_scaling), ours,
   "Llama 3's stretching of the rotary frequencies, as in a Hugging Face config.json.",
   {}, "the named model's"},
  {AT(model, initializer_range), ours, "Standard deviation of the initial weights.",
   from(0, limits::kInitializerRange), "the named model's", "initializer_range"},
  {AT(model, attention_bias), ours, "Biases in the attention's linear layers.",
   {}, "the named model's", "attention_bias"},
  {AT(model, mlp_bias), ours, "Biases in the feed-forward's linear layers.",
   {}, "the named model's", "mlp_bias"},
  {AT(model, tie_word_embeddings), ours, "The head is the embedding.",
   {}, "the named model's", "tie_word_embeddings"},
  {AT(model, use_flash_attention), reference,
   "Attention by the fused kernel; false computes it by its definition.",
   {}, {}, "use_flash_attention", not_built("attention is computed by the fused kernel")},
  {AT(model, use_fused_adam), reference,
   "AdamW in one pass over memory; false computes it by its definition.",
   {}, {}, "use_fused_adam"},

  {AT(training, seed), reference, "Seed of initial values and of the data's order.",
   from(0), {}, "seed"},
  {AT(training, learning_rate), reference, "The highest learning rate of the schedule.",
   from(0, 1e3), {}, "learning_rate"},
  {AT(training, total_train_steps), reference, "Optimizer steps of the run.",
   steps, {}, "total_train_steps"},
  {AT(training, seq_length), reference, "Tokens of a sequence.",
   from(1, 1 << 24), {}, "seq_len"},
  {AT(training, micro_batch_size), reference, "Sequences that a rank computes at once.",
   from(1, 1 << 20), {}, "mbs"},
  {AT(training, gradient_accumulation_steps), reference,
   "Micro batches per step on each rank; follows from global_batch_size where that is given.",
   from(1, 1 << 20), {}, "grad_acc_steps"},
  {AT(training, num_samples), reference, "Documents of a text data set to use, or rows of another.",
   from(1), "all", "num_samples"},
  {AT(training, max_tokens), reference,
   "The run ends at this many tokens if total_train_steps has not ended it.",
   from(1), "no limit", "max_tokens"},
  {AT(training, global_batch_size), ours,
   "Sequences per step over all ranks; fixes them whatever dp_size.",
   from(1, 1e12), "micro_batch_size · gradient_accumulation_steps · dp_size", "global_batch_size"},
  {AT(training, grad_clip), ours, "The largest global norm of the gradients; 0 does not clip.",
   from(0, 1e30), {}, "grad_clip"},
  {AT(training, optimizer), ours,
   "AdamW, or plain SGD (for checks: it does not hide a wrong scale).",
   {}, {}, "optimizer"},
  {AT(training, recompute), ours, "What the backward pass computes again in place of keeping it.",
   {}, {}, "recompute"},
  {AT(training, lr_schedule), ours,
   "Learning rate after the warm-up: constant; a half cosine; or warm-up, stable, linear "
   "decay (wsd).",
   {}, {}, "lr_schedule"},
  {AT(training, warmup_steps), ours, "Steps over which the learning rate rises linearly.",
   steps_or_off, {}, "warmup_steps"},
  {AT(training, min_lr_ratio), ours, "Cosine and wsd end at learning_rate times this.",
   from(0, 1), {}, "min_lr_ratio"},
  {AT(training, lr_decay_ratio), ours,
   "wsd: the part of total_train_steps, at its end, over which the learning rate decays.",
   from(0, 1), {}, "lr_decay_ratio"},
  {AT(training, weight_decay), ours, "AdamW's decoupled weight decay.",
   from(0, 1e3), {}, "weight_decay"},
  {AT(training, weight_decay_on), ours,
   "Weight decay on every parameter, as PyTorch has it, or on matrices only.",
   {}, {}, "weight_decay_on"},
  {AT(training, adam_beta1), ours, "Decay of AdamW's mean of gradients.",
   from_to_below(0, 1), {}, "adam_beta1"},
  {AT(training, adam_beta2), ours, "Decay of AdamW's mean of squared gradients.",
   from_to_below(0, 1), {}, "adam_beta2"},
  {AT(training, adam_eps), ours, "Added to the root in AdamW's quotient.",
   from(0, 1), {}, "adam_eps"},
  {AT(training, eval_interval), ours, "Steps between two validations; 0 is none.",
   steps_or_off, {}, "eval_interval"},
  {AT(training, eval_steps), ours, "Global batches of one validation.",
   steps, {}, "eval_steps"},

  {AT(dataset, name), reference,
   "builtin:stories, a .txt, .jsonl (.gz, .zst), .parquet or .npy (tokens) file, a folder of them, "
   "what prepare-data made, a hub id, or a mixture: \"0.7 a 0.3 b\".",
   {}, {}, "dataset"},
  {AT(dataset, subset_name), reference, "The subset of a hub data set.",
   {}, "its default one", "subset_name"},
  {AT(dataset, split), reference, "The split of a hub data set.",
   {}, {}, "split"},
  {AT(dataset, num_workers), reference, "Threads that prepare batches ahead.",
   from(0, 1024), {}, "num_workers", not_built("batches are prepared by the rank itself")},
  {AT(dataset, num_proc), reference, "Workers that tokenize.",
   from(1, 1024), {}, "num_proc"},
  {AT(dataset, tokenizer), ours,
   "What makes tokens of text: \"bytes\", a tokenizer.json, a tokenizer.model, or a folder or hub "
   "id of one.",
   {}, "the data set's own, else the model's", "tokenizer"},
  {AT(dataset, text_column), ours, "The key of .jsonl or column of .parquet that holds the text.",
   {}, {}, "text_column"},
  {AT(dataset, shuffle), ours,
   "Rows in a seeded random order, without replacement, the same in every layout.",
   {}, {}, "shuffle"},
  {AT(dataset, document_masking), ours,
   "A token attends to its own document alone, and positions begin anew with each; without, to "
   "all of the row before it.",
   {}, {}, "document_masking"},
  {AT(dataset, validation), ours, "Another data set to validate on.",
   {}, "the last rows of this one", "validation"},
  {AT(dataset, validation_fraction), ours,
   "The part of the rows, at the end, held out for validation where eval_interval is above 0.",
   {.low = 0, .high = 1, .low_included = false, .high_included = false}, {}, "validation_fraction"},

  {AT(checkpoint, save_dir), reference, "The folder of the run's checkpoints and metrics.jsonl.",
   {}, {}, "save_dir"},
  {AT(checkpoint, save_frequency), reference,
   "Steps between two checkpoints. The last step saves too, unless this exceeds total_train_steps.",
   steps, {}, "save_frequency"},
  {AT(checkpoint, load_path), reference,
   "A checkpoint, or a save_dir (its newest complete one), to go on from; empty is none.",
   {}, {}, "load_path"},
  {AT(checkpoint, resume), ours,
   "auto goes on from save_dir's newest complete checkpoint, else from load_path, else starts.",
   {}, {}, "resume"},
  {AT(checkpoint, save_seconds), ours, "Seconds between two checkpoints; 0 is off.",
   from(0, 1e9), {}, "save_seconds"},
  {AT(checkpoint, keep_last), ours,
   "Checkpoints to keep: older ones are removed once a newer one is complete; 0 keeps all.",
   from(0, 1e9), {}, "keep_last"},
  {AT(checkpoint, async), ours,
   "Training goes on while a checkpoint is written, for one more copy of a rank's state in memory.",
   {}, {}, "async"},

  {AT(logging, use_wandb), reference, "Send the metrics to Weights & Biases.",
   {}, {}, "use_wandb", not_built("the metrics are in metrics.jsonl")},
  {AT(logging, project_name), reference, "The project there.", {}, {}, "project_name"},
  {AT(logging, run_name), reference, "The run's name there.", {}, "the folder's name", "run_name"},
  {AT(logging, desync_check), ours,
   "Steps from one comparison of the replicas' weights, bit for bit, to the next; 0 is off.",
   steps_or_off, {}, "desync_check"},

  {AT(environment, OMP_NUM_THREADS), reference, "Threads of a rank.",
   from(1, 4096), "the host's cores over its ranks"},
  {AT(environment, TOKENIZERS_PARALLELISM), reference, "Tokenize in parallel.",
   {}, {}, {}, not_built("dataset.num_proc says how many threads tokenize")},
  {AT(environment, FLASH_ATTEN), reference, "\"0\" switches model.use_flash_attention off."},
  {AT(environment, HF_TOKEN), reference,
   "The token for the hub; better set in the process environment, for files get shared.",
   {}, "none", "hf_token"},

  {AT(kernels, fused), ours,
   "The fused element-wise kernels; false computes them by their definitions.",
   {}, {}, "fused"},
};
// clang-format on
#undef AT

}  // namespace

std::span<const Field> table() {
  return fields;
}

const Field* find(std::string_view dotted_name) {
  const auto found = std::find_if(std::begin(fields), std::end(fields),
                                  [&](const Field& field) { return field.name() == dotted_name; });
  return found == std::end(fields) ? nullptr : found;
}

const Field* find_flag(std::string_view flag) {
  const auto found = std::find_if(std::begin(fields), std::end(fields), [&](const Field& field) {
    return !flag.empty() && field.flag == flag;
  });
  return found == std::end(fields) ? nullptr : found;
}

}  // namespace config_table
}  // namespace picotron
