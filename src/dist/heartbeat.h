// Who hangs. When a rank dies or stalls, every other rank soon waits for it, and the network's own
// errors name ports, not ranks. So each rank has a heartbeat: a thread that every second writes to
// the rendezvous store
//
//     beat/RANK        (beats, operations begun, does it wait for others, place, operation)
//     operations/RANK  its last operations, for a report alone (dist/operations.h)
//
// and reads the others' beats. From what it has read:
//
//     a beat that stands still            that rank is dead, stopped, or cut off from the network
//     all beat, one does not wait         that rank is alive and behind: the others wait for it
//
// Stages of a pipeline begin different numbers of operations, so only of ranks that are equal in
// this does the lowest number tell who is behind.
//
// A rank that ends with an error writes the error in place of its last beat, so that the others can
// repeat the cause instead of its consequence. Read next: core/record.h (the sequence),
// dist/channel.h (who asks), dist/operations.h.
#pragma once
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/record.h"
#include "dist/operations.h"

namespace c10d {
class Store;
}

namespace picotron {

struct Rendezvous;

class Heartbeat {
 public:
  static constexpr std::chrono::milliseconds kBeat{1000};
  static constexpr int kBeatsToDiagnose = 2;

  // Beats until destroyed. `recorder` must outlive it.
  Heartbeat(const Rendezvous& rendezvous, const record::Recorder& recorder);
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  // Where this rank's groups note what they wait for (dist/channel.h).
  const std::shared_ptr<std::atomic<uint64_t>>& awaited() const;
  // How messages call the place of a rank in the mesh ("dp 1, tp 0").
  void set_places(std::function<std::string(int global_rank)> place);
  // Waits two beats, then says in one sentence which rank is to blame and what it was in.
  std::string diagnose() const;
  // The text of dist/operations.h: what every rank did last, below `heading`. If the store does not
  // answer within two seconds it says so, and tells of the other ranks what was read before.
  std::string report(const std::string& heading) const;
  // This rank ends: with an error (its sentence), or, empty, as it should.
  void leave(const std::string& error);

 private:
  struct Shared;  // with the thread, which may be left behind if the store never answers
  std::shared_ptr<Shared> shared_;
};

// What the store says of a rank, for a launcher: "rank 1 (tp 1, pp 0)", and its operation when it
// last beat, "" where none was seen.
struct LastSeen {
  std::string name, operation;
};
LastSeen last_seen(c10d::Store& store, int rank);
// And what the store says of every rank, for a launcher's report.
std::vector<RankChapter> chapters_in(c10d::Store& store, int world_size);

}  // namespace picotron
