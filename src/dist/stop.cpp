// Signal handlers: they set flags and write one constant sentence, for more is not allowed there.
#include "dist/stop.h"

#include <unistd.h>

#include <atomic>

namespace picotron {
namespace {

constexpr int kRunSignals[] = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

// A signal handler is called with nothing but the signal, so its flags belong to the process. They
// are the same for every rank that is a thread of it.
std::atomic<bool> requested{false};
std::atomic<bool> interrupted{false};
std::atomic<bool> report_requested{false};
std::atomic<bool> heeds_interrupt{true};
std::atomic<bool> speaking{true};
std::atomic<bool> ending_at_once{false};

template <size_t size>
void say(const char (&sentence)[size]) {
  if (!speaking) return;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, sentence, size - 1);
}

void on_signal(int signal) {
  if (signal == SIGUSR2) {
    report_requested = true;
    return;
  }
  if (signal == SIGINT) {
    if (!heeds_interrupt) return;
    if (interrupted.exchange(true)) _exit(130);
  }
  if (ending_at_once) {
    say(kStoppedEarly);
    _exit(kStoppedAfterSave);
  }
  if (!requested.exchange(true)) say(kStopHeard);
}

}  // namespace

void install_stop_handlers(const StopOptions& options) {
  heeds_interrupt = options.heeds_interrupt;
  speaking = options.speaks;
  ending_at_once = options.ends_at_once;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : kRunSignals) sigaction(signal, &action, nullptr);
  const sigset_t signals = run_signals();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

void heed_stops_after_a_step() {
  ending_at_once = false;
}

bool stop_requested() {
  return requested;
}

bool take_report_request() {
  return report_requested.exchange(false);
}

sigset_t run_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : kRunSignals) sigaddset(&signals, signal);
  return signals;
}

}  // namespace picotron
