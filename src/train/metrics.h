// What a run says of itself: a line per step, as the reference prints it,
//
//     [rank 0] Step: 12    | Loss: 2.8572 | Global batch size: 4.10K | Tokens/s: 51.20K | … | MFU: 61.12% | …
//
// the same with full precision as one JSON object per line in <save_dir>/metrics.jsonl, on a terminal a progress bar
// under the newest line, and a summary at the end.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>

#include "core/record.h"

namespace picotron {

// 4096 → "4.10K", as the reference: suffixes K, M, B, T, two decimals.
std::string human_format(double number);

struct StepMetrics {
  int64_t step = 0;  // from 1
  double loss = 0;   // mean over all tokens of the global batch
  double grad_norm = 0, learning_rate = 0;
  int64_t trained_tokens = 0, tokens_per_step = 0;
  double step_seconds = 0;
  int64_t memory_bytes = 0;  // peak, of this rank's process
  std::array<int64_t, record::kAxes> bytes{};  // this rank sent in this step, by axis
  std::optional<double> validation_loss;
};

struct MetricsOptions {
  std::string path;  // of metrics.jsonl; an older one there is renamed to metrics.1.jsonl, never overwritten
  int world_size = 1;
  int64_t total_steps = 0;
  std::optional<int64_t> max_tokens;
  double flops_per_token = 0;      // for MFU
  double peak_flops_per_rank = 0;  // 0: unknown, MFU is then null
};

// Of rank 0 alone: the others construct nothing.
class MetricsWriter {
 public:
  explicit MetricsWriter(const MetricsOptions& options);
  ~MetricsWriter();  // leaves the terminal clean
  void write(const StepMetrics& metrics);
  double mfu(const StepMetrics& metrics) const;  // 0 where the peak is unknown
  double tokens_per_second() const;              // median of the steps so far, the first ones left out

 private:
  void draw_progress(int64_t step);
  MetricsOptions options_;
  std::ofstream file_;
  bool on_terminal_;
  std::vector<double> rates_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

// Renames `path`, if it exists, to the first free of base.1ext, base.2ext, …: nothing is lost. Returns the new name,
// or "" where nothing was there.
std::string set_aside(const std::string& path);

}  // namespace picotron
