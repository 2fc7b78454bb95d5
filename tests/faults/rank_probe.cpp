// A small program in several ranks, for tests/faults/test_ranks.py: sums, and then does what it was
// asked to do wrong.   rank_probe RANKS processes|threads TIMEOUT_SECONDS MODE [RANK [LAYOUT
// [FOLDER]]]   LAYOUT, as "tp2pp2": it trains a small model instead, and does wrong in the third
// step. FOLDER: where the last operations of every rank are written.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "dist/collectives.h"
#include "dist/launch.h"
#include "train/train.h"
#include "train/verify.h"

namespace picotron {
namespace {

void misbehave(const std::string& mode) {
  if (mode == "die") raise(SIGKILL);
  if (mode == "stop") raise(SIGSTOP);
  if (mode == "quit") std::_Exit(3);
  if (mode == "fail") throw run_error("cannot write out/file: no space left on device");
  if (mode == "torch") at::ones({2}).view({3});
  if (mode == "sleep") std::this_thread::sleep_for(std::chrono::hours(1));
}

// Reads rows, and in the third step keeps rank 0 a while, so that the others wait for it, each in
// another operation. Meanwhile a rank is ended or stopped, or never comes back from reading.
class Troubled : public Dataset {
 public:
  Troubled(std::shared_ptr<const Dataset> rows, int64_t first_row, std::string mode, int victim)
      : rows_(std::move(rows)), first_row_(first_row), mode_(std::move(mode)), victim_(victim) {}
  const std::string& name() const override { return rows_->name(); }
  int64_t seq_length() const override { return rows_->seq_length(); }
  int64_t num_rows() const override { return rows_->num_rows(); }
  std::string locate(int64_t row, int64_t column) const override {
    return rows_->locate(row, column);
  }
  void read_row(int64_t row, std::span<int32_t> out) const override {
    rows_->read_row(row, out);
    if (row < first_row_ || done_.exchange(true)) return;
    const int rank = record::current()->global_rank();
    if (mode_ == "sleep") {
      if (rank == victim_) misbehave(mode_);
      return;
    }
    // Two beats, so that the others know what it waits for.
    if (rank == victim_)
      std::thread([mode = mode_] {
        std::this_thread::sleep_for(std::chrono::milliseconds(2200));
        misbehave(mode);
      }).detach();
    if (rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2700));
  }

 private:
  const std::shared_ptr<const Dataset> rows_;
  const int64_t first_row_;
  const std::string mode_;
  const int victim_;
  mutable std::atomic<bool> done_ = false;
};

int train_in(const std::string& layout, double timeout, const std::string& mode, int victim,
             const Rendezvous& rendezvous) {
  const auto size_of = [&](const char* axis) -> int64_t {
    const size_t at = layout.find(axis);
    return at == std::string::npos ? 1 : layout.at(at + 2) - '0';
  };
  Config config;
  config.distributed = {.tp_size = size_of("tp"),
                        .cp_size = size_of("cp"),
                        .pp_size = size_of("pp"),
                        .dp_size = size_of("dp"),
                        .timeout_seconds = timeout};
  config.training.micro_batch_size = 2;
  config.training.gradient_accumulation_steps = 2;
  const LlamaConfig model{.name = "test",
                          .vocab_size = 64,
                          .hidden_size = 64,
                          .intermediate_size = 64,
                          .num_hidden_layers = 2,
                          .num_attention_heads = 4,
                          .num_key_value_heads = 2,
                          .head_dim = 8,
                          .rms_norm_eps = 1e-5};
  const ShrunkRun small = shrink(config, model, DType::float64, OptimizerKind::sgd);
  Run run = rehearse(small);
  run.datasets.train = std::make_shared<Troubled>(
      std::move(run.datasets.train), 2 * global_batch_size(small.config), mode, victim);
  train(run, rendezvous, *open_device({.use_cpu = true}));
  return 0;
}

int rank_main(int ranks, const std::string& mode, int victim, const Rendezvous& rendezvous) {
  if (mode == "user") throw user_error("tokens.npy: no such file");
  if (mode == "code") return victim == rendezvous.global_rank ? 75 : 0;
  const Mesh mesh = make_mesh({.dp = ranks}, rendezvous);
  heed_stops_after_a_step();
  const bool endless = mode == "loop";
  for (int step = 1; step <= 5 || endless; ++step) {
    const at::Tensor sum = at::full({1000}, mesh.global_rank + 1.0, at::kDouble);
    all_reduce(sum, mesh.dp_cp).wait();
    check(sum[999].item<double>() == ranks * (ranks + 1) / 2.0, "the sum of all ranks");
    if (step == 3 && mesh.global_rank == victim) misbehave(mode);
    const at::Tensor stop = at::full({1}, stop_requested() ? 1.0 : 0.0, at::kDouble);
    all_reduce(stop, mesh.world).wait();
    if (stop.item<double>() > 0) {
      log::print(fmt::format("stopped after step {}", step));
      return 75;
    }
    if (endless) {
      if (step == 2) log::print("looping");
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
    }
  }
  log::print(fmt::format("sum over {} ranks is right", ranks));
  return 0;
}

int probe(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  const int ranks = std::stoi(arguments.at(1));
  const std::string mode = arguments.at(4);
  const int victim = argc > 5 ? std::stoi(arguments[5]) : -1;
  const std::string layout = argc > 6 ? arguments[6] : "";
  try {
    return launch({.world_size = ranks,
                   .ranks = arguments[2] == "threads" ? Ranks::threads : Ranks::processes,
                   .timeout = std::chrono::seconds(std::stoi(arguments[3])),
                   .argv = arguments,
                   .report_folder = argc > 7 ? arguments[7] : ""},
                  [&](const Rendezvous& rendezvous, int, int) {
                    if (!layout.empty())
                      return train_in(layout, std::stod(arguments[3]), mode, victim, rendezvous);
                    return rank_main(ranks, mode, victim, rendezvous);
                  });
  } catch (const UserError& error) {
    log::error(error.what());
    return 2;
  } catch (const std::exception& error) {
    log::error(error.what());
    return 1;
  }
}

}  // namespace
}  // namespace picotron

int main(int argc, char** argv) {
  return picotron::probe(argc, argv);
}
