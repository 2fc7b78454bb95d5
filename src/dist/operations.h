// What every rank did last, as a file for a person who asks why a run hangs.
//
// Each rank writes its last 20 operations to the rendezvous store with every beat
// (dist/heartbeat.h), for a rank that is dead cannot be asked any more. Who reports that a rank is
// lost, or is asked to by SIGUSR2, reads what all of them wrote:
//
//     rank 1 (dp 0, tp 1), last beat 0.4 s ago
//        number        begun          state      bytes          n-th  operation
//          1233   2.13 s ago   took 0.31 ms          0                linear_forward, in forward …
//     *    1234   2.12 s ago     waited for      65536        tp 812  all_reduce over tp, in …
//
// The n-th collective of an axis is the same one on every rank of a group, which numbers of the
// record are not (core/record.h): they also count what a rank does alone. So * marks a collective
// on which the ranks of a group differ. In a run that hangs, who has not begun it is to blame.
// Read next: dist/heartbeat.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/record.h"

namespace picotron {

inline constexpr size_t kOperationsKept = 20;

struct Operation {
  uint64_t sequence = 0;  // in the record
  record::Axis axis = record::Axis::none;
  uint64_t nth = 0;  // of a collective: its number on its axis
  int peer = -1;     // global rank at the other end of a message
  int64_t bytes = 0;
  int64_t age_ns = 0;    // since it was begun, when the rank wrote this down
  int64_t took_ns = -1;  // −1: it still ran
  bool awaited = false;  // the rank could not go on without it
  std::string what;      // "all_reduce"
  std::string action;    // that it belongs to: "forward of microbatch 1"; "" outside of a schedule

  // "receive over pp from rank 2, in forward of microbatch 1"
  std::string text() const;
};

struct LastOperations {
  int64_t written_ms = 0;         // by the clock of the rank's machine
  record::Counts collectives{};   // begun since the start
  std::vector<Operation> list{};  // newest last; empty: none is known
};

// The newest operations of a rank. One that still runs stays, however old, before those that have
// ended; `awaited` is the sequence of the one that the rank waits for, or 0.
LastOperations last_operations(const record::Recorder& recorder, uint64_t awaited);

// As it travels through the store: at most 3 KB.
std::string encode(const LastOperations& operations);
LastOperations decode_operations(const std::string& text);

// A rank as messages name it: "rank 1 (dp 0, tp 1)".
std::string named(int rank, const std::string& place);

// One rank's chapter of the report.
struct RankChapter {
  int rank = 0;
  std::string place;       // "dp 0, tp 1"
  std::string standing;    // "last beat 0.4 s ago"
  double seconds_ago = 0;  // that it wrote its operations down
  LastOperations operations;
  std::string last_seen;  // where `operations` has none: the one of its last beat, if any
};

// The text of the file. `heading`: why it is written, one or more lines.
std::string report(const std::string& heading, const std::vector<RankChapter>& ranks);

// Writes it as operations.N.txt, N the first free number, into `folder`, which is made if need be.
// Returns the file's path. Throws RunError.
std::string write_report(const std::string& folder, const std::string& text);

// For the sentence that says so: "the last operations of every rank are in …".
std::string where_reported(const std::string& path);

inline constexpr char kAskedBySignal[] = "asked for by SIGUSR2";
// Writes it and says where, or why it cannot, in a line on stderr.
void answer_report_request(const std::string& folder, const std::string& text);

}  // namespace picotron
