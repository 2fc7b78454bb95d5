// Requests to stop. A step cannot be left half done on some ranks, so Ctrl-C (SIGINT) and SIGTERM
// only set a flag, which the training loop reads after each step and reduces with the loss, so that
// all ranks stop at the same one. A second Ctrl-C ends the process at once (exit code 130).
//
// A terminal sends Ctrl-C to a launcher and to all its ranks, `kill -INT` to the launcher alone. So
// the launcher passes the request on, and its ranks heed only that. It passes it on as SIGTERM: a
// SIGINT of its own would be merged with the terminal's that is still pending, and be lost.
#pragma once

namespace picotron {

inline constexpr char kStopHeard[] =
    "\nstopping after the running step; Ctrl-C again ends at once\n";

inline constexpr int kStoppedAfterSave = 75;  // exit code: the run can go on (EX_TEMPFAIL)

struct StopOptions {
  bool heeds_interrupt = true;  // SIGINT counts; false: a launcher turns it into SIGTERM
  bool speaks = true;           // says on stderr that the request was heard
};
void install_stop_handlers(const StopOptions& options = {});
bool stop_requested();

}  // namespace picotron
