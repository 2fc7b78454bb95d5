// Which layout? All that N ranks allow are planned, and ranked by the time a step would take:
//
//     step  =  makespan · F / rate  +  bytes / (ranks · link)
//
// makespan: of the slowest stage, in forwards of an average virtual stage, waiting included, as
// parallel/schedule_check.h walks it; F: the operations of such a forward; rate: of a rank's matrix
// products. Every byte is taken to be waited for, so a layout that hides its messages does better.
// The global batch is that of the config, so all layouts do the same work. Read next: plan.h.
#pragma once
#include <string>
#include <vector>

#include "train/plan.h"

namespace picotron {

struct SearchOptions {
  int world = 1;
  double flops = 1e12;     // a second, of one rank
  double link = 1e9;       // bytes a second that one rank sends
  double most_memory = 0;  // bytes of a rank; 0: any
};

struct Candidate {
  Config config;
  double compute = 0, waiting = 0, messages = 0;  // seconds
  double bubble = 0;
  double memory = 0;  // bytes, of the rank that needs most
  int64_t bytes = 0;  // a step, all ranks together
  double seconds() const { return compute + waiting + messages; }
};

// Valid layouts, quickest first, of equals the smaller. Of each mesh the quickest, and what is
// slower only where it is a tenth smaller than all that are quicker.
std::vector<Candidate> search_layouts(const Config& config, const LlamaConfig& architecture,
                                      DType dtype, const SearchOptions& options);

// A line each, of the first `most`.
std::string describe(const std::vector<Candidate>& candidates, size_t most = 20);

}  // namespace picotron
