// What a run says of itself: a line per step, as the reference prints it,
//
//     [rank 0] Step: 12    | Loss: 2.8572 | Global batch size: 4.10K | Tokens/s: 51.20K | …
//
// the same with full precision as one JSON object per line in <save_dir>/metrics.jsonl, on a
// terminal a progress bar under the newest line, and a summary at the end.
#pragma once
#include <chrono>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/saver.h"
#include "core/files.h"
#include "core/record.h"
#include "dist/device.h"
#include "train/run.h"

namespace picotron {

// 4096 → "4.10K", as the reference: suffixes K, M, B, T, two decimals.
std::string human_format(double number);

struct StepMetrics {
  int64_t step = 0;  // from 1
  double loss = 0;   // mean over all tokens of the global batch
  double grad_norm = 0, learning_rate = 0;
  int64_t trained_tokens = 0, tokens_per_step = 0;
  double step_seconds = 0;
  int64_t memory_bytes = 0;                     // peak, of this rank's process
  record::Bytes bytes{};                        // all ranks sent in this step, by axis
  double stop_requests = 0, save_requests = 0;  // how many ranks want to
  std::optional<double> validation_loss;
  bool loss_spike = false;  // far above its recent course (train/health.h)
};

// Of every rank, but only rank 0 prints and writes, and in a rehearsal nobody does.
class RunLog {
 public:
  // Prints what is about to be trained and opens <save_dir>/metrics.jsonl, to append where the run
  // goes on in its folder. UserError where the folder cannot be written.
  RunLog(const Run& run, const Device& device, int64_t last_step);
  ~RunLog();  // leaves the terminal clean
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  void write(const StepMetrics& metrics);
  void sync() const;              // what was written reaches the disk; a warning where it cannot
  void say_epoch(int64_t epoch);  // the data begins again
  // What checkpoints took.
  void write(const std::vector<SaveReport>& reports);
  // The few lines at the end of a run. Returns the folder of the checkpoint written last, or "".
  std::string summary(bool stopped);

 private:
  void print(const std::string& line);  // above the progress bar
  void draw_progress(int64_t step);
  double mfu(double tokens_per_second) const;  // 0 where the peak is unknown
  double median_rate() const;                  // tokens per second, the first steps left out

  const Run& run_;
  const bool silent_;
  const Device& device_;
  const int64_t last_step_;
  const bool on_terminal_;
  double peak_flops_ = 0;  // of one rank; 0: unknown
  std::ofstream file_;
  std::optional<Descriptor> disk_;  // of the same file, to flush it
  std::string path_, last_saved_;
  std::vector<StepMetrics> history_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

}  // namespace picotron
