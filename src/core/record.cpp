// The ring buffer behind record.h, under one lock, and the calling thread's pointer to its own.
#include "core/record.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace picotron::record {
namespace {

thread_local Recorder* this_rank = nullptr;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

const char* name_of(Axis axis) {
  constexpr std::array<const char*, kAxes> names = {"none", "tp", "cp", "pp", "dp_cp", "world"};
  return names[static_cast<size_t>(axis)];
}

Recorder::Recorder(int global_rank, size_t capacity) : global_rank_(global_rank), ring_(capacity) {}

uint64_t Recorder::begin(Entry entry) {
  std::lock_guard lock(mutex_);
  entry.sequence = ++count_;
  entry.begin_ns = now_ns();
  entry.about = about_;
  if (entry.kind == Kind::collective) entry.nth = ++collectives_[static_cast<size_t>(entry.axis)];
  bytes_[static_cast<size_t>(entry.axis)] += entry.bytes;
  flops_ += entry.flops;
  ring_[entry.sequence % ring_.size()] = entry;
  return entry.sequence;
}

void Recorder::end(uint64_t sequence) {
  std::lock_guard lock(mutex_);
  Entry& entry = ring_[sequence % ring_.size()];
  if (entry.sequence == sequence) entry.end_ns = now_ns();
}

Entry Recorder::newest() const {
  std::lock_guard lock(mutex_);
  return count_ == 0 ? Entry{} : ring_[count_ % ring_.size()];
}

std::vector<Entry> Recorder::entries() const {
  std::lock_guard lock(mutex_);
  std::vector<Entry> result;
  const uint64_t kept = std::min<uint64_t>(count_, ring_.size());
  for (uint64_t sequence = count_ - kept + 1; sequence <= count_; ++sequence) {
    result.push_back(ring_[sequence % ring_.size()]);
  }
  return result;
}

int64_t Recorder::bytes(Axis axis) const {
  std::lock_guard lock(mutex_);
  return bytes_[static_cast<size_t>(axis)];
}

Counts Recorder::collectives() const {
  std::lock_guard lock(mutex_);
  return collectives_;
}

double Recorder::product_flops() const {
  std::lock_guard lock(mutex_);
  return flops_;
}

int32_t Recorder::exchange_about(int32_t weight) {
  std::lock_guard lock(mutex_);
  return std::exchange(about_, weight);
}

Recorder* current() {
  return this_rank;
}

Bytes bytes_sent() {
  Bytes bytes{};
  for (size_t i = 0; this_rank != nullptr && i < bytes.size(); ++i)
    bytes[i] = this_rank->bytes(static_cast<Axis>(i));
  return bytes;
}

Bytes bytes_sent_since(const Bytes& before) {
  Bytes bytes = bytes_sent();
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] -= before[i];
  return bytes;
}

Attach::Attach(Recorder* recorder) : before_(this_rank) {
  this_rank = recorder;
}
Attach::~Attach() {
  this_rank = before_;
}

About::About(size_t weight) : recorder_(this_rank) {
  if (recorder_ != nullptr) before_ = recorder_->exchange_about(static_cast<int32_t>(weight));
}
About::~About() {
  if (recorder_ != nullptr) recorder_->exchange_about(before_);
}

Scope::Scope(Entry entry, std::source_location at) : recorder_(this_rank) {
  if (recorder_ == nullptr) return;
  entry.file = at.file_name();
  entry.line = at.line();
  sequence_ = recorder_->begin(entry);
}

Scope::~Scope() {
  if (recorder_ != nullptr) recorder_->end(sequence_);
}

}  // namespace picotron::record
