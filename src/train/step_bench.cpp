// See step_bench.h.
#include "train/step_bench.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "kernels/matmul.h"
#include "kernels/matmul_floor.h"
#include "model/initial_values.h"

namespace picotron {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr size_t kEntriesOfAStep = size_t{1} << 16;  // a model of a thousand layers leaves fewer

Training training_options() {
  Training training;
  training.grad_clip = 1.0;
  return training;
}

// Tokens without a pattern: element i is drawn from (seed, i), like initial values.
at::Tensor draw_tokens(uint64_t seed, int64_t count, int64_t vocab_size) {
  const at::Tensor tokens = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i)
    tokens.data_ptr<int64_t>()[i] = philox(seed, static_cast<uint64_t>(i)).x[0] % vocab_size;
  return tokens;
}

// Seconds of a step by kind of entry. Actions contain the others, and are left out.
Json seconds_by_kind(const std::vector<record::Entry>& entries) {
  double products = 0, attention = 0;
  for (const record::Entry& entry : entries) {
    const double seconds = 1e-9 * static_cast<double>(entry.end_ns - entry.begin_ns);
    if (entry.kind == record::Kind::product) products += seconds;
    if (entry.kind == record::Kind::attention) attention += seconds;
  }
  return {{"products", products}, {"attention", attention}};
}

Json answer_steps(StepBench& bench, int64_t count) {
  Json seconds = Json::array();
  for (int64_t i = 0; i < count; ++i) seconds.push_back(bench.step());
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {{"seconds", seconds},
          {"memory_bytes", int64_t{usage.ru_maxrss} * 1024},
          {"newest", seconds_by_kind(bench.entries())}};
}

Json answer_floor(const StepBench& bench, at::ScalarType dtype) {
  const std::vector<ProductTime> products = measure_products(bench.entries(), dtype);
  Json list = Json::array();
  for (const ProductTime& p : products) {
    list.push_back({{"what", p.what},
                    {"m", p.m},
                    {"n", p.n},
                    {"k", p.k},
                    {"count", p.count},
                    {"form", p.form},
                    {"seconds", p.seconds},
                    {"seconds_in_step", p.seconds_in_step / static_cast<double>(p.count)},
                    {"gflops", p.flops() / p.seconds / 1e9}});
  }
  return {{"seconds", total_seconds(products)},
          {"product_rate", measure_product_rate(dtype)},
          {"products", list}};
}

}  // namespace

StepBench::StepBench(const StepBenchOptions& options)
    : options_(options),
      training_(training_options()),
      model_(options.architecture, mesh_,
             {.tensors = at::TensorOptions(options.dtype), .max_positions = options.columns}),
      gradients_(model_.parameters(), mesh_.dp_cp, mesh_.world, {}) {
  fill_initial_values(model_.parameters(), gradients_.flat(),
                      {.initializer_range = options.architecture.initializer_range});
  model_.parameters().flat().copy_(gradients_.flat());
  optimizer_ = std::make_unique<ShardedOptimizer>(model_.parameters(), gradients_,
                                                  gradients_.flat(), training_, Body::fused);
  const int64_t tokens = options.rows * options.columns;
  batch_ = {.rows = options.rows,
            .columns = options.columns,
            .ids = draw_tokens(1, tokens, options.architecture.vocab_size),
            .targets = draw_tokens(2, tokens, options.architecture.vocab_size),
            .positions = at::arange(options.columns, at::kLong).repeat({options.rows})};
}

double StepBench::step() {
  const at::NoGradGuard backward_is_written_out;
  recorder_ = std::make_unique<record::Recorder>(0, kEntriesOfAStep);
  const record::Attach attach(recorder_.get());
  const auto begin = Clock::now();
  const double scale = 1 / static_cast<double>(options_.rows * options_.columns);
  const at::Tensor loss =
      run_schedule(make_schedule({}), model_, {batch_}, scale, gradients_, mesh_);
  const at::Tensor norm = gradients_.norm();
  optimizer_->step(++steps_, training_.learning_rate,
                   clip_factor(norm, training_.grad_clip, gradients_.flat().scalar_type()));
  const double value = loss.item<double>();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  if (!std::isfinite(value)) throw run_error("step {}: the loss is {}", steps_, value);
  return seconds;
}

void serve_step_bench(const StepBenchOptions& options, std::istream& in, std::ostream& out) {
  StepBench bench(options);
  out << Json({{"ready", true}}) << std::endl;
  for (std::string request; in >> request;) {
    if (request == "floor") {
      out << answer_floor(bench, options.dtype) << std::endl;
      continue;
    }
    int64_t count = 0;
    check(request == "steps" && in >> count, "a step bench is asked for steps or for the floor");
    out << answer_steps(bench, count) << std::endl;
  }
}

}  // namespace picotron
