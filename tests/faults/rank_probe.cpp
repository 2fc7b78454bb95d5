// A small program in several ranks, for tests/faults/test_ranks.py: sums, and then does what it was
// asked to do wrong.   rank_probe RANKS processes|threads TIMEOUT_SECONDS MODE [RANK]
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "core/error.h"
#include "core/log.h"
#include "dist/collectives.h"
#include "dist/launch.h"

namespace {

using namespace picotron;

void misbehave(const std::string& mode) {
  if (mode == "die") raise(SIGKILL);
  if (mode == "stop") raise(SIGSTOP);
  if (mode == "quit") std::_Exit(3);
  if (mode == "fail") throw run_error("cannot write out/file: no space left on device");
  if (mode == "torch") at::ones({2}).view({3});
  if (mode == "sleep") std::this_thread::sleep_for(std::chrono::hours(1));
}

int rank_main(int ranks, const std::string& mode, int victim, const Rendezvous& rendezvous) {
  if (mode == "user") throw user_error("tokens.npy: no such file");
  if (mode == "code") return victim == rendezvous.global_rank ? 75 : 0;
  const Mesh mesh = make_mesh({.dp = ranks}, rendezvous);
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

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  const int ranks = std::stoi(arguments.at(1));
  const std::string mode = arguments.at(4);
  const int victim = argc > 5 ? std::stoi(arguments[5]) : -1;
  try {
    return launch({.world_size = ranks,
                   .ranks = arguments[2] == "threads" ? Ranks::threads : Ranks::processes,
                   .timeout = std::chrono::seconds(std::stoi(arguments[3])),
                   .argv = arguments},
                  [&](const Rendezvous& rendezvous, int, int) {
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
