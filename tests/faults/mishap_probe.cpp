// `picotron train` in which one thing happens to one rank in one phase of a step, for
// tests/faults/test_checkpoint_faults.py.   mishap_probe KIND PHASE RANK STEP CONFIG.json
//
//   KIND    die | stop | delay | cut      PHASE   start | forward | backward | optimizer | save
//
// `delay` stops the process for 5 s; `cut` shuts every connection it has, and those it opens later.
// From the end of step STEP - 1 on, the rank looks at its record before each ATen operation and is
// struck at the first one within the phase; a save is seen by a thread that watches the folder.
// stdout then says "struck in PHASE".
#include <ATen/record_function.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "core/record.h"
#include "dist/device.h"
#include "dist/launch.h"
#include "train/layout.h"
#include "train/run.h"
#include "train/train.h"

namespace picotron {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

void shut_connections() {
  for (int fd = 3; fd < 1024; ++fd) {
    int type = 0, listens = 0;
    socklen_t length = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM &&
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens == 0)
      shutdown(fd, SHUT_RDWR);
  }
}

void strike(const std::string& kind, const std::string& phase) {
  const std::string line = fmt::format("struck in {}\n", phase);
  check(write(STDOUT_FILENO, line.data(), line.size()) > 0, "somebody reads");
  if (kind == "die") raise(SIGKILL);
  if (kind == "stop") kill(getpid(), SIGSTOP);
  if (kind == "delay") {
    const pid_t self = getpid();
    if (fork() == 0) {
      sleep(5);
      kill(self, SIGCONT);
      _exit(0);
    }
    kill(self, SIGSTOP);
  }
  if (kind == "cut")
    std::thread([] {
      for (;; std::this_thread::sleep_for(20ms)) shut_connections();
    }).detach();
}

bool saves(const fs::path& save_dir) {
  for (const auto& entry : fs::directory_iterator(save_dir))
    if (entry.path().extension() == ".partial") return true;
  return false;
}

// ATen calls a function without an object, so what it is to do is known here.
struct Blow {
  std::string kind, phase;
  bool is_due = false;
};
Blow blow;

// Before an ATen operation of the rank's own thread.
std::unique_ptr<at::ObserverContext> strike_in_phase(const at::RecordFunction&) {
  const record::Recorder* recorder = record::current();
  if (recorder == nullptr || !blow.is_due) return nullptr;
  const record::Entry now = recorder->newest();
  const bool is_in = blow.phase == "forward"    ? now.what == std::string("attention")
                     : blow.phase == "backward" ? now.what == std::string("attention_backward")
                                                : now.kind == record::Kind::optimizer;
  if (!is_in) return nullptr;
  blow.is_due = false;
  strike(blow.kind, blow.phase);
  return nullptr;
}

int probe(const std::vector<std::string>& arguments) {
  const std::string kind = arguments.at(1), phase = arguments.at(2);
  const int victim = std::stoi(arguments.at(3));
  const int64_t step = std::stoll(arguments.at(4));
  heed_signals();
  const Config config = load_config(arguments.at(5), {}, known_layout_sizes);
  const Run run = prepare_run(config, /*on_gpu=*/false);
  const LaunchOptions options{
      .world_size = static_cast<int>(world_size(config)),
      .timeout = std::chrono::seconds(static_cast<int>(config.distributed.timeout_seconds)),
      .argv = arguments,
      .report_folder = config.checkpoint.save_dir};
  return launch(options, [&](const Rendezvous& rendezvous, int, int) {
    const bool strikes = rendezvous.global_rank == victim;
    if (strikes && phase == "start") strike(kind, phase);
    std::jthread watches_folder;
    TrainObserver observer;
    observer.after_reading = [&](const StepMetrics& metrics) {
      if (!strikes || metrics.step != step - 1) return;
      blow = {.kind = kind, .phase = phase, .is_due = phase != "save" && phase != "start"};
      if (phase == "save")
        watches_folder = std::jthread([&](const std::stop_token& ended) {
          while (!ended.stop_requested() && !saves(config.checkpoint.save_dir))
            std::this_thread::sleep_for(100us);
          if (!ended.stop_requested()) strike(kind, phase);
        });
    };
    at::addGlobalCallback(at::RecordFunctionCallback(strike_in_phase));
    const auto device = open_device({.use_cpu = true});
    return train(run, rendezvous, *device, observer).stopped ? kStoppedAfterSave : 0;
  });
}

}  // namespace
}  // namespace picotron

int main(int argc, char** argv) {
  try {
    return picotron::probe({argv, argv + argc});
  } catch (const picotron::UserError& error) {
    picotron::log::error(error.what());
    return 2;
  } catch (const std::exception& error) {
    picotron::log::error(error.what());
    return 1;
  }
}
