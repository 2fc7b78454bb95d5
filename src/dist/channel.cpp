// A channel's thread and its messages. What is delicate here is the end: the destructor must not
// wait for a peer that is gone, and an error of the backend must become a sentence.
#include "dist/channel.h"

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <memory>

namespace picotron {
namespace {

constexpr int kTags = 1 << 30;  // of collectives: 1 … kTags; 0 is for send and receive

constexpr size_t kMostSpare = 16;  // receive buffers kept

LostRank closed() {
  return LostRank("a group of ranks was closed during a collective");
}

}  // namespace

Channel::Channel(c10::intrusive_ptr<c10d::Backend> backend, std::function<std::string()> diagnose,
                 Awaited awaited)
    : backend_(std::move(backend)),
      on_gloo_(backend_->getBackendName() == "gloo"),
      diagnose_(std::move(diagnose)),
      awaited_(std::move(awaited)),
      thread_([this] { run(); }) {}

Channel::~Channel() {
  close();
  thread_.join();
}

void Channel::close() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
    for (const Pending* pending : waiting_) {
      for (const auto& work : *pending) work->abort();
    }
  }
  changed_.notify_all();
}

int Channel::next_tag() {
  return tag_ = tag_ % kTags + 1;
}

void Channel::post_send(Pending& pending, const at::Tensor& x, int to, int tag) {
  std::vector<at::Tensor> tensors = {x};
  guarded([&] { pending.push_back(backend_->send(tensors, to, tag)); });
}

void Channel::post_receive(Pending& pending, const at::Tensor& x, int from, int tag) {
  std::vector<at::Tensor> tensors = {x};
  guarded([&] { pending.push_back(backend_->recv(tensors, from, tag)); });
}

void Channel::wait_for(const Pending& pending) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) throw closed();
    waiting_.insert(&pending);
  }
  const auto forget = [this](const Pending* waited) {
    std::lock_guard lock(mutex_);
    waiting_.erase(waited);
  };
  const std::unique_ptr<const Pending, decltype(forget)> registered(&pending, forget);
  guarded([&] {
    for (const auto& work : pending) {
      if (!work->wait()) throw closed();
    }
  });
}

at::Tensor Channel::borrow(int64_t numel, at::ScalarType dtype) {
  const int64_t bytes = numel * static_cast<int64_t>(c10::elementSize(dtype));
  at::Tensor found;
  {
    std::lock_guard lock(mutex_);
    // The smallest that is large enough, as long as it is not mostly waste.
    size_t best = spare_.size();
    for (size_t i = 0; i < spare_.size(); ++i) {
      const int64_t size = spare_[i].numel();
      if (size < bytes || size > 2 * bytes) continue;
      if (best == spare_.size() || size < spare_[best].numel()) best = i;
    }
    if (best < spare_.size()) {
      found = spare_[best];
      spare_.erase(spare_.begin() + static_cast<int64_t>(best));
    }
  }
  if (!found.defined()) found = at::empty({bytes}, at::kByte);
  return found.narrow(0, 0, bytes).view(dtype);
}

void Channel::give_back(const at::Tensor& borrowed) {
  const int64_t bytes = static_cast<int64_t>(borrowed.storage().nbytes());
  std::lock_guard lock(mutex_);
  if (spare_.size() >= kMostSpare) spare_.erase(spare_.begin());
  spare_.push_back(at::empty({0}, at::kByte).set_(borrowed.storage(), 0, {bytes}, {1}));
}

std::shared_future<void> Channel::submit(std::function<void()> job) {
  std::packaged_task<void()> task(std::move(job));
  std::shared_future<void> done = task.get_future().share();
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(task));
  }
  changed_.notify_all();
  return done;
}

void Channel::guarded(const std::function<void()>& call) {
  try {
    call();
  } catch (const RunError&) {
    throw;
  } catch (const std::exception&) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) throw closed();
      if (!failure_.empty()) throw LostRank(failure_);
    }
    const std::string sentence = diagnose_();
    std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = sentence;
    throw LostRank(failure_);
  }
}

void Channel::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    std::packaged_task<void()> task = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

}  // namespace picotron
