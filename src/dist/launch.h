// From one command to all ranks.
//
//     picotron train ──┬─ started by torchrun, srun, mpirun or ourselves: I am one rank
//                      ├─ a world of one: I am it
//                      └─ else start the ranks:  processes, each this program again, or
//                                                threads of this process (one debugger sees all)
//
// Ranks meet in a key-value store (c10d): in the launcher, in torchrun's agent, else in rank 0.
// Whatever goes wrong is said in one sentence, by the first rank that finds it; then all end, a
// rank that does not within seconds is killed, and no process is left.
// Read next: dist/environment.h, dist/processes.h, dist/heartbeat.h, dist/stop.h,
// dist/operations.h.
#pragma once
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "dist/environment.h"
#include "dist/mesh.h"
#include "dist/stop.h"

namespace picotron {

struct LaunchOptions {
  int world_size = 1;  // the config's
  Ranks ranks = Ranks::processes;
  std::chrono::milliseconds timeout{600'000};
  int threads_per_rank = 0;        // of OpenMP; 0: cores / ranks on this machine
  std::vector<std::string> argv;   // of this process; ranks are started with the same
  std::string report_folder = {};  // where dist/operations.h writes; "": nowhere
  bool ends_at_once = false;       // at a request to stop: it has nothing to save
};

// The first thing that a command which prepares a run does. From here on the signals of dist/stop.h
// wait for the first step of a rank that we started; any other process they end at once, for it has
// not begun.
void heed_signals(const Getenv& get = [](const char* name) -> const char* {
  return std::getenv(name);
});

// What one rank does; returns an exit code. It runs with its record attached and its threads set.
using RankMain = std::function<int(const Rendezvous&, int local_rank, int local_size)>;

// Runs `rank_main` as one rank, or starts all ranks and waits for them. Returns the exit code of
// the process: 0; 75 (stopped on request, saved); 2, a user error of any rank; 130, Ctrl-C twice;
// else 1. With several ranks, errors are printed here, once; in a world of one they pass through.
// Throws UserError where the environment's world size is not options.world_size, RunError where the
// ranks cannot meet.
int launch(
    const LaunchOptions& options, const RankMain& rank_main,
    const Getenv& get = [](const char* name) -> const char* { return std::getenv(name); });

// What is wrong before the ranks meet, every rank finds by itself: whether this process is the one
// of its machine to say it.
bool speaks_for_machine(const Getenv& get = [](const char* name) -> const char* {
  return std::getenv(name);
});

}  // namespace picotron
