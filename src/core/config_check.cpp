// What no single key can say: sizes that must divide each other, values that exclude each other.
// All reasons are given at once, each with values that would work.
// Also the arithmetic of the batch:
//
//     global batch [sequences] = micro_batch_size · gradient_accumulation_steps · dp_size
//     tokens per step          = global batch · seq_length
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/config_table.h"
#include "core/error.h"

namespace picotron {
namespace {

using config_table::Field;

constexpr int64_t most_ranks = 65536;

// Every reason, then one exception.
class Reasons {
 public:
  explicit Reasons(const Config& config)
      : prefix_(config.source.empty() ? "" : config.source + ": ") {}
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    sentences_.push_back(prefix_ + fmt::format(format, std::forward<Args>(args)...));
  }
  void throw_if_any() const {
    if (!sentences_.empty()) throw user_errors(sentences_);
  }

 private:
  std::string prefix_;
  std::vector<std::string> sentences_;
};

std::vector<int64_t> divisors(int64_t n) {
  std::vector<int64_t> small, large;
  for (int64_t d = 1; d <= n / d; ++d) {
    if (n % d != 0) continue;
    small.push_back(d);
    if (d != n / d) large.push_back(n / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

// "1, 2, 4 or 8", at most eight of them.
std::string listed(const std::vector<int64_t>& values) {
  std::string text;
  const size_t shown = std::min<size_t>(values.size(), 8);
  for (size_t i = 0; i < shown; ++i) {
    const char* joint = i == 0 ? "" : i + 1 == shown ? " or " : ", ";
    text += joint + std::to_string(values[i]);
  }
  return text;
}

void check_batch(const Config& config, Reasons& reasons) {
  const Training& t = config.training;
  if (t.global_batch_size) {
    const int64_t dp = config.distributed.dp_size, wanted = *t.global_batch_size;
    const int64_t one_round = t.micro_batch_size * dp;
    if (wanted % one_round != 0) {
      const int64_t below = wanted / one_round * one_round;
      const std::string sizes = below > 0 ? fmt::format("{} or {}", below, below + one_round)
                                          : fmt::format("{}", one_round);
      const std::string micro =
          wanted % dp == 0 && wanted / dp <= 1'000'000'000
              ? fmt::format(", or micro_batch_size {}", listed(divisors(wanted / dp)))
              : "";
      reasons.add(
          "global_batch_size {} is not a multiple of micro_batch_size {} · dp_size {} = {}; use "
          "global_batch_size {}{}",
          wanted, t.micro_batch_size, dp, one_round, sizes, micro);
      return;
    }
  }
  // In double, because this asks whether the product fits.
  const double tokens = static_cast<double>(t.micro_batch_size) *
                        static_cast<double>(t.seq_length) *
                        static_cast<double>(gradient_accumulation_steps(config)) *
                        static_cast<double>(config.distributed.dp_size);
  if (tokens > 1e15) {
    reasons.add(
        "a step would have {:.1e} tokens; lower micro_batch_size, gradient_accumulation_steps, "
        "seq_length or dp_size until it has at most 1e15",
        tokens);
  }
}

void check_sequence(const Config& config, Reasons& reasons) {
  const int64_t cp = config.distributed.cp_size, tp = config.distributed.tp_size;
  const int64_t over_cp = cp > 1 ? 2 * cp : 1;
  const int64_t over_tp = config.distributed.sequence_parallel ? tp : 1;
  const int64_t divisor = over_cp * over_tp, length = config.training.seq_length;
  if (length % divisor == 0) return;
  const int64_t below = length / divisor * divisor;
  const std::string sizes =
      below > 0 ? fmt::format("{} or {}", below, below + divisor) : fmt::format("{}", divisor);
  reasons.add("seq_length {} is not a multiple of {} ({}{}{}); use {}", length, divisor,
              over_cp > 1 ? "2 · cp_size" : "", over_cp > 1 && over_tp > 1 ? " · " : "",
              over_tp > 1 ? "tp_size" : "", sizes);
}

void check_schedule(const Config& config, Reasons& reasons) {
  const Training& t = config.training;
  if (t.lr_schedule == LrSchedule::wsd && t.warmup_steps <= t.total_train_steps) {
    const double total = static_cast<double>(t.total_train_steps);
    const auto decay = static_cast<int64_t>(std::ceil(t.lr_decay_ratio * total));
    if (t.warmup_steps + decay > t.total_train_steps) {
      reasons.add(
          "warmup_steps {} and lr_decay_ratio {} ({} steps) together exceed total_train_steps {}; "
          "use lr_decay_ratio {:.3g} or less",
          t.warmup_steps, t.lr_decay_ratio, decay, t.total_train_steps,
          std::floor(1000 * static_cast<double>(t.total_train_steps - t.warmup_steps) / total) /
              1000);
    }
  }
}

void check_pipeline(const Config& config, Reasons& reasons) {
  const Distributed& d = config.distributed;
  if (d.pp_chunks > 1 && d.pp_engine != PpEngine::interleaved) {
    reasons.add(
        "pp_chunks {} is for pp_engine \"interleaved\" and pp_engine is \"{}\"; use pp_chunks 1 or "
        "pp_engine \"interleaved\"",
        d.pp_chunks, to_string(d.pp_engine));
  }
}

void check_device(const Config& config, Reasons& reasons) {
  const Distributed& d = config.distributed;
  if (d.use_cpu == true && d.backend == Backend::nccl) {
    reasons.add("distributed.backend \"nccl\" needs a GPU and use_cpu is true; use \"gloo\"");
  }
  if (d.use_cpu == false && d.ranks == Ranks::threads) {
    reasons.add(
        "distributed.ranks \"threads\" is for the CPU and use_cpu is false; use \"processes\"");
  }
  if (d.use_cpu == false && config.model.dtype == DType::float64) {
    reasons.add("model.dtype \"float64\" is for the CPU and use_cpu is false; use \"float32\"");
  }
}

void check_heads(const Config& config, Reasons& reasons) {
  const ModelKeys& m = config.model;
  if (m.num_attention_heads && m.num_key_value_heads &&
      *m.num_attention_heads % *m.num_key_value_heads != 0) {
    reasons.add("num_key_value_heads {} does not divide num_attention_heads {}; use {}",
                *m.num_key_value_heads, *m.num_attention_heads,
                listed(divisors(*m.num_attention_heads)));
  }
  if (m.head_dim && *m.head_dim % 2 != 0) {
    reasons.add("head_dim {} is odd and rotary embeddings turn pairs; use {}", *m.head_dim,
                *m.head_dim + 1);
  }
}

// Sizes of tp that cut these heads, this vocabulary and this inner width.
std::vector<int64_t> working_tp_sizes(const LayoutSizes& sizes) {
  std::vector<int64_t> working = divisors(sizes.num_attention_heads);
  const int64_t kv_heads = sizes.num_key_value_heads;
  const int64_t most = std::min(sizes.vocab_size, sizes.intermediate_size);
  std::erase_if(
      working, [&](int64_t tp) { return (kv_heads % tp != 0 && tp % kv_heads != 0) || tp > most; });
  return working;
}

void add_layout_reasons(const Config& config, const LayoutSizes& sizes, Reasons& reasons) {
  const Distributed& d = config.distributed;
  const int64_t tp = d.tp_size, heads = sizes.num_attention_heads;
  const int64_t kv_heads = sizes.num_key_value_heads, layers = sizes.num_hidden_layers;
  const std::string working = listed(working_tp_sizes(sizes));
  const bool splits_queries = heads % tp == 0;
  if (!splits_queries || (kv_heads % tp != 0 && tp % kv_heads != 0)) {
    reasons.add("tp_size {} does not {} {} {}; use {}", tp,
                splits_queries ? "divide and is no multiple of" : "divide",
                splits_queries ? "num_key_value_heads" : "num_attention_heads",
                splits_queries ? kv_heads : heads, working);
  }
  if (tp > sizes.vocab_size) {
    reasons.add(
        "tp_size {} exceeds vocab_size {}, and each rank needs a row of the embedding; use {}", tp,
        sizes.vocab_size, working);
  }
  if (tp > sizes.intermediate_size) {
    reasons.add("tp_size {} exceeds intermediate_size {}, and each rank needs a part of it; use {}",
                tp, sizes.intermediate_size, working);
  }
  if (d.pp_size * d.pp_chunks > layers) {
    const auto at_most = [](int64_t value) {
      return std::to_string(value) + (value > 1 ? " or less" : "");
    };
    const int64_t stages = layers / d.pp_chunks, chunks = layers / d.pp_size;
    std::string remedy;
    if (stages > 0) remedy = "pp_size " + at_most(stages);
    if (chunks > 0 && d.pp_chunks > 1)
      remedy += (remedy.empty() ? "pp_chunks " : ", or pp_chunks ") + at_most(chunks);
    if (remedy.empty()) remedy = fmt::format("pp_size {} and pp_chunks 1", at_most(layers));
    reasons.add(
        "pp_size {} · pp_chunks {} exceeds num_hidden_layers {}, and each chunk of a stage needs a "
        "layer; use {}",
        d.pp_size, d.pp_chunks, layers, remedy);
  }
}

}  // namespace

void check(const Config& config, const std::optional<LayoutSizes>& sizes) {
  Reasons reasons(config);
  check_batch(config, reasons);
  check_sequence(config, reasons);
  check_schedule(config, reasons);
  check_pipeline(config, reasons);
  check_device(config, reasons);
  check_heads(config, reasons);
  if (sizes) add_layout_reasons(config, *sizes, reasons);
  const Distributed& d = config.distributed;
  const double ranks = static_cast<double>(d.dp_size) * static_cast<double>(d.pp_size) *
                       static_cast<double>(d.cp_size) * static_cast<double>(d.tp_size);
  if (ranks > most_ranks) {
    reasons.add("dp_size · pp_size · cp_size · tp_size is {:.3g} ranks; use at most {}", ranks,
                most_ranks);
  }
  reasons.throw_if_any();
}

void check_layout(const Config& config, const LayoutSizes& sizes) {
  Reasons reasons(config);
  add_layout_reasons(config, sizes, reasons);
  reasons.throw_if_any();
}

void check_world_size(const Config& config, int64_t started) {
  const int64_t asked = world_size(config);
  if (started == asked) return;
  const Distributed& d = config.distributed;
  const int64_t others = asked / d.dp_size;
  const std::string dp = started % others == 0
                             ? fmt::format(", or set distributed.dp_size to {}", started / others)
                             : "";
  Reasons reasons(config);
  reasons.add(
      "{} ranks were started, and dp_size {} · pp_size {} · cp_size {} · tp_size {} is {}; "
      "start {}{}",
      started, d.dp_size, d.pp_size, d.cp_size, d.tp_size, asked, asked, dp);
  reasons.throw_if_any();
}

std::vector<std::string> warnings(const Config& config) {
  std::vector<std::string> sentences;
  for (const Field& field : config_table::table()) {
    if (!field.built() && !config_table::is_default(field, config)) {
      sentences.push_back(fmt::format("{} {} has no effect: {}", field.name(),
                                      config_table::value_text(field, config), field.instead));
    }
  }
  const Training& t = config.training;
  if (t.warmup_steps > t.total_train_steps) {  // a short try of a long run's config
    sentences.push_back(
        fmt::format("warmup_steps {} exceeds total_train_steps {}: the learning rate ends below {}",
                    t.warmup_steps, t.total_train_steps, t.learning_rate));
  }
  const Checkpoint& saves = config.checkpoint;
  if (saves.save_frequency > t.total_train_steps && saves.save_seconds == 0) {
    sentences.push_back(fmt::format(
        "no checkpoint will be written at the end, for checkpoint.save_frequency {} exceeds "
        "total_train_steps {}",
        saves.save_frequency, t.total_train_steps));
  }
  return sentences;
}

int64_t world_size(const Config& config) {
  const Distributed& d = config.distributed;
  return d.dp_size * d.pp_size * d.cp_size * d.tp_size;
}

int64_t gradient_accumulation_steps(const Config& config) {
  const Training& t = config.training;
  if (!t.global_batch_size) return t.gradient_accumulation_steps;
  return *t.global_batch_size / (t.micro_batch_size * config.distributed.dp_size);
}

int64_t global_batch_size(const Config& config) {
  return config.training.micro_batch_size * gradient_accumulation_steps(config) *
         config.distributed.dp_size;
}

int64_t tokens_per_step(const Config& config) {
  return global_batch_size(config) * config.training.seq_length;
}

void resolve_environment(Config& config, const std::function<const char*(const char*)>& get) {
  for (const Field& field : config_table::table()) {
    if (field.section != "environment") continue;
    const std::string key(field.key);
    const char* text = get(key.c_str());
    if (text == nullptr || *text == '\0') continue;
    if (!config_table::set(field, config, config_table::from_text(field, text, key))) {
      throw user_error("{} in the process environment is {}; it must be {}", key,
                       json_text::quote(text), config_table::requirement(field));
    }
  }
  if (!config.environment.FLASH_ATTEN) config.model.use_flash_attention = false;
}

}  // namespace picotron
