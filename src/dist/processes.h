// Ranks as processes: starts this program once per rank on this machine and waits for all.
//
// The launcher holds the rendezvous store and computes nothing, so it lives on when a rank does
// not, and can say which rank ended first and by which signal. If it dies itself, the kernel ends
// the ranks (PR_SET_PDEATHSIG).
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "dist/stop.h"

namespace picotron {

// Returns the exit code of the run, as launch() does. Says `heard` at the first request to stop.
// What every rank did last is written into `report_folder` when one is lost or SIGUSR2 asks; "":
// nowhere. Throws RunError if a rank cannot be started.
int run_processes(int world_size, const std::vector<std::string>& argv,
                  const std::string& report_folder = "", std::string_view heard = kStopHeard);

// Of two ranks' exit codes the one that tells more: 2 (user error), 1, 75 (stopped), others, 0.
int worse_exit_code(int a, int b);

// For a rank: end when the launcher ends. Returns false if it already has.
bool end_with_launcher(int launcher);

// The exit code of a rank that reaches nobody and so cannot know who has spoken: its launcher does.
// The run's becomes 1.
inline constexpr int kCutOff = 76;

// The key in the rendezvous store that whoever speaks first counts up, so that of many ranks that
// find the same error one says it.
inline constexpr const char* kSpokenKey = "spoken";

}  // namespace picotron
