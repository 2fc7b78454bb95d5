// picotron bench: how fast a training step is, against the machine's own matrix products and
// against the same model in plain PyTorch. The measured programs are processes that take turns, a
// few steps each, so that whatever else the machine does in the meantime meets all of them:
//
//     round   1                       2                       3   …
//             ours | PyTorch | floor  ours | PyTorch | floor
//
// Every figure is the median of its kind with the least and the greatest; a ratio is taken within a
// round. Read next: train/step_bench.h, kernels/matmul_floor.h, docs/performance.md.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/child_process.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "dist/device.h"
#include "kernels/huge_pages.h"
#include "kernels/matmul.h"
#include "model/architectures.h"
#include "model/huggingface_config.h"
#include "train/metrics.h"
#include "train/step_bench.h"

namespace picotron {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kWarmupSteps = 2;

struct Options {
  std::string model_name;
  int64_t num_hidden_layers = 0, mbs = 0, seq_len = 0;  // 0: the model's own, or the case's
  int64_t steps = 15, rounds = 5;
  int threads = 0;
  std::string dtype;  // "": as the machine has it
  std::string pytorch, json;
};

struct Case {
  std::string title;
  StepBenchOptions step;
};

// The median of some figures, with their least and greatest.
struct Spread {
  double median = 0, least = 0, greatest = 0;
};

Spread spread(std::vector<double> figures) {
  std::sort(figures.begin(), figures.end());
  const size_t half = figures.size() / 2;
  const double median =
      figures.size() % 2 == 1 ? figures[half] : (figures[half - 1] + figures[half]) / 2;
  return {median, figures.front(), figures.back()};
}

// What the rounds of one program have shown.
struct Measured {
  std::vector<double> seconds;        // of every step
  std::vector<double> round_seconds;  // the median step of each round
  int64_t memory_bytes = 0;           // peak of its process; of ours, before the floor is measured
  Json newest;                        // seconds of the last step by kind of work; of ours alone
  Spread tokens_per_second(int64_t tokens) const {
    std::vector<double> rates;
    for (const double s : seconds) rates.push_back(static_cast<double>(tokens) / s);
    return spread(rates);
  }
};

at::ScalarType resolve_dtype(const std::string& dtype) {
  if (dtype == "float32") return at::kFloat;
  return dtype == "bfloat16" || cpu_has_fast_bfloat16() ? at::kBFloat16 : at::kFloat;
}

Case make_case(const Options& options, const std::string& name, int64_t layers, int64_t mbs,
               int64_t seq_len) {
  ModelKeys keys;
  keys.name = name;
  if (layers > 0) keys.num_hidden_layers = layers;
  Case result{.step = {.architecture = resolve_architecture(keys, std::nullopt),
                       .dtype = resolve_dtype(options.dtype),
                       .rows = mbs,
                       .columns = seq_len}};
  result.title = fmt::format("{}, {} layers, {} x {} tokens a step", name,
                             result.step.architecture.num_hidden_layers, mbs, seq_len);
  return result;
}

std::vector<Case> cases_of(const Options& o) {
  const auto or_else = [](int64_t given, int64_t other) { return given > 0 ? given : other; };
  if (!o.model_name.empty()) {
    return {make_case(o, o.model_name, o.num_hidden_layers, or_else(o.mbs, 4),
                      or_else(o.seq_len, 512))};
  }
  return {make_case(o, "HuggingFaceTB/SmolLM-135M", o.num_hidden_layers, or_else(o.mbs, 4),
                    or_else(o.seq_len, 512)),
          make_case(o, "HuggingFaceTB/SmolLM-1.7B", or_else(o.num_hidden_layers, 5),
                    or_else(o.mbs, 4), or_else(o.seq_len, 128))};
}

ChildProcess start_ours(const Case& c, int threads) {
  return ChildProcess::fork([&] {
    try {
      keep_freed_memory();
      use_huge_pages();
      at::set_num_threads(threads);
      serve_step_bench(c.step, std::cin, std::cout);
      return 0;
    } catch (const std::exception& error) {
      log::error(plain_sentence(error.what()));
      return 1;
    }
  });
}

ChildProcess start_pytorch(const Case& c, const Options& options) {
  const bool bf16 = c.step.dtype == at::kBFloat16;
  const nlohmann::json config =
      to_huggingface(c.step.architecture, bf16 ? DType::bfloat16 : DType::float32);
  return ChildProcess::start(
      options.pytorch,
      {"bench/pytorch_step.py", "--config", config.dump(), "--rows", std::to_string(c.step.rows),
       "--columns", std::to_string(c.step.columns), "--threads", std::to_string(options.threads),
       "--dtype", bf16 ? "bfloat16" : "float32"});
}

// The child's answer; nothing where it has ended without one.
std::optional<Json> answer_of(ChildProcess& child) {
  const std::optional<std::string> line = child.read_line();
  if (!line) return std::nullopt;
  return Json::parse(*line, nullptr, /*allow_exceptions=*/false);
}

Json ask(ChildProcess& child, const std::string& request) {
  child.write_line(request);
  const std::optional<Json> answer = answer_of(child);
  if (!answer || !answer->is_object())
    throw run_error("a measured process ended at '{}'; is there enough memory?", request);
  return *answer;
}

void run_steps(ChildProcess& child, int64_t count, Measured& measured) {
  const Json answer = ask(child, fmt::format("steps {}", count));
  const auto seconds = answer.at("seconds").get<std::vector<double>>();
  measured.seconds.insert(measured.seconds.end(), seconds.begin(), seconds.end());
  measured.round_seconds.push_back(spread(seconds).median);
  if (answer.contains("newest")) measured.newest = answer["newest"];
  if (measured.memory_bytes == 0) measured.memory_bytes = answer.at("memory_bytes");
}

Spread ratio(const std::vector<double>& above, const std::vector<double>& below) {
  std::vector<double> ratios;
  for (size_t i = 0; i < above.size(); ++i) ratios.push_back(above[i] / below[i]);
  return spread(ratios);
}

std::string text(const Spread& s, int decimals) {
  return fmt::format("{:.{}f} ({:.{}f} to {:.{}f})", s.median, decimals, s.least, decimals,
                     s.greatest, decimals);
}

Json json_of(const Spread& s) {
  return {{"median", s.median}, {"least", s.least}, {"greatest", s.greatest}};
}

void print_row(const std::string& what, const std::string& ours, const std::string& pytorch) {
  log::print(fmt::format("  {:<24} {:<26} {}", what, ours, pytorch));
}

// Runs the rounds of one case, prints its table and returns it.
Json measure(const Case& c, const Options& options) {
  log::print(c.title);
  ChildProcess ours = start_ours(c, options.threads);
  const std::optional<Json> ready = answer_of(ours);
  if (!ready) throw run_error("the measured process ended before its first step");

  std::optional<ChildProcess> pytorch;
  std::string version, skipped = "it was not asked for: --pytorch PYTHON";
  if (!options.pytorch.empty()) {
    pytorch.emplace(start_pytorch(c, options));
    const std::optional<Json> answer = answer_of(*pytorch);
    version = answer ? answer->value("version", "") : "";
    skipped = answer ? answer->value("skipped", "") : options.pytorch + " does not run it";
    if (version.empty()) pytorch.reset();
  }

  Measured mine, theirs;
  std::vector<double> floors, product_rates;
  Json floor;
  ask(ours, fmt::format("steps {}", kWarmupSteps));
  if (pytorch) ask(*pytorch, fmt::format("steps {}", kWarmupSteps));
  const int64_t rounds = std::min(options.rounds, options.steps);
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t count = options.steps * (round + 1) / rounds - options.steps * round / rounds;
    run_steps(ours, count, mine);
    if (pytorch) run_steps(*pytorch, count, theirs);
    floor = ask(ours, "floor");
    floors.push_back(floor.at("seconds"));
    product_rates.push_back(floor.at("product_rate"));
  }

  const int64_t tokens = c.step.rows * c.step.columns;
  const Spread rate = mine.tokens_per_second(tokens);
  const double product_rate = spread(product_rates).median;
  const double flops = reference_flops_per_token(c.step.architecture, c.step.columns);
  const auto mfu = [&](double tokens_per_second) {
    return tokens_per_second * flops / product_rate;
  };
  const Spread of_floor = ratio(floors, mine.round_seconds);
  Json result = {{"case", c.title},
                 {"product_rate", product_rate},
                 {"floor", floor},
                 {"picotron",
                  {{"step_seconds", mine.seconds},
                   {"tokens_per_second", json_of(rate)},
                   {"mfu", mfu(rate.median)},
                   {"fraction_of_floor", json_of(of_floor)},
                   {"newest_step", mine.newest},
                   {"memory_bytes", mine.memory_bytes}}}};
  std::string their_rate, their_mfu, their_floor, their_memory;
  if (pytorch) {
    const Spread r = theirs.tokens_per_second(tokens), f = ratio(floors, theirs.round_seconds);
    const Spread ahead = ratio(theirs.round_seconds, mine.round_seconds);
    their_rate = text(r, 0), their_mfu = fmt::format("{:.1f}%", 100 * mfu(r.median));
    their_floor = text(f, 2);
    their_memory = fmt::format("{:.2f} GB", static_cast<double>(theirs.memory_bytes) / 1e9);
    result["pytorch"] = {{"version", version},
                         {"step_seconds", theirs.seconds},
                         {"tokens_per_second", json_of(r)},
                         {"mfu", mfu(r.median)},
                         {"fraction_of_floor", json_of(f)},
                         {"memory_bytes", theirs.memory_bytes}};
    result["ahead_of_pytorch"] = json_of(ahead);
    print_row("", "picotron", "PyTorch " + version);
    print_row("tokens/s", text(rate, 0), their_rate);
    print_row("speed, PyTorch = 1", text(ahead, 2), "1");
  } else {
    print_row("", "picotron", "PyTorch");
    print_row("tokens/s", text(rate, 0), "skipped: " + skipped);
  }
  print_row("MFU", fmt::format("{:.1f}%", 100 * mfu(rate.median)), their_mfu);
  print_row("of the product floor", text(of_floor, 2), their_floor);
  print_row("peak memory", fmt::format("{:.2f} GB", static_cast<double>(mine.memory_bytes) / 1e9),
            their_memory);
  return result;
}

}  // namespace

int bench_command(const std::vector<std::string>& arguments) {
  CLI::App app(
      "Measure training steps on random tokens, on one rank of this CPU: tokens/s, MFU, peak "
      "memory,\n"
      "and the share of the product floor, which is the time that the step's matrix products take\n"
      "when each is run alone in the fastest form the libraries offer. Without --model_name:\n"
      "SmolLM-135M (4 x 512 tokens), then SmolLM-1.7B with 5 layers (4 x 128 tokens).",
      "bench");
  Options options;
  app.add_option("--model_name", options.model_name,
                 "A model of the built-in table, or a folder with config.json");
  app.add_option("--num_hidden_layers", options.num_hidden_layers,
                 "Layers; by default the model's own")
      ->check(CLI::PositiveNumber);
  app.add_option("--mbs", options.mbs, "Sequences of a step; 4 by default")
      ->check(CLI::PositiveNumber);
  app.add_option("--seq_len", options.seq_len, "Tokens of a sequence; 512 by default")
      ->check(CLI::PositiveNumber);
  app.add_option("--steps", options.steps,
                 fmt::format("Measured steps of each program, after {} of warm-up", kWarmupSteps))
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--rounds", options.rounds, "In how many turns the steps are run")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--dtype", options.dtype,
                 "bfloat16 or float32; by default bfloat16 where this CPU is quick at it")
      ->check(CLI::IsMember({"bfloat16", "float32"}));
  app.add_option("--threads", options.threads, "By default one for each core")
      ->check(CLI::PositiveNumber);
  app.add_option(
      "--pytorch", options.pytorch,
      "A Python with torch and transformers: the same model in plain PyTorch takes turns\n"
      "with ours (run from the repository's root, for bench/pytorch_step.py)");
  app.add_option("--json", options.json, "Write all figures to this file");
  if (const std::optional<int> done = parse(app, arguments)) return *done;
  if (options.threads == 0)
    options.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));

  Json results = {{"device", open_device({.use_cpu = true})->name()},
                  {"threads", options.threads},
                  {"dtype", c10::toString(resolve_dtype(options.dtype))},
                  {"cases", Json::array()}};
  log::print(fmt::format("{}, {} threads, {}", results["device"].get<std::string>(),
                         options.threads, results["dtype"].get<std::string>()));
  std::ofstream file;
  if (!options.json.empty()) {
    file.open(options.json);
    if (!file) throw user_error("cannot write {}; choose another --json FILE", options.json);
  }
  for (const Case& c : cases_of(options)) results["cases"].push_back(measure(c, options));
  if (file.is_open()) file << results.dump(2) << "\n";
  return 0;
}

}  // namespace picotron
