// What a run does with signals. A step cannot be left half done on some ranks, so Ctrl-C (SIGINT),
// SIGTERM and SIGUSR1 (Slurm's warning before its time limit) only set a flag, which the training
// loop reads after each step and reduces with the loss, so that all ranks stop at the same one. A
// second Ctrl-C ends the process at once (exit code 130). SIGUSR2 asks for the last operations of
// every rank (dist/operations.h) and disturbs nothing.
//
// A terminal sends Ctrl-C to a launcher and to all its ranks, `kill -INT` to the launcher alone. So
// the launcher passes the request on, and its ranks heed only that. It passes it on as SIGTERM: a
// SIGINT of its own would be merged with the terminal's that is still pending, and be lost.
//
//     program starts    handlers           the ranks begin       first step        …
//     default action    ends at once, 75   heeded after the first step, then saved, 75
//
// Ranks that others start (torchrun, srun) begin when all have met; until then a request ends each
// at once, 75.
// A rank that we start is born with these signals blocked: they wait until its handlers are there.
#pragma once
#include <signal.h>

namespace picotron {

inline constexpr char kStopHeard[] =
    "\nstopping after the running step; Ctrl-C again ends at once\n";
inline constexpr char kStoppedEarly[] =
    "\nstopped before the first step; there was nothing to save yet\n";

inline constexpr int kStoppedAfterSave = 75;  // exit code: the run can go on (EX_TEMPFAIL)

struct StopOptions {
  bool heeds_interrupt = true;  // SIGINT counts; false: a launcher turns it into SIGTERM
  bool speaks = true;           // says on stderr that the request was heard
  bool ends_at_once = false;    // nothing has begun that would have to be saved
};
// Also lets signals through that were blocked, in the calling thread.
void install_stop_handlers(const StopOptions& options = {});
// The ranks have met: from here on a request waits for the end of a step.
void heed_stops_after_a_step();
bool stop_requested();
// Has SIGUSR2 come since the last call?
bool take_report_request();

// The four signals.
sigset_t run_signals();

}  // namespace picotron
