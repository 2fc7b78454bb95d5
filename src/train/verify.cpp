// What is kept of a model when it is made small, what is compared, which figure went wrong first,
// and how the guilty axis is found.
#include "train/verify.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "core/error.h"
#include "dist/launch.h"

namespace picotron {
namespace {

constexpr int64_t kMostMicrobatches = 8;
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// Tokens without any order, the same on every rank. Where documents matter one in five ends one.
class RandomTokens : public Dataset {
 public:
  RandomTokens(int64_t seq_length, int64_t vocab, bool documents)
      : seq_length_(seq_length), vocab_(vocab), documents_(documents) {}
  const std::string& name() const override { return name_; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t num_rows() const override { return 1'000'000; }
  void read_row(int64_t row, std::span<int32_t> out) const override {
    for (size_t i = 0; i < out.size(); ++i) {
      const uint64_t place = static_cast<uint64_t>(row * seq_length_) + i;
      const bool ends = documents_ && mix(~place) % 5 == 0;
      out[i] = ends ? 0 : static_cast<int32_t>(mix(place) % static_cast<uint64_t>(vocab_));
    }
  }
  std::optional<int32_t> end_of_document() const override { return 0; }
  std::string locate(int64_t row, int64_t column) const override {
    return fmt::format("random tokens, row {}, column {}", row, column);
  }

 private:
  // SplitMix64's finalizer (Steele, Lea and Flood 2014).
  static uint64_t mix(uint64_t x) {
    x = (x + 1) * 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  const std::string name_ = "random tokens";
  const int64_t seq_length_, vocab_;
  const bool documents_;
};

// The smallest size ≥ least that leaves the same remainder over `parts`: what was uneven stays so.
int64_t alike(int64_t size, int64_t parts, int64_t least) {
  const int64_t remainder = size % parts;
  return (least + parts - 1 - remainder) / parts * parts + remainder;
}

double relative(double a, double b) {
  const double difference = std::abs(a - b) / std::max(std::abs(b), 1e-300);
  return std::isfinite(difference) ? difference : kNoLimit;
}

// max |a − b| / max |b|, and where a is furthest from b.
Distances::Worst distance(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor difference = (a.to(at::kDouble) - b.to(at::kDouble)).abs().view({-1});
  const double scale = std::max(b.to(at::kDouble).abs().max().item<double>(), 1e-300);
  const double distance = difference.max().item<double>() / scale;
  return {.distance = std::isfinite(distance) ? distance : kNoLimit,
          .name = "",
          .step = 0,
          .index = difference.argmax().item<int64_t>()};
}

Distances::Worst worst_of(const Trace::Tensors& mine, const Trace::Tensors& reference,
                          int64_t step) {
  check(mine.size() == reference.size(), "two runs of one model have the same tensors");
  Distances::Worst worst{.distance = -1, .name = "", .step = step, .index = 0};
  for (const auto& [name, b] : reference) {
    const Distances::Worst here = distance(mine.at(name), b);
    if (here.distance > worst.distance) worst = {here.distance, name, step, here.index};
  }
  return worst;
}

// A figure's tensors in short: how many are too far, and whether all of these are one multiple of
// what they should be.
FirstWrong describe_tensors(const std::string& figure, const Trace::Tensors& mine,
                            const Trace::Tensors& reference, int64_t step, double tolerance) {
  int wrong = 0;
  double factor = 0;
  bool scaled = true;
  for (const auto& [name, reference_value] : reference) {
    const at::Tensor a = mine.at(name).to(at::kDouble), b = reference_value.to(at::kDouble);
    if (distance(a, b).distance <= tolerance) continue;
    const double before = std::exchange(factor, ((a * b).sum() / (b * b).sum()).item<double>());
    const double allowed = std::max(tolerance, 1e-12) * std::max(1.0, std::abs(factor));
    ++wrong;
    scaled = scaled && (wrong == 1 || std::abs(factor - before) <= allowed) &&
             distance(a, factor * b).distance <= allowed;
  }
  FirstWrong result{.figure = figure,
                    .remark = fmt::format("{} of {} tensors", wrong, reference.size()),
                    .worst = worst_of(mine, reference, step)};
  if (scaled && wrong > 0)
    result.remark +=
        fmt::format(", {:.6g} times {} of one rank", factor, wrong > 1 ? "those" : "that");
  if (scaled && wrong > 1) result.worst = {};
  return result;
}

// Which weights, counted another number of times, give this norm: tried are each alone, those of
// one name in every layer, and all norms.
std::string miscounted(const Trace::Step& mine, const Trace::Step& reference) {
  constexpr double kPrecision = 1e-6;
  std::map<std::string, double> squares;
  for (const auto& [name, gradient] : reference.gradients) {
    const double square = gradient.to(at::kDouble).square().sum().item<double>();
    squares[name] += square;
    constexpr std::string_view kLayers = "model.layers.";
    if (name.starts_with(kLayers))
      squares["every " + name.substr(name.find('.', kLayers.size()) + 1)] += square;
    if (name.ends_with("norm.weight")) squares["every norm.weight"] += square;
  }
  const double excess = mine.grad_norm * mine.grad_norm - reference.grad_norm * reference.grad_norm;
  for (const auto& [name, square] : squares) {
    const double more = excess / square, whole = std::round(more);
    if (whole != 0 && whole >= -1 && std::abs(more - whole) <= kPrecision * std::abs(whole))
      return fmt::format("as if {} were counted {:.0f} times", name, 1 + whole);
  }
  return "the gradients agree, so weights are counted more than once, or not at all";
}

}  // namespace

bool Distances::within(const Tolerance& t) const {
  return initial.distance <= t.initial && loss <= t.loss && grad_norm <= t.grad_norm &&
         gradient.distance <= t.gradients && weight.distance <= t.weights;
}

Distances distances(const Trace& mine, const Trace& reference) {
  check(mine.steps.size() == reference.steps.size(), "two runs of equally many steps");
  Distances result;
  result.initial = worst_of(mine.initial, reference.initial, 0);
  for (size_t i = 0; i < reference.steps.size(); ++i) {
    const Trace::Step &a = mine.steps[i], &b = reference.steps[i];
    result.loss = std::max(result.loss, relative(a.loss, b.loss));
    result.grad_norm = std::max(result.grad_norm, relative(a.grad_norm, b.grad_norm));
    if (b.gradients.empty()) continue;
    const auto step = static_cast<int64_t>(i) + 1;
    const Distances::Worst gradient = worst_of(a.gradients, b.gradients, step);
    const Distances::Worst weight = worst_of(a.weights, b.weights, step);
    if (i == 0 || gradient.distance > result.gradient.distance) result.gradient = gradient;
    if (i == 0 || weight.distance > result.weight.distance) result.weight = weight;
  }
  return result;
}

FirstWrong first_wrong(const Trace& mine, const Trace& reference, const Tolerance& tolerance) {
  if (worst_of(mine.initial, reference.initial, 0).distance > tolerance.initial)
    return describe_tensors("initial values", mine.initial, reference.initial, 0,
                            tolerance.initial);
  for (size_t i = 0; i < reference.steps.size(); ++i) {
    const Trace::Step &a = mine.steps[i], &b = reference.steps[i];
    const auto step = static_cast<int64_t>(i) + 1;
    const bool detailed = !b.gradients.empty();
    const auto named = [&](const char* figure) {
      return fmt::format("{} of step {}", figure, step);
    };
    const auto tensors = [&](const char* figure, const auto& x, const auto& y, double limit) {
      return describe_tensors(named(figure), x, y, step, limit);
    };
    if (relative(a.loss, b.loss) > tolerance.loss) {
      if (!detailed) return {.figure = named("loss"), .remark = "", .worst = {}};
      FirstWrong wrong = tensors("loss", a.gradients, b.gradients, tolerance.gradients);
      wrong.remark = "the forward pass or its rows; of the gradients, " + wrong.remark;
      return wrong;
    }
    if (detailed && worst_of(a.gradients, b.gradients, step).distance > tolerance.gradients)
      return tensors("gradients", a.gradients, b.gradients, tolerance.gradients);
    if (relative(a.grad_norm, b.grad_norm) > tolerance.grad_norm)
      return {.figure = named("gradient norm"),
              .remark = detailed ? miscounted(a, b) : "",
              .worst = {}};
    if (detailed && worst_of(a.weights, b.weights, step).distance > tolerance.weights)
      return tensors("updated weights", a.weights, b.weights, tolerance.weights);
  }
  return {};
}

Tolerance tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return {1e-10, 1e-10, 1e-10, 1e-10, 0};
    case DType::float32:
      return {1e-5, 1e-4, 1e-4, kNoLimit, 0};
    case DType::bfloat16:
      return {2e-2, 2e-2, kNoLimit, kNoLimit, 0};
  }
  throw BrokenInvariant("every dtype is handled");
}

int64_t ShrunkRun::detailed_steps() const {
  return config.model.dtype == DType::float64 ? config.training.total_train_steps : 1;
}

ShrunkRun shrink(const Config& config, const LlamaConfig& architecture, DType dtype,
                 OptimizerKind optimizer) {
  ShrunkRun small{config, architecture};
  Distributed& d = small.config.distributed;
  LlamaConfig& m = small.architecture;
  // As many key/value heads as tp asks for, if they divide over it; else they are fewer than ranks
  // already.
  const int64_t group = m.num_attention_heads / m.num_key_value_heads;
  if (m.num_key_value_heads % d.tp_size == 0) m.num_key_value_heads = d.tp_size;
  m.num_attention_heads = group * m.num_key_value_heads;
  const bool exact = dtype == DType::float64;
  m.head_dim = exact ? 4 : 16;
  m.hidden_size = exact ? 24 : 96;
  m.intermediate_size = alike(m.intermediate_size, d.tp_size, 3 * d.tp_size);
  m.vocab_size = alike(m.vocab_size, d.tp_size, std::max<int64_t>(17, 3 * d.tp_size));
  m.num_hidden_layers =
      std::min(m.num_hidden_layers, alike(m.num_hidden_layers, d.pp_size * d.pp_chunks,
                                          std::max<int64_t>(2, d.pp_size * d.pp_chunks)));
  m.initializer_range = exact ? 0.3 : 0.05;

  Training& t = small.config.training;
  const int64_t divisor =
      (d.cp_size > 1 ? 2 * d.cp_size : 1) * (d.sequence_parallel ? d.tp_size : 1);
  t.seq_length = (12 + divisor - 1) / divisor * divisor;
  m.max_position_embeddings = t.seq_length;
  t.gradient_accumulation_steps = std::min(gradient_accumulation_steps(config), kMostMicrobatches);
  t.micro_batch_size = std::min<int64_t>(t.micro_batch_size, 2);
  t.global_batch_size.reset();
  t.total_train_steps = exact ? 3 : 20;
  t.max_tokens.reset();
  t.eval_interval = 0;
  t.optimizer = optimizer;
  t.learning_rate = optimizer == OptimizerKind::sgd ? 0.1 : exact ? 1e-2 : 1e-3;
  t.lr_schedule = LrSchedule::constant;
  t.warmup_steps = 0;
  t.adam_eps = 1e-4;  // with a smaller one tiny gradients amplify rounding
  small.config.dataset.shuffle = false;
  small.config.model.dtype = dtype;
  small.config.model.init = Init::normal;
  small.config.model.init_from.reset();
  small.config.distributed.use_cpu = true;
  small.config.distributed.backend = Backend::gloo;
  return small;
}

ShrunkRun on_one_rank(const ShrunkRun& run) {
  ShrunkRun one = run;
  one.config.training.gradient_accumulation_steps *= run.config.distributed.dp_size;
  one.config.training.recompute = Recompute::none;
  one.config.distributed = Distributed{.use_cpu = true};
  return one;
}

Run rehearse(const ShrunkRun& shrunk) {
  Run run;
  run.config = shrunk.config;
  run.architecture = shrunk.architecture;
  run.datasets.train = std::make_unique<RandomTokens>(shrunk.config.training.seq_length,
                                                      shrunk.architecture.vocab_size,
                                                      shrunk.config.dataset.document_masking);
  run.dtype = scalar_type_of(*shrunk.config.model.dtype);
  run.data.seed = static_cast<uint64_t>(shrunk.config.training.seed);
  run.data.shuffle = shrunk.config.dataset.shuffle;
  run.rehearsal = true;
  return run;
}

Trace trace_as_threads(const ShrunkRun& shrunk) {
  const Run run = rehearse(shrunk);
  std::vector<Trace> traces(static_cast<size_t>(world_size(shrunk.config)));
  const int code = launch({.world_size = static_cast<int>(traces.size()),
                           .ranks = Ranks::threads,
                           .threads_per_rank = 1,
                           .argv = {},
                           .ends_at_once = true},
                          [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
                            const auto device =
                                open_device({.use_cpu = true, .local_rank = local_rank});
                            Trace& trace = traces[static_cast<size_t>(rendezvous.global_rank)];
                            train(run, rendezvous, *device, tracer(trace, shrunk.detailed_steps()));
                            return 0;
                          });
  if (code != 0) throw run_error("a rank of the small model failed");
  return std::move(traces[0]);
}

std::string likely_cause(const ShrunkRun& shrunk, const Tolerance& tolerance) {
  struct Suspect {
    const char* name;
    std::function<bool(ShrunkRun&)> remove;  // false where it is not there
  };
  const auto axis = [](int64_t Distributed::*size) {
    return [size](ShrunkRun& run) {
      int64_t& value = run.config.distributed.*size;
      // The same global batch on fewer replicas.
      if (size == &Distributed::dp_size) run.config.training.gradient_accumulation_steps *= value;
      if (size == &Distributed::pp_size) run.config.distributed.pp_chunks = 1;
      return std::exchange(value, 1) > 1;
    };
  };
  const std::vector<Suspect> suspects = {
      {"sequence_parallel",
       [](ShrunkRun& run) {
         return std::exchange(run.config.distributed.sequence_parallel, false);
       }},
      {"recompute",
       [](ShrunkRun& run) {
         return std::exchange(run.config.training.recompute, Recompute::none) != Recompute::none;
       }},
      {"pp_engine",
       [](ShrunkRun& run) {
         run.config.distributed.pp_chunks = 1;
         return std::exchange(run.config.distributed.pp_engine, PpEngine::one_f_one_b) !=
                PpEngine::one_f_one_b;
       }},
      {"pp_chunks",
       [](ShrunkRun& run) { return std::exchange(run.config.distributed.pp_chunks, 1) > 1; }},
      {"zero_stage",
       [](ShrunkRun& run) { return std::exchange(run.config.distributed.zero_stage, 0) == 1; }},
      {"tp", axis(&Distributed::tp_size)},
      {"cp", axis(&Distributed::cp_size)},
      {"pp", axis(&Distributed::pp_size)},
      {"dp", axis(&Distributed::dp_size)}};
  const Trace reference = trace_as_threads(on_one_rank(shrunk));
  if (distances(trace_as_threads(shrunk), reference).within(tolerance)) return "processes";
  std::string causes;
  for (const Suspect& suspect : suspects) {
    ShrunkRun without = shrunk;
    if (!suspect.remove(without)) continue;
    if (!distances(trace_as_threads(without), reference).within(tolerance)) continue;
    causes += (causes.empty() ? "" : " and ") + std::string(suspect.name);
  }
  return causes;
}

}  // namespace picotron
