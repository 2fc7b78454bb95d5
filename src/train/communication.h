// How many bytes a step sends, known before it is run. Each line of the sum is one kind of message;
// together they are, to the byte, what the record counts and metrics.jsonl prints as bytes_tp,
// bytes_cp, … (tests/unit/communication_test.cpp).
//
// Summed over the P ranks of a group, whatever is uneven adds up. Of n elements of s bytes
//
//     all-gather, reduce-scatter   (P − 1) n s        all-reduce, which is both   2 (P − 1) n s
//
// Read next: dist/collectives.h (who counts), docs/planning.md (the table of them).
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "core/config.h"
#include "core/record.h"
#include "model/architectures.h"

namespace picotron {

// One kind of message: what all ranks together send of it in one step. Letters of the formulas:
//
//     t, c, p, R   ranks of tp, of cp, of pp, of dp×cp    L   layers      V   virtual stages
//     U   (t − 1) · tokens · hidden · size: one all-gather of the stream of a microbatch over tp
//     m   microbatches of a replica, times dp·cp: what a sum over all ranks counts of them
//     w   bytes of a gradient: 4, in float64 8; size: of a number of the computation
struct Volume {
  record::Axis axis;
  const char* what;
  const char* formula;
  int64_t bytes;
};

// `reduced`: elements in the buckets of all ranks of one replica (pp · tp), padding included, as
// the Parameter lists have them. Lines of axes that are not there are left out.
std::vector<Volume> communication(const Config& config, const LlamaConfig& model,
                                  c10::ScalarType dtype, int64_t reduced);

// By axis.
record::Bytes sum_of(const std::vector<Volume>& volumes);

}  // namespace picotron
