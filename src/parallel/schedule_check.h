// Walks the lists of all stages together, as the runner would, without computing anything: a proof
// before anything runs, and the pipeline's timeline.
//
//     stage 0   F0 F1 F2 .  .  B0--- F3 B1--- …        a message starts when it is sent (buffered)
//     stage 1   .  F0 F1 B0--- F2 B1--- …              or when both sides are there (rendezvous)
//
// Proved: each microbatch goes once forward and once backward through each chunk; each receive has
// its send, and the n-th of a link is the n-th of the other side, for NCCL knows no tags; no stage
// waits for itself through others. Rendezvous are NCCL's rules: the messages of a link (a group of
// two ranks, dist/mesh.h) move one after another in the order issued, each once its send *and* its
// receive are issued. Buffered are the most lenient rules: a send ends at once.
//
// The cost is one visit of each action, so that the program can check its own lists at each start.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "parallel/pipeline_schedule.h"

namespace picotron {

enum class Delivery : uint8_t { buffered, rendezvous };

// Durations, in any unit, of a virtual stage of average size.
struct ActionCosts {
  double forward = 1, backward_input = 1, backward_weight = 1;
  double message = 0;                       // from start to arrival
  std::vector<double> virtual_stages = {};  // relative size of each; empty: all 1
};

enum class Flaw : uint8_t {
  unknown,    // a microbatch, chunk or message that this stage does not have
  repeated,   // the same action twice
  too_early,  // before what it needs, on its own stage
  missing,    // an action that the step needs is not in the list
  crossed,    // the n-th send of a link is not the n-th receive
  circle,     // stages wait for each other
};

struct BrokenSchedule : BrokenInvariant {
  BrokenSchedule(Flaw of, int on_stage, const Action& at, const std::string& sentence)
      : BrokenInvariant(sentence), flaw(of), stage(on_stage), action(at) {}
  Flaw flaw;
  int stage;
  Action action;  // that is flawed, missing or waits
};

struct TimedAction {
  Action action;  // computation; messages are in between
  double begin = 0, end = 0;
};

struct StageReport {
  std::vector<TimedAction> timeline;
  // Most (microbatch, chunk)s at once between forward and input gradient: Saved objects.
  int64_t most_saved = 0;
  // … between forward and the end of its backward. More than most_saved where weight gradients
  // wait, each for a dy and an x.
  int64_t most_kept = 0;
  // Most messages at once that were sent to this stage and not used yet.
  int64_t most_in_flight = 0;
};

struct ScheduleReport {
  std::vector<StageReport> stages;
  double makespan = 0;  // from the first begin to the last end
  double bubble = 0;    // the part of stages · makespan in which a stage computes nothing
};

// `lists`: of stage 0, 1, …; `options`: the whole schedule's, of any stage. Throws BrokenSchedule
// with a sentence that names stage and action.
ScheduleReport check_schedules(const std::vector<Schedule>& lists, const ScheduleOptions& options,
                               Delivery delivery, const ActionCosts& costs = {});

// make_schedule() of every stage.
std::vector<Schedule> all_stages(ScheduleOptions options);

// A row of text for each stage, a column for each `unit` of time (0: the shortest action): F0 of
// microbatch 0, F0b through chunk 1, B backward (or its input half), W weight gradient, . idle.
std::string draw(const ScheduleReport& report, double unit = 0);

}  // namespace picotron
