// See metrics.h.
#include "train/metrics.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/log.h"

namespace picotron {
namespace {

// The first steps are slower: libraries generate their kernels and memory is touched for the first time.
constexpr size_t kWarmupSteps = 3;

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

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

std::string set_aside(const std::string& path) {
  namespace fs = std::filesystem;
  if (!fs::exists(path)) return "";
  const fs::path original(path);
  for (int i = 1;; ++i) {
    const fs::path aside =
        original.parent_path() / fmt::format("{}.{}{}", original.stem().string(), i, original.extension().string());
    if (fs::exists(aside)) continue;
    fs::rename(original, aside);
    return aside.string();
  }
}

MetricsWriter::MetricsWriter(const MetricsOptions& options) : options_(options), on_terminal_(isatty(STDOUT_FILENO)) {
  const std::string older = set_aside(options.path);
  if (!older.empty()) log::print(fmt::format("An earlier run's metrics are kept in {}", older));
  file_.open(options.path);
  if (!file_) throw user_error("cannot write {}; make its folder writable or choose another save_dir", options.path);
}

MetricsWriter::~MetricsWriter() {
  if (on_terminal_) {
    std::fputs("\r\033[K", stdout);
    std::fflush(stdout);
  }
}

double MetricsWriter::mfu(const StepMetrics& metrics) const {
  if (options_.peak_flops_per_rank <= 0) return 0;
  const double rate = static_cast<double>(metrics.tokens_per_step) / metrics.step_seconds / options_.world_size;
  return rate * options_.flops_per_token / options_.peak_flops_per_rank;
}

double MetricsWriter::tokens_per_second() const {
  std::vector<double> rates(rates_.begin() + static_cast<std::ptrdiff_t>(std::min(kWarmupSteps, rates_.size())),
                            rates_.end());
  if (rates.empty()) rates = rates_;
  if (rates.empty()) return 0;
  std::nth_element(rates.begin(), rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2), rates.end());
  return rates[rates.size() / 2];
}

void MetricsWriter::write(const StepMetrics& m) {
  const double rate = static_cast<double>(m.tokens_per_step) / m.step_seconds;
  rates_.push_back(rate);
  std::string line = fmt::format(
      "[rank 0] Step: {:<5} | Loss: {:6.4f} | Global batch size: {:>7} | Tokens/s: {:>7} | Tokens/s/GPU: {:>7} | "
      "Tokens: {:>7}{} | MFU: {:5.2f}% | Memory usage: {:6.2f}GB",
      m.step, m.loss, human_format(static_cast<double>(m.tokens_per_step)), human_format(rate),
      human_format(rate / options_.world_size), human_format(static_cast<double>(m.trained_tokens)),
      options_.max_tokens ? "/" + human_format(static_cast<double>(*options_.max_tokens)) : "", 100 * mfu(m),
      static_cast<double>(m.memory_bytes) / 1e9);
  if (m.validation_loss) line += fmt::format(" | Validation loss: {:.4f}", *m.validation_loss);
  if (on_terminal_) std::fputs("\r\033[K", stdout);
  log::print(line);

  nlohmann::ordered_json json = {{"step", m.step},
                                 {"loss", number(m.loss)},
                                 {"grad_norm", number(m.grad_norm)},
                                 {"learning_rate", m.learning_rate},
                                 {"trained_tokens", m.trained_tokens},
                                 {"tokens_per_second", rate},
                                 {"tokens_per_second_per_gpu", rate / options_.world_size},
                                 {"mfu", options_.peak_flops_per_rank > 0 ? number(mfu(m)) : nullptr},
                                 {"memory_bytes", m.memory_bytes},
                                 {"step_seconds", m.step_seconds}};
  for (const record::Axis axis : {record::Axis::tp, record::Axis::cp, record::Axis::pp, record::Axis::dp_cp,
                                  record::Axis::world}) {
    json[fmt::format("bytes_{}", record::name_of(axis))] = m.bytes[static_cast<size_t>(axis)];
  }
  if (m.validation_loss) json["validation_loss"] = number(*m.validation_loss);
  file_ << json.dump() << '\n' << std::flush;
  if (!file_) throw run_error("cannot write {}: is the disk full? The run stops at step {}", options_.path, m.step);
  if (on_terminal_) draw_progress(m.step);
}

void MetricsWriter::draw_progress(int64_t step) {
  constexpr int kWidth = 40;
  const double done = static_cast<double>(step) / static_cast<double>(std::max<int64_t>(options_.total_steps, 1));
  const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  const auto left = static_cast<int64_t>(spent / done * (1 - done));
  const auto filled = static_cast<size_t>(kWidth * done);
  const std::string bar = std::string(filled, '=') + (filled < kWidth ? ">" : "");
  std::fputs(fmt::format("[{:<{}}] {}/{}  {:.0f}%  {}:{:02d} left", bar.substr(0, kWidth), kWidth, step,
                         options_.total_steps, 100 * done, left / 60, left % 60)
                 .c_str(),
             stdout);
  std::fflush(stdout);
}

}  // namespace picotron
