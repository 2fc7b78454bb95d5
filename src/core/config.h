// The configuration: what a run is, in one struct whose members are named as the keys of
// config.json.
//
//     config.json ── parse ──▶ Config ◀── dotted overrides (--training.learning_rate 1e-3)
//                      ▲
//         config_table.cpp: one entry per key (place, range, sentence, whose it is, is it built)
//
// Everything said about a key elsewhere (defaults, errors, `picotron config --explain`,
// docs/configuration.md) is printed from that table; a new key is a member here and a line there. A
// key that may be null, because the named model, the data or the machine decides, is a
// std::optional; a key with a fixed set of values is an enum. Files may hold // and /* */ comments.
// Read next: config_table.cpp, then config.cpp.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace picotron {

// "afab" "1f1b" "interleaved" "zb-h1"
enum class PpEngine { afab, one_f_one_b, interleaved, zb_h1 };
enum class Backend { nccl, gloo };
enum class Balance { layers, flops };
enum class Ranks { processes, threads };
enum class DType { float64, float32, bfloat16 };
enum class Init { normal, reference };
enum class OptimizerKind { adamw, sgd };
enum class Recompute { none, selective, full };
enum class LrSchedule { constant, cosine, wsd };
enum class WeightDecayOn { all, matrices };
enum class Resume { never, automatic };  // "never" "auto"

std::string_view to_string(PpEngine value);
std::string_view to_string(Backend value);
std::string_view to_string(Balance value);
std::string_view to_string(Ranks value);
std::string_view to_string(DType value);
std::string_view to_string(Init value);
std::string_view to_string(OptimizerKind value);
std::string_view to_string(Recompute value);
std::string_view to_string(LrSchedule value);
std::string_view to_string(WeightDecayOn value);
std::string_view to_string(Resume value);

// "rope_scaling" as a Hugging Face config.json has it; rope_type "llama3" or "default".
struct RopeScalingKeys {
  std::string rope_type = "llama3";
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;
  bool operator==(const RopeScalingKeys&) const = default;
};

struct Distributed {
  int64_t tp_size = 1, cp_size = 1, pp_size = 1, dp_size = 1;
  PpEngine pp_engine = PpEngine::one_f_one_b;
  std::optional<Backend> backend;  // null: nccl on a GPU, gloo on a CPU
  std::optional<bool> use_cpu;     // null: a GPU where there is one
  int64_t zero_stage = 1;
  bool sequence_parallel = false;
  int64_t pp_chunks = 1;
  Balance balance = Balance::layers;
  std::string mesh_order = "dp-pp-cp-tp";  // innermost last
  Ranks ranks = Ranks::processes;
  double timeout_seconds = 600;
};

// The keys of section "model". What the named model gives, each shape key may override;
// model/architectures resolves.
struct ModelKeys {
  // null: init_from's, or the keys below
  std::optional<std::string> name = "HuggingFaceTB/SmolLM-360M-Instruct";
  std::optional<std::string> init_from;  // weights to start from
  Init init = Init::normal;
  std::optional<DType> dtype;  // null: bfloat16 where the machine is quick at it
  std::optional<int64_t> num_hidden_layers, num_attention_heads, num_key_value_heads;
  std::optional<int64_t> hidden_size, intermediate_size, vocab_size, max_position_embeddings,
      head_dim;
  std::optional<double> rms_norm_eps, rope_theta, initializer_range;
  std::optional<RopeScalingKeys> rope_scaling;
  std::optional<bool> attention_bias, mlp_bias, tie_word_embeddings;
  bool use_flash_attention = true;
  bool use_fused_adam = true;
};

struct Training {
  int64_t seed = 42;
  double learning_rate = 3e-4;
  int64_t total_train_steps = 200;
  int64_t seq_length = 1024;
  int64_t micro_batch_size = 32;
  // Follows from global_batch_size where that is given: use the function.
  int64_t gradient_accumulation_steps = 1;
  std::optional<int64_t> num_samples = 400000;  // null: all
  std::optional<int64_t> max_tokens;            // stop at whichever of steps and tokens comes first
  std::optional<int64_t> global_batch_size;     // sequences; use the function of this name
  double grad_clip = 0;                         // 0: off
  OptimizerKind optimizer = OptimizerKind::adamw;
  Recompute recompute = Recompute::none;
  LrSchedule lr_schedule = LrSchedule::constant;
  int64_t warmup_steps = 0;
  double min_lr_ratio = 0;      // cosine and wsd end at learning_rate · min_lr_ratio
  double lr_decay_ratio = 0.1;  // wsd: the last lr_decay_ratio · total_train_steps steps decay
  double weight_decay = 0.01;
  WeightDecayOn weight_decay_on = WeightDecayOn::all;
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_eps = 1e-8;
  int64_t eval_interval = 0;  // steps; 0: never
  int64_t eval_steps = 20;    // global batches of one validation
};

struct DatasetKeys {
  std::string name = "builtin:stories";
  std::optional<std::string> subset_name;
  std::string split = "train";
  int64_t num_workers = 0;
  int64_t num_proc = 1;
  // "bytes", a folder, …; null: the data set's or the model's own
  std::optional<std::string> tokenizer;
  std::string text_column = "text";
  bool shuffle = false;
  bool document_masking = false;
  std::optional<std::string> validation;  // another data set
  double validation_fraction = 0.1;       // the last rows, held out only where eval_interval > 0
};

struct Checkpoint {
  std::string save_dir = "ckpt";
  int64_t save_frequency = 300;  // steps
  std::string load_path;         // "": none
  Resume resume = Resume::never;
  double save_seconds = 0;  // 0: off
  int64_t keep_last = 0;    // 0: all
  bool async = false;
};

struct Logging {
  bool use_wandb = false;
  std::string project_name = "picotron";
  std::optional<std::string> run_name;
  int64_t desync_check = 0;  // steps; 0: never
};

// Strings in the file, as the reference has them. The process's own environment wins
// (resolve_environment).
struct Environment {
  std::optional<int64_t> OMP_NUM_THREADS;  // null: cores / ranks on this host
  bool TOKENIZERS_PARALLELISM = false;
  bool FLASH_ATTEN = true;
  std::optional<std::string> HF_TOKEN;  // never written to a file
};

struct Kernels {
  bool fused = true;
};

struct Config {
  Distributed distributed;
  ModelKeys model;
  Training training;
  DatasetKeys dataset;
  Checkpoint checkpoint;
  Logging logging;
  Environment environment;
  Kernels kernels;
  std::string source;  // the file it came from, for messages; "" where there was none
};

// One override of the command line: `--training.learning_rate 1e-3`.
struct Override {
  std::string key;    // "training.learning_rate"
  std::string value;  // "1e-3", "null"
  // What the person typed, for messages (a short flag may stand for it).
  std::string spelled = "--" + key;
};

// Which spellings of a key a command takes: --distributed.dp_size, or also --dp as the reference's
// create_config spells it.
enum class Flags { dotted, dotted_and_short };

// Moves every `--section.key value` and `--section.key=value` out of `arguments`, leaving the rest
// in order. A bare `--section.key` is true where the key is a boolean. An unknown dotted key throws
// UserError with the nearest known one.
std::vector<Override> take_overrides(std::vector<std::string>& arguments,
                                     Flags flags = Flags::dotted);

// What a layout cuts. Only the rooms above know the architecture that the keys of `model` name, so
// whoever loads a config may bring the one who knows; nothing where the keys do not say it all.
struct LayoutSizes {
  int64_t num_attention_heads = 1, num_key_value_heads = 1, num_hidden_layers = 1;
  int64_t intermediate_size = 1, vocab_size = 1;
};
using SizesOf = std::function<std::optional<LayoutSizes>(const ModelKeys&)>;

// Read, lay over configs/stories.json where it names neither model nor data set, override, check.
// Naming model.name, model.init_from or dataset.name in an override counts as naming it in the
// file. All throw UserError.
Config load_config(const std::string& path, std::span<const Override> overrides = {},
                   const SizesOf& sizes_of = {});
Config parse_config(std::string_view text, const std::string& name,
                    std::span<const Override> overrides = {}, const SizesOf& sizes_of = {});
// No file: what the flags alone say, with create_config's own defaults.
Config config_from_flags(std::span<const Override> overrides, const SizesOf& sizes_of = {});

// What can be known from the config alone, and from the architecture's sizes where they are known:
// sizes that divide, values that exclude each other. Every reason at once.
// Called by load_config and parse_config.
void check(const Config& config, const std::optional<LayoutSizes>& sizes = {});
// The part of it that needs the architecture.
void check_layout(const Config& config, const LayoutSizes& sizes);
// The number of ranks that torchrun, srun or mpirun started against what the config asks for.
void check_world_size(const Config& config, int64_t world_size);
// Sentences to warn with, once, on rank 0: keys whose feature is not built and which do not change
// the training.
std::vector<std::string> warnings(const Config& config);

int64_t world_size(const Config& config);                   // dp · pp · cp · tp
int64_t gradient_accumulation_steps(const Config& config);  // micro batches per step on a rank
int64_t global_batch_size(const Config& config);            // sequences per step
int64_t tokens_per_step(const Config& config);

// The process environment wins over the section "environment". FLASH_ATTEN=0 switches
// model.use_flash_attention off. `get` is like getenv: nullptr where a variable is not set.
void resolve_environment(Config& config, const std::function<const char*(const char*)>& get);

std::string to_json(const Config& config);  // every key; a token is written as null
std::string explain(std::string_view key);  // one key, or one section, or everything for ""
std::string config_markdown();              // docs/configuration.md
std::string_view program_version();         // "0.1.0"
std::string_view stories_json();  // configs/stories.json as it was when the program was built

// The table, for tests that walk it.
struct FieldInfo {
  std::string section, key, type, default_text, requirement, description, flag;
  bool in_reference = false;
  bool built = true;
};
std::vector<FieldInfo> all_fields();

}  // namespace picotron
