// The record: what this rank did, in the order it happened.
//
// Every action of the schedule, collective, matrix product and attention call leaves one Entry:
// what, which group, shape, bytes, begin, end, file:line. Bytes per axis in metrics.jsonl, the
// report of a hang and `picotron explain` read this one list, so nothing is measured twice and no
// report can disagree with the run.
//
//   Recorder        a ring buffer, one per rank; a rank's threads share it
//   record::Scope   notes begin in its constructor and end in its destructor
//   record::About   names the Weight at work: a product does not know which layer it serves
//
// A rank's threads find their Recorder through one thread-local pointer, the program's only mutable
// global: ranks may be threads of one process, and a matrix product has no other way to know for
// whom it works. Read next: dist/collectives.h (who writes most entries), dist/heartbeat.h (who
// reads the newest).
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <source_location>
#include <string>
#include <vector>

namespace picotron::record {

enum class Kind : uint8_t {
  action,
  collective,
  send_receive,
  product,
  attention,
  optimizer,
  other
};
enum class Axis : uint8_t { none, tp, cp, pp, dp_cp, world };
inline constexpr int kAxes = 6;
const char* name_of(Axis axis);
using Counts = std::array<uint64_t, kAxes>;  // by axis

struct Entry {
  uint64_t sequence = 0;  // counts from 1 on each rank
  Kind kind = Kind::other;
  Axis axis = Axis::none;            // of the mesh, for communication
  const char* what = "";             // a string literal: "all_reduce", "linear forward", …
  std::array<int64_t, 4> shape{};    // first four sizes, 0 where there are fewer
  int64_t bytes = 0;                 // that this rank sends (communication), 0 otherwise
  double flops = 0;                  // of a product or attention call
  int64_t begin_ns = 0, end_ns = 0;  // steady clock; end 0: still running
  const char* file = "";             // where it was called
  uint32_t line = 0;
  int32_t about = -1;  // index of the Weight at work (About); -1: none
  int32_t ranks = 0;   // in the group that communicates
  int32_t peer = -1;   // global rank at the other end of a send or receive
  uint64_t nth = 0;    // of a collective: its number on its axis, the same on each of its ranks
};

// One per rank. Thread-safe; the newest `capacity` entries are kept, the counters count them all.
class Recorder {
 public:
  explicit Recorder(int global_rank = 0, size_t capacity = 4096);
  int global_rank() const { return global_rank_; }
  uint64_t begin(Entry entry);  // stamps sequence, begin_ns, about and nth; returns the sequence
  void end(uint64_t sequence);  // stamps end_ns, if the entry is still in the ring
  Entry newest() const;         // the entry begun last; sequence 0 if none
  std::vector<Entry> entries() const;  // oldest first
  int64_t bytes(Axis axis) const;      // sent on this axis since the start
  Counts collectives() const;          // begun since the start
  double product_flops() const;        // of products and attention since the start
  // What the entries that follow are about; returns what it was. See About.
  int32_t exchange_about(int32_t weight);

 private:
  const int global_rank_;
  mutable std::mutex mutex_;
  std::vector<Entry> ring_;
  uint64_t count_ = 0;
  std::array<int64_t, kAxes> bytes_{};
  Counts collectives_{};
  double flops_ = 0;
  int32_t about_ = -1;
};

Recorder* current();  // of the calling thread; null outside a rank

using Bytes = std::array<int64_t, kAxes>;  // by axis
Bytes bytes_sent();                        // by this rank since its start; zeros outside a rank
Bytes bytes_sent_since(const Bytes& before);

// Makes `recorder` the calling thread's own for as long as the object lives.
class Attach {
 public:
  explicit Attach(Recorder* recorder);
  ~Attach();
  Attach(const Attach&) = delete;
  Attach& operator=(const Attach&) = delete;

 private:
  Recorder* before_;
};

// For as long as it lives, what this rank does is about one Weight (parallel/parameter.h, by its
// index). Innermost counts.
class About {
 public:
  explicit About(size_t weight);
  ~About();
  About(const About&) = delete;
  About& operator=(const About&) = delete;

 private:
  Recorder* recorder_;
  int32_t before_ = -1;
};

// Records its own lifetime. Does nothing where no Recorder is attached.
class Scope {
 public:
  explicit Scope(Entry entry, std::source_location at = std::source_location::current());
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Recorder* recorder_;
  uint64_t sequence_ = 0;
};

}  // namespace picotron::record
