// From the environment to a running rank: how the ranks meet, what each does around its work, and
// who speaks when several fail at once. Processes are in processes.cpp, threads here.
#include "dist/launch.h"

#include <ATen/Parallel.h>
#include <arpa/inet.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>
#include <csignal>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

#include "core/error.h"
#include "core/log.h"
#include "dist/channel.h"
#include "dist/heartbeat.h"
#include "dist/operations.h"
#include "dist/processes.h"

namespace picotron {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kStorePatience{1000};
// After rank 0, which serves the store, has failed: time for the others to read why.
constexpr milliseconds kStoreStays{2500};
// After one thread's rank has failed: time for the others to end.
constexpr std::chrono::seconds kGrace{6};
// Between two looks at whether SIGUSR2 has come.
constexpr milliseconds kGlance{200};

// Each rank is a program with its own memory and threads: many more than a machine has cores only
// bring it to a halt.
void check_ranks_here(const LaunchOptions& options) {
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int most = std::max(64, 4 * cores);
  if (options.world_size <= most) return;
  throw user_error(
      "dp · pp · cp · tp is {} ranks, and this machine with {} cores starts at most {}; lower "
      "distributed.dp_size, or start the ranks on several machines with torchrun, srun or mpirun",
      options.world_size, cores, most);
}

// The store's calls may block for ever when the one who serves it is stopped. Runs `call` aside and
// returns its result, nothing if it takes longer. What `call` refers to, it must own.
template <class Call>
auto answer_within(milliseconds patience, Call call) -> std::optional<decltype(call())> {
  std::packaged_task<decltype(call())()> task(std::move(call));
  auto answer = task.get_future();
  std::thread(std::move(task)).detach();
  if (answer.wait_for(patience) != std::future_status::ready) return std::nullopt;
  return answer.get();
}

// The address of this machine by which the others, of whom rank 0 is at `master`, reach it.
std::string address_towards(const std::string& master) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  in_addr mine{};
  if (getaddrinfo(master.c_str(), "9", &hints, &found) == 0) {
    const int probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_in local{};
    socklen_t length = sizeof(local);
    // Connecting a datagram socket sends nothing; the kernel only picks the route.
    if (connect(probe, found->ai_addr, found->ai_addrlen) == 0 &&
        getsockname(probe, reinterpret_cast<sockaddr*>(&local), &length) == 0) {
      mine = local.sin_addr;
    }
    close(probe);
    freeaddrinfo(found);
  }
  // On rank 0's own machine its name may mean loopback, where the others cannot reach it.
  ifaddrs* interfaces = nullptr;
  if (ntohl(mine.s_addr) >> 24 == 127 && getifaddrs(&interfaces) == 0) {
    for (const ifaddrs* each = interfaces; each != nullptr; each = each->ifa_next) {
      if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET) continue;
      if ((each->ifa_flags & IFF_LOOPBACK) != 0 || (each->ifa_flags & IFF_UP) == 0) continue;
      mine = reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr;
      break;
    }
    freeifaddrs(interfaces);
  }
  char text[INET_ADDRSTRLEN] = "127.0.0.1";
  if (mine.s_addr != 0) inet_ntop(AF_INET, &mine, text, sizeof(text));
  return text;
}

c10::intrusive_ptr<c10d::Store> connect_store(const LaunchEnvironment& environment,
                                              milliseconds timeout) {
  const std::string host = environment.master_host;
  const int port = environment.master_port;
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port);
  options.isServer = environment.rank == 0 && !environment.store_is_served;
  options.waitWorkers = false;
  options.timeout = timeout;
  try {
    const auto store = answer_within(timeout + kStorePatience,
                                     [host, options]() -> c10::intrusive_ptr<c10d::Store> {
                                       return c10::make_intrusive<c10d::TCPStore>(host, options);
                                     });
    if (store && environment.started == Started::by_us) return *store;
    if (store) {  // torchrun's store has keys of its own, and survives a restart of its ranks
      return c10::make_intrusive<c10d::PrefixStore>("picotron/" + environment.attempt, *store);
    }
  } catch (const std::exception& error) {
    if (options.isServer) {
      const bool in_use =
          std::string_view(error.what()).find("EADDRINUSE") != std::string_view::npos;
      throw run_error("rank 0 cannot open port {}{}; set MASTER_PORT to a free one", port,
                      in_use ? ", which is in use" : "");
    }
  }
  throw run_error(
      "rank {} cannot reach rank 0's store at {}:{} within {} s; check MASTER_ADDR and "
      "MASTER_PORT, and that rank 0 runs",
      environment.rank, host, port, timeout.count() / 1000);
}

// Of many ranks that fail of one cause, the first to ask is to say it. Nothing: the store does not
// answer, so nobody else can be heard of.
std::optional<bool> may_speak(const Rendezvous& rendezvous) {
  try {
    const auto count = answer_within(
        kStorePatience, [store = rendezvous.store] { return store->add(kSpokenKey, 1); });
    return count ? std::optional(*count == 1) : std::nullopt;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

// What a sentence about a lost rank ends with, once the report of it is written; "" where it cannot
// be, for then the sentence alone matters.
std::string write_and_say_where(const std::string& folder, const Heartbeat& heartbeat,
                                const std::string& sentence) {
  if (folder.empty()) return "";
  try {
    return "; " + where_reported(write_report(folder, heartbeat.report(sentence)));
  } catch (const std::exception&) {
    return "";
  }
}

// For as long as it lives, SIGUSR2 is answered with a report. In a thread of its own: the
// heartbeat's may be waiting for a store that has stopped, which is when one asks.
class ReportsOnRequest {
 public:
  // `heartbeat` must outlive it.
  ReportsOnRequest(const std::string& folder, const Heartbeat& heartbeat) {
    if (folder.empty()) return;
    thread_ = std::jthread([folder, &heartbeat](const std::stop_token& stop) {
      std::mutex mutex;
      std::condition_variable_any stopped;
      std::unique_lock lock(mutex);
      while (!stopped.wait_for(lock, stop, kGlance, [&] { return stop.stop_requested(); })) {
        if (take_report_request()) answer_report_request(folder, heartbeat.report(kAskedBySignal));
      }
    });
  }

 private:
  std::jthread thread_;
};

std::string sentence_of(const std::exception& error) {
  if (const auto* of_torch = dynamic_cast<const c10::Error*>(&error)) {
    return plain_sentence(of_torch->what_without_backtrace());
  }
  return plain_sentence(error.what());
}

void set_threads(const LaunchOptions& options, int local_size) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  at::set_num_threads(options.threads_per_rank > 0 ? options.threads_per_rank
                                                   : std::max(1, cores / local_size));
}

// One rank of several, from its first breath to its exit code. `has_launcher`: one that watches it.
int run_rank(const Rendezvous& where, int local_rank, int local_size, const LaunchOptions& options,
             const RankMain& rank_main, bool has_launcher = false) {
  record::Recorder recorder(where.global_rank);
  const record::Attach attached(&recorder);
  set_threads(options, local_size);
  Rendezvous rendezvous = where;
  rendezvous.timeout = options.timeout;
  rendezvous.heartbeat = std::make_shared<Heartbeat>(rendezvous, recorder);
  const ReportsOnRequest on_request(options.report_folder, *rendezvous.heartbeat);
  std::string sentence;
  int code = 1;
  bool lost_others = false;
  try {
    code = rank_main(rendezvous, local_rank, local_size);
    rendezvous.heartbeat->leave("");
    return code;
  } catch (const UserError& error) {
    sentence = error.what();
    code = 2;
  } catch (const LostRank& error) {
    sentence = error.what();
    lost_others = true;
  } catch (const std::exception& error) {
    sentence = sentence_of(error);
  }
  const std::optional<bool> may = may_speak(rendezvous);
  if (!may && lost_others && has_launcher) return kCutOff;
  if (may.value_or(true)) {
    const bool is_known = code == 2;  // what the user gave is wrong: no rank is to blame
    log::error(sentence + (is_known ? ""
                                    : write_and_say_where(options.report_folder,
                                                          *rendezvous.heartbeat, sentence)));
  }
  rendezvous.heartbeat->leave(sentence);
  return code;
}

int run_threads(const LaunchOptions& options, const RankMain& rank_main) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::mutex mutex;
  std::condition_variable changed;
  int running = options.world_size, code = 0;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < options.world_size; ++rank) {
    threads.emplace_back([&, rank] {
      const int mine =
          run_rank({.global_rank = rank, .world_size = options.world_size, .store = store}, rank,
                   options.world_size, options, rank_main);
      const std::lock_guard lock(mutex);
      --running;
      code = worse_exit_code(code, mine);
      changed.notify_all();
    });
  }
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return running == 0 || (code != 0 && code != kStoppedAfterSave); });
    if (!changed.wait_for(lock, kGrace, [&] { return running == 0; })) {
      // A thread that waits for what will not come cannot be ended but with its process.
      std::fflush(nullptr);
      std::_Exit(code);
    }
  }
  for (std::thread& thread : threads) thread.join();
  return code;
}

void install_handlers(const LaunchEnvironment& environment, bool ends_at_once, bool speaks = true) {
  const bool ours = environment.started == Started::by_us;
  install_stop_handlers({.heeds_interrupt = !ours,
                         .speaks = speaks && !ours && environment.rank == 0,
                         .ends_at_once = ends_at_once});
}

int run_started_rank(const LaunchEnvironment& environment, const LaunchOptions& options,
                     const RankMain& rank_main) {
  const bool ours = environment.started == Started::by_us;
  if (ours && !end_with_launcher(environment.launcher)) return 1;
  Rendezvous rendezvous;
  rendezvous.global_rank = environment.rank;
  rendezvous.world_size = environment.world_size;
  if (environment.local_size < environment.world_size) {
    rendezvous.address = address_towards(environment.master_host);
  }
  rendezvous.store = connect_store(environment, options.timeout);
  const int code = run_rank(rendezvous, environment.local_rank, environment.local_size, options,
                            rank_main, ours);
  const bool serves = environment.rank == 0 && !environment.store_is_served;
  if (serves && code != 0 && code != kStoppedAfterSave) std::this_thread::sleep_for(kStoreStays);
  return code;
}

int run_alone(const LaunchOptions& options, const RankMain& rank_main) {
  record::Recorder recorder;
  const record::Attach attached(&recorder);
  set_threads(options, 1);
  Rendezvous alone;
  alone.timeout = options.timeout;
  // Nobody listens to this heart, but SIGUSR2 asks it what goes on.
  Rendezvous with_store = alone;
  with_store.store = c10::make_intrusive<c10d::HashStore>();
  const Heartbeat heartbeat(with_store, recorder);
  const ReportsOnRequest on_request(options.report_folder, heartbeat);
  return rank_main(alone, 0, 1);
}

}  // namespace

bool speaks_for_machine(const Getenv& get) {
  try {
    return read_environment(get).local_rank == 0;
  } catch (const UserError&) {
    return true;  // then it is the environment that is wrong
  }
}

void heed_signals(const Getenv& get) {
  try {
    const LaunchEnvironment environment = read_environment(get);
    install_handlers(environment, /*ends_at_once=*/environment.started != Started::by_us);
  } catch (const UserError&) {  // launch() will say what is wrong
  }
}

int launch(const LaunchOptions& options, const RankMain& rank_main, const Getenv& get) {
  FLAGS_caffe2_log_level = 3;  // c10d's warnings about sockets: what matters we say ourselves
  const LaunchEnvironment environment = read_environment(get);
  // A peer that is gone is an error which names it, not the end of this process.
  std::signal(SIGPIPE, SIG_IGN);
  // A rank that others started may wait for one that never comes; train() ends this.
  const bool waits =
      environment.started != Started::single && environment.started != Started::by_us;
  install_handlers(environment, waits || options.ends_at_once, /*speaks=*/!options.ends_at_once);
  if (environment.started == Started::single) {
    if (options.world_size == 1) return run_alone(options, rank_main);
    check_ranks_here(options);
    if (options.ranks == Ranks::threads) return run_threads(options, rank_main);
    return run_processes(options.world_size, options.argv, options.report_folder,
                         options.ends_at_once ? "" : kStopHeard);
  }
  if (environment.world_size != options.world_size) {
    throw user_error(
        "{} ranks were started, but the config's dp · pp · cp · tp is {}; start {} or "
        "change the sizes",
        environment.world_size, options.world_size, options.world_size);
  }
  if (environment.world_size == 1) return run_alone(options, rank_main);
  if (options.ranks == Ranks::threads) {
    throw user_error(
        "distributed.ranks \"threads\" means one process, but {} were started; use "
        "\"processes\", or start one",
        environment.world_size);
  }
  return run_started_rank(environment, options, rank_main);
}

}  // namespace picotron
