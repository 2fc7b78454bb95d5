// One write to the terminal per line, so that ranks which share it do not mix theirs.
#include "core/log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "core/record.h"

namespace picotron::log {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kWipe = "\r\x1b[K";

int speaking_rank() {
  const record::Recorder* recorder = record::current();
  return recorder == nullptr ? 0 : recorder->global_rank();
}

// One write per line: lines of ranks that share a terminal do not mix.
void write_line(std::FILE* stream, std::string_view line) {
  std::fwrite(line.data(), 1, line.size(), stream);
  std::fflush(stream);
}

}  // namespace

bool speaks() {
  return speaking_rank() == 0;
}

void print(std::string_view text) {
  if (speaking_rank() == 0) write_line(stdout, fmt::format("{}\n", text));
}

void warn(std::string_view sentence) {
  if (speaking_rank() == 0) write_line(stderr, fmt::format("warning: {}\n", sentence));
}

void error(std::string_view sentence) {
  const int rank = speaking_rank();
  const std::string prefix = rank == 0 ? "" : fmt::format("[rank {}] ", rank);
  write_line(stderr, fmt::format("{}error: {}\n", prefix, sentence));
}

void raw(std::string_view text) {
  write_line(stderr, text);
}

ProgressLine::ProgressLine() : is_terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (shown_) raw(kWipe);
}

bool ProgressLine::is_due() const {
  return is_terminal_ && (!shown_ || Clock::now() - *shown_ >= std::chrono::milliseconds(500));
}

void ProgressLine::show(std::string_view text) {
  if (!is_terminal_) return;
  raw(fmt::format("{}{}", kWipe, text));
  shown_ = Clock::now();
}

}  // namespace picotron::log
