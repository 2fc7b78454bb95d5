// A channel: one group's line to its peers, over a c10d backend.
//
// A collective on Gloo is more than one exchange: receive the peers' parts, sum them, send the sum
// on. So that all of it goes on while the caller computes, each channel has a thread, which runs
// the jobs of its group in the order they were issued. (One thread per group, not per rank: two
// groups may be issued in different orders on two ranks.)
//
//     caller   post sends and receives ─ submit(job) ─ … compute … ─ wait()
//     thread                             └ wait for parts, sum, exchange again ┘
//
// When a peer is lost, Gloo says which socket failed and every rank that leaves fails the next. So
// the text of the backend is never shown: dist/heartbeat.h is asked who is to blame.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

namespace c10d {
class Backend;
class Work;
}  // namespace c10d

namespace picotron {

// What the heartbeat says of another rank: a consequence, where other RunErrors are causes.
struct LostRank : RunError {
  using RunError::RunError;
};

// The sequence of the record's entry that a rank cannot go on without; 0: it does not wait. Its
// heartbeat tells the others, so that the one rank that does not wait is found.
using Awaited = std::shared_ptr<std::atomic<uint64_t>>;

class Waiting {
 public:
  Waiting(const Awaited& awaited, uint64_t sequence) : awaited_(awaited) { *awaited_ = sequence; }
  ~Waiting() { *awaited_ = 0; }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  const Awaited awaited_;
};

class Channel {
 public:
  // `diagnose` names, in one sentence, the rank to blame for a failure; it may take two beats.
  Channel(c10::intrusive_ptr<c10d::Backend> backend, std::function<std::string()> diagnose,
          Awaited awaited = std::make_shared<std::atomic<uint64_t>>(0));
  ~Channel();  // closes it
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Abandons what is under way, without waiting for peers: whoever waits for it gets a LostRank.
  void close();

  c10d::Backend& backend() { return *backend_; }
  bool on_gloo() const { return on_gloo_; }
  const Awaited& awaited() const { return awaited_; }

  // A number for the messages of one exchange of a collective. Every member asks in the same order.
  int next_tag();

  using Pending = std::vector<c10::intrusive_ptr<c10d::Work>>;
  // Start to move a contiguous tensor of at least one element to or from a rank of the group.
  // Messages of one tag between two ranks arrive in the order sent.
  void post_send(Pending& pending, const at::Tensor& x, int to, int tag);
  void post_receive(Pending& pending, const at::Tensor& x, int from, int tag);
  // Waits for all of them. Throws LostRank with the diagnosis.
  void wait_for(const Pending& pending);

  // A flat CPU tensor to receive into, kept for the next one once given back: fresh memory costs
  // as much as the sum (the kernel clears each page).
  at::Tensor borrow(int64_t numel, at::ScalarType dtype);
  void give_back(const at::Tensor& borrowed);

  // Runs `job` on the channel's thread after those before it. A job must not own the channel.
  std::shared_future<void> submit(std::function<void()> job);

  // Runs `call`, turning an error of the backend into a LostRank with the diagnosis.
  void guarded(const std::function<void()>& call);

 private:
  void run();

  const c10::intrusive_ptr<c10d::Backend> backend_;
  const bool on_gloo_;
  const std::function<std::string()> diagnose_;
  const Awaited awaited_;
  int tag_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::packaged_task<void()>> jobs_;
  std::set<const Pending*> waiting_;  // what is waited for now, so that the destructor can end it
  std::vector<at::Tensor> spare_;     // bytes
  bool stopping_ = false;
  std::string failure_;  // the first diagnosis; a channel that failed stays so

  std::thread thread_;
};

}  // namespace picotron
