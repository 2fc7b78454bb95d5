// The launcher: spawns the ranks, serves the store, passes signals on, waits, and ends who does not
// end by itself.
#include "dist/processes.h"

#include <arpa/inet.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>

#include "core/error.h"
#include "core/log.h"
#include "dist/environment.h"
#include "dist/heartbeat.h"
#include "dist/operations.h"
#include "dist/stop.h"

extern char** environ;

namespace picotron {
namespace {

using Clock = std::chrono::steady_clock;

// How long the other ranks may take to end by themselves once one has failed.
constexpr std::chrono::seconds kGrace{3}, kGraceAfterUserError{2};
// From the end of a rank until the others have beaten once more, so that the report tells what each
// of them waits for; they need two beats to find that it is lost.
constexpr std::chrono::milliseconds kNextBeat = Heartbeat::kBeat + std::chrono::milliseconds(200);
constexpr timespec kGlance{.tv_sec = 0, .tv_nsec = 200'000'000};

// A listening socket on a free port of loopback: c10d's own would be open to the network.
int listen_on_loopback() {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (listener < 0 ||
      bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener, SOMAXCONN) != 0) {
    throw run_error("cannot open a port on this machine for the ranks to meet: {}",
                    strerror(errno));
  }
  return listener;
}

int port_of(int listener) {
  sockaddr_in address{};
  socklen_t length = sizeof(address);
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.sin_port);
}

c10::intrusive_ptr<c10d::TCPStore> serve_store() {
  const int listener = listen_on_loopback();
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port_of(listener));
  options.isServer = true;
  options.waitWorkers = false;
  options.masterListenFd = listener;
  return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}

// Blocks the launcher's signals, in threads started after too, so that one loop takes them in turn.
class SignalsByTurn {
 public:
  SignalsByTurn() {
    sigaddset(&signals_, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  }
  ~SignalsByTurn() {
    constexpr timespec kNow{};
    while (sigtimedwait(&signals_, nullptr, &kNow) > 0) {
    }  // a Ctrl-C that came as the last rank ended has nothing left to end
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SignalsByTurn(const SignalsByTurn&) = delete;
  SignalsByTurn& operator=(const SignalsByTurn&) = delete;
  // The next signal, 0 if none came in a while.
  int next() const {
    const int signal = sigtimedwait(&signals_, nullptr, &kGlance);
    return signal > 0 ? signal : 0;
  }

 private:
  sigset_t signals_ = run_signals(), before_;
};

pid_t spawn(const std::vector<std::string>& argv, const std::vector<std::string>& variables) {
  std::vector<char*> arguments, environment;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  for (const std::string& variable : variables) {
    environment.push_back(const_cast<char*>(variable.c_str()));
  }
  for (char** variable = environ; *variable != nullptr; ++variable)
    environment.push_back(*variable);
  arguments.push_back(nullptr);
  environment.push_back(nullptr);

  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  const sigset_t blocked = run_signals();  // until the rank has its handlers
  posix_spawnattr_setsigmask(&attributes, &blocked);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, "/proc/self/exe", nullptr, &attributes, arguments.data(),
                                environment.data());
  posix_spawnattr_destroy(&attributes);
  if (error != 0) throw run_error("cannot start a rank: {}", strerror(error));
  return pid;
}

const char* hint(int signal) {
  switch (signal) {
    case SIGKILL:
      return " (out of memory?)";
    case SIGBUS:
      return " (a mapped file was truncated, or shared memory is full?)";
    case SIGILL:
      return " (an instruction that this processor lacks)";
    case SIGSEGV:
      return " (a bug: it touched memory that is not its own)";
    case SIGABRT:
      return " (a bug: it gave up)";
    default:
      return "";
  }
}

// The ranks that run, and what is to be the exit code.
class Family {
 public:
  Family(c10::intrusive_ptr<c10d::TCPStore> store, int world_size, const std::string& report_folder)
      : store_(std::move(store)), world_size_(world_size), report_folder_(report_folder) {}
  ~Family() {  // an exception on the way: nothing is left behind
    send_all(SIGKILL);
    for (const auto& [pid, rank] : running_) waitpid(pid, nullptr, 0);
  }
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;

  void add(pid_t pid, int rank) { running_[pid] = rank; }
  bool empty() const { return running_.empty(); }
  int exit_code() const { return code_; }

  void send_all(int signal) const {
    for (const auto& [pid, rank] : running_) kill(pid, signal);
  }
  void reap() {
    for (auto child = running_.begin(); child != running_.end();) {
      int status = 0;
      if (waitpid(child->first, &status, WNOHANG) != child->first) {
        ++child;
        continue;
      }
      const int rank = child->second;
      child = running_.erase(child);
      if (!killed_by_us_) note_end(rank, status);
    }
  }
  void kill_late_ones() {
    if (!deadline_ || Clock::now() < *deadline_) return;
    killed_by_us_ = true;
    send_all(SIGKILL);
  }
  // Says what is to be said of a rank that has ended, once the others have beaten.
  void speak_in_time() {
    if (!sentence_.empty() && (empty() || Clock::now() >= speak_at_)) {
      log::error(sentence_ + report_of_loss());
      sentence_.clear();
    }
  }
  std::string report_text(const std::string& heading) const {
    std::vector<RankChapter> chapters = chapters_in(*store_, world_size_);
    for (const auto& [rank, how] : lost_) {
      std::string& standing = chapters[static_cast<size_t>(rank)].standing;
      standing = fmt::format("{}; {}", how, standing);
    }
    return report(heading, chapters);
  }
  void kill_now(int code) {
    killed_by_us_ = true;
    code_ = code;
    send_all(SIGKILL);
  }

 private:
  void note_end(int rank, int status) {
    const int ended_with = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    const int code = ended_with == kCutOff ? 1 : ended_with;
    code_ = worse_exit_code(code_, code);
    if (code == kStoppedAfterSave) send_all(SIGTERM);  // what stops one stops all
    if (code == 0 || code == kStoppedAfterSave) return;
    if (!deadline_) deadline_ = Clock::now() + (code == 2 ? kGraceAfterUserError : kGrace);
    lost_[rank] =
        WIFSIGNALED(status)
            ? fmt::format("was ended by signal {}{}", WTERMSIG(status), hint(WTERMSIG(status)))
        : ended_with == kCutOff ? "is cut off: it reaches neither the others nor its launcher"
                                : fmt::format("ended with exit code {}", code);
    // Now, before the others find that they have lost it, which takes them two beats.
    if (store_->add(kSpokenKey, 1) != 1) return;
    const LastSeen seen = last_seen(*store_, rank);
    sentence_ = fmt::format(
        "{} {}{}", seen.name, lost_[rank],
        seen.operation.empty() ? "" : "; the last operation seen of it was " + seen.operation);
    speak_at_ = Clock::now();
    if (!report_folder_.empty()) speak_at_ += kNextBeat;
  }
  std::string report_of_loss() const {
    if (report_folder_.empty()) return "";
    try {
      return "; " + where_reported(write_report(report_folder_, report_text(sentence_)));
    } catch (const RunError&) {
      return "";  // the sentence alone matters
    }
  }

  const c10::intrusive_ptr<c10d::TCPStore> store_;
  const int world_size_;
  const std::string report_folder_;
  std::map<pid_t, int> running_;     // process → rank
  std::map<int, std::string> lost_;  // rank → how it ended
  std::string sentence_;             // to be said; "" if nothing is
  Clock::time_point speak_at_;
  std::optional<Clock::time_point> deadline_;
  bool killed_by_us_ = false;
  int code_ = 0;
};

}  // namespace

int run_processes(int world_size, const std::vector<std::string>& argv,
                  const std::string& report_folder, std::string_view heard) {
  const SignalsByTurn signals;
  const auto store = serve_store();
  Family family(store, world_size, report_folder);
  for (int rank = 0; rank < world_size; ++rank) {
    family.add(spawn(argv, environment_for_rank(rank, world_size, store->getPort(), getpid())),
               rank);
  }
  bool stopping = stop_requested(), interrupted = false;  // by a signal that came before `signals`
  if (stopping) family.send_all(SIGTERM);
  while (!family.empty()) {
    const int signal = signals.next();
    if (signal == SIGINT && interrupted) family.kill_now(130);
    if (signal == SIGINT || signal == SIGTERM || signal == SIGUSR1) {
      family.send_all(SIGTERM);
      interrupted = interrupted || signal == SIGINT;
      if (!std::exchange(stopping, true)) log::raw(heard);
    }
    if ((signal == SIGUSR2 || take_report_request()) && !report_folder.empty())
      answer_report_request(report_folder, family.report_text(kAskedBySignal));
    family.reap();
    family.kill_late_ones();
    family.speak_in_time();
  }
  return family.exit_code();
}

int worse_exit_code(int a, int b) {
  for (const int code : {2, 1, kStoppedAfterSave}) {
    if (a == code || b == code) return code;
  }
  return std::max(a, b);
}

bool end_with_launcher(int launcher) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  return getppid() == launcher;
}

}  // namespace picotron
