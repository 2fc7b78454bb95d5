// Signal handlers: they set flags and write one constant sentence, for more is not allowed there.
#include "dist/stop.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace picotron {
namespace {

// A signal handler is called with nothing but the signal, so its flags belong to the process. They
// are the same for every rank that is a thread of it.
std::atomic<bool> requested{false};
std::atomic<bool> interrupted{false};
std::atomic<bool> heeds_interrupt{true};
std::atomic<bool> speaking{true};

void on_signal(int signal) {
  if (signal == SIGINT) {
    if (!heeds_interrupt) return;
    if (interrupted.exchange(true)) _exit(130);
  }
  if (requested.exchange(true) || !speaking) return;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kStopHeard, sizeof(kStopHeard) - 1);
}

}  // namespace

void install_stop_handlers(const StopOptions& options) {
  heeds_interrupt = options.heeds_interrupt;
  speaking = options.speaks;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool stop_requested() {
  return requested;
}

}  // namespace picotron
