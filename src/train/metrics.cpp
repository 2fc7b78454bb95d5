// The step line, metrics.jsonl, the progress bar and the summary, all from the same StepMetrics.
#include "train/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"
#include "kernels/matmul.h"
#include "model/architectures.h"

namespace picotron {
namespace {

// The first steps are slower: libraries generate their kernels, memory is touched for the first
// time.
constexpr size_t kWarmupSteps = 3;

}  // namespace

std::string human_format(double number) {
  constexpr std::array<const char*, 5> suffixes = {"", "K", "M", "B", "T"};
  size_t magnitude = 0;
  while (std::abs(number) >= 1000 && magnitude + 1 < suffixes.size()) {
    number /= 1000;
    ++magnitude;
  }
  return fmt::format("{:.2f}{}", number, suffixes[magnitude]);
}

RunLog::RunLog(const Run& run, const Device& device, int64_t last_step)
    : run_(run),
      silent_(run.rehearsal || !log::speaks()),
      device_(device),
      last_step_(last_step),
      on_terminal_(!silent_ && isatty(STDOUT_FILENO) != 0) {
  if (silent_) return;
  const std::string& folder = run.config.checkpoint.save_dir;
  path_ = folder + "/metrics.jsonl";
  check_save_dir(folder);
  std::filesystem::create_directories(folder);
  file_.open(path_, std::ios::app);
  if (!file_)
    throw user_error(
        "cannot write {}; make its folder writable or choose another checkpoint.save_dir", path_);
  disk_.emplace(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  log::print(describe(run));
  peak_flops_ =
      device.peak_bf16_flops().value_or(device.is_cpu() ? measure_product_rate(run.dtype) : 0);
}

RunLog::~RunLog() {
  print("");
}

double RunLog::mfu(double tokens_per_second) const {
  if (peak_flops_ <= 0) return 0;
  // Documents apart attend to less than the reference's formula says: they count without attention.
  const int64_t attended =
      run_.config.dataset.document_masking ? 0 : run_.config.training.seq_length;
  const double flops = reference_flops_per_token(run_.architecture, attended);
  return tokens_per_second / static_cast<double>(world_size(run_.config)) * flops / peak_flops_;
}

double RunLog::median_rate() const {
  std::vector<double> rates;
  for (const StepMetrics& m : history_)
    rates.push_back(static_cast<double>(m.tokens_per_step) / m.step_seconds);
  if (rates.size() > kWarmupSteps) rates.erase(rates.begin(), rates.begin() + kWarmupSteps);
  if (rates.empty()) return 0;
  std::nth_element(rates.begin(), rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2),
                   rates.end());
  return rates[rates.size() / 2];
}

void RunLog::print(const std::string& line) {
  if (on_terminal_) std::fputs("\r\033[K", stdout);
  if (!silent_ && !line.empty()) log::print(line);
}

void RunLog::say_epoch(int64_t epoch) {
  print(fmt::format("The data set's end is reached: epoch {} begins", epoch + 1));
}

void RunLog::write(const StepMetrics& m) {
  if (silent_) return;
  history_.push_back(m);
  const double rate = static_cast<double>(m.tokens_per_step) / m.step_seconds;
  const auto ranks = static_cast<double>(world_size(run_.config));
  const std::optional<int64_t> max_tokens = run_.config.training.max_tokens;
  std::string line = fmt::format(
      "[rank 0] Step: {:<5} | Loss: {:6.4f} | Global batch size: {:>7} | Tokens/s: {:>7} | "
      "Tokens/s/GPU: {:>7} | Tokens: {:>7}{} | MFU: {:5.2f}% | Memory usage: {:6.2f}GB",
      m.step, m.loss, human_format(static_cast<double>(m.tokens_per_step)), human_format(rate),
      human_format(rate / ranks), human_format(static_cast<double>(m.trained_tokens)),
      max_tokens ? "/" + human_format(static_cast<double>(*max_tokens)) : "", 100 * mfu(rate),
      static_cast<double>(m.memory_bytes) / 1e9);
  if (m.loss_spike) line += " | Loss spike";
  if (m.validation_loss) line += fmt::format(" | Validation loss: {:.4f}", *m.validation_loss);
  print(line);

  nlohmann::ordered_json json = {
      {"step", m.step},
      {"loss", m.loss},
      {"grad_norm", m.grad_norm},
      {"learning_rate", m.learning_rate},
      {"trained_tokens", m.trained_tokens},
      {"tokens_per_second", rate},
      {"tokens_per_second_per_gpu", rate / ranks},
      {"mfu", peak_flops_ > 0 ? nlohmann::ordered_json(mfu(rate)) : nullptr},
      {"memory_bytes", m.memory_bytes},
      {"step_seconds", m.step_seconds}};
  using record::Axis;
  for (const Axis axis : {Axis::tp, Axis::cp, Axis::pp, Axis::dp_cp, Axis::world}) {
    json[fmt::format("bytes_{}", record::name_of(axis))] = m.bytes[static_cast<size_t>(axis)];
  }
  if (m.validation_loss) json["validation_loss"] = *m.validation_loss;
  if (m.loss_spike) json["loss_spike"] = true;
  file_ << json.dump() << '\n' << std::flush;
  if (!file_) throw run_error("cannot write {} at step {}: is the disk full?", path_, m.step);
  if (on_terminal_) draw_progress(m.step);
}

void RunLog::sync() const {
  if (silent_ || ::fsync(disk_->get()) == 0 || errno == EINVAL || errno == ENOTSUP) return;
  log::warn(fmt::format("cannot flush {}: {}", path_, std::strerror(errno)));
}

void RunLog::draw_progress(int64_t step) {
  constexpr size_t kWidth = 40;
  const double done =
      static_cast<double>(step) / static_cast<double>(std::max<int64_t>(last_step_, 1));
  const double spent =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  // A run that goes on from a checkpoint has not spent time on the steps before it.
  const double per_step = spent / static_cast<double>(std::max<size_t>(history_.size(), 1));
  const auto left = static_cast<int64_t>(per_step * static_cast<double>(last_step_ - step));
  std::string bar(static_cast<size_t>(static_cast<double>(kWidth) * done), '=');
  if (bar.size() < kWidth) bar += '>';
  std::fputs(fmt::format("[{:<{}}] {}/{}  {:.0f}%  {}:{:02d} left", bar, kWidth, step, last_step_,
                         100 * done, left / 60, left % 60)
                 .c_str(),
             stdout);
  std::fflush(stdout);
}

void RunLog::write(const std::vector<SaveReport>& reports) {
  for (const SaveReport& report : reports) {
    last_saved_ = report.folder.string();
    std::string line = fmt::format("Checkpoint {}: {:.4g} GB in {:.2f} s, training paused {:.2f} s",
                                   last_saved_, static_cast<double>(report.bytes) / 1e9,
                                   report.write_seconds, report.pause_seconds);
    if (report.wait_seconds > 0.01)
      line += fmt::format(" ({:.2f} s for the one before)", report.wait_seconds);
    for (const std::filesystem::path& removed : report.removed)
      line += fmt::format("; {} is removed", removed.string());
    print(line);
  }
}

std::string RunLog::summary(bool stopped) {
  if (silent_ || history_.empty()) return last_saved_;
  const StepMetrics& last = history_.back();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  std::string text = fmt::format("\n{} after {} steps, {} tokens, {:.1f} s\n",
                                 stopped ? "Stopped on request" : "Done", last.step,
                                 human_format(static_cast<double>(last.trained_tokens)), seconds);
  const size_t tail = std::min<size_t>(history_.size(), 10);
  double mean = 0;
  for (size_t i = history_.size() - tail; i < history_.size(); ++i)
    mean += history_[i].loss / static_cast<double>(tail);
  const StepMetrics& first = history_.front();  // of a run that goes on, a later one
  text += fmt::format(
      "  loss           {:.4f} at {}, {:.4f} at the last ({:.4f} over the last {})\n", first.loss,
      first.step == 1 ? "the first step" : fmt::format("step {}", first.step), last.loss, mean,
      tail);
  if (const auto floor = run_.datasets.train->floor()) {
    text += fmt::format("  best possible  {:.4f} (the entropy of the data): {:.1f}% above it\n",
                        *floor, 100 * (mean / *floor - 1));
  }
  if (last.validation_loss) text += fmt::format("  validation     {:.4f}\n", *last.validation_loss);
  text +=
      fmt::format("  tokens/s       {} (median), MFU {:.1f}% of {}\n", human_format(median_rate()),
                  100 * mfu(median_rate()), human_format(peak_flops_) + "FLOP/s");
  text += fmt::format("  peak memory    {:.2f} GB\n",
                      static_cast<double>(device_.peak_memory_bytes()) / 1e9);
  text +=
      fmt::format("  files          {}\n                 {}", path_,
                  last_saved_.empty() ? "no checkpoint: save_frequency exceeds total_train_steps"
                                      : last_saved_ + "/model (Hugging Face)");
  print(text);
  return last_saved_;
}

}  // namespace picotron
