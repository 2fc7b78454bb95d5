// The thread that beats and reads the others' beats, and the verdict: the cause that a rank left
// behind, else a silent rank, else the one that is behind.
#include "dist/heartbeat.h"

#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <condition_variable>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

#include "dist/mesh.h"

namespace picotron {
namespace {

using Clock = std::chrono::steady_clock;

// Between reads while someone asks who is to blame.
constexpr std::chrono::milliseconds kGlance{100};
// Of a beat that goes on: one second, and some for a busy machine. The question takes two beats.
constexpr std::chrono::milliseconds kSilent{1800};
// Of the destructor, with a store that does not answer.
constexpr std::chrono::milliseconds kPatience{1000};

std::string beat_key(int rank) {
  return fmt::format("beat/{}", rank);
}
std::string ended_key(int rank) {
  return fmt::format("ended/{}", rank);
}

struct Peer {
  std::string beat;           // as written, so that a change is a sign of life
  Clock::time_point changed;  // when it was last seen to change
  uint64_t sequence = 0;      // of its newest entry
  std::string operation;      // "all_reduce over dp"
  bool ended = false;
  std::string error;  // why it ended; empty if as it should
};

std::string encode(uint64_t beats, const record::Entry& entry) {
  const std::string axis =
      entry.axis == record::Axis::none ? "" : fmt::format(" over {}", record::name_of(entry.axis));
  return fmt::format("{} {} {}{}", beats, entry.sequence, entry.what, axis);
}

void decode(const std::string& beat, Peer& peer) {
  std::istringstream text(beat);
  uint64_t beats = 0;
  text >> beats >> peer.sequence >> std::ws;
  std::getline(text, peer.operation);
}

int64_t seconds(Clock::duration duration) {
  return std::chrono::round<std::chrono::seconds>(duration).count();
}

}  // namespace

struct Heartbeat::Shared {
  c10::intrusive_ptr<c10d::Store> store;  // this thread's own connection
  int rank = 0;

  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  const record::Recorder* recorder = nullptr;  // null once the Heartbeat is gone
  std::vector<Peer> peers;
  std::function<std::string(int)> place;
  Clock::time_point contact = Clock::now();  // the last time the store answered
  int asking = 0;                            // how many wait in diagnose()
  bool leaving = false, stop = false, finished = false;
  std::string error;  // of this rank, to be written when leaving

  std::thread thread;

  void run();
  void write(uint64_t beats);
  void read();
  std::string name(int peer) const;
  std::string verdict();
};

void Heartbeat::Shared::run() {
  uint64_t beats = 0;
  Clock::time_point next_beat = Clock::now();
  std::unique_lock lock(mutex);
  while (!stop) {
    lock.unlock();
    try {
      if (Clock::now() >= next_beat) {
        next_beat = Clock::now() + kBeat;
        write(++beats);
      }
      read();
    } catch (const std::exception&) {
      // The store is gone or slow; `contact` grows old, which is what diagnose() looks at.
    }
    lock.lock();
    changed.notify_all();
    const bool glancing = asking > 0;
    const auto until = glancing ? Clock::now() + kGlance : next_beat;
    changed.wait_until(lock, until, [&] { return stop || leaving || (asking > 0 && !glancing); });
    if (leaving) {
      leaving = false;
      const std::string text = error;
      lock.unlock();
      try {
        store->set(ended_key(rank), text);
      } catch (const std::exception&) {  // nobody is left to read it
      }
      lock.lock();
    }
  }
  finished = true;
  changed.notify_all();
}

void Heartbeat::Shared::write(uint64_t beats) {
  record::Entry newest;
  {
    std::lock_guard lock(mutex);
    if (recorder == nullptr) return;
    newest = recorder->newest();
  }
  store->set(beat_key(rank), encode(beats, newest));
}

void Heartbeat::Shared::read() {
  const int world = static_cast<int>(peers.size());
  for (int peer = 0; peer < world; ++peer) {
    // check() before get(): get() would wait for a key that nobody may ever write.
    const bool has_ended = store->check({ended_key(peer)});
    const std::string error_text = has_ended ? store->get_to_str(ended_key(peer)) : "";
    const std::string beat =
        store->check({beat_key(peer)}) ? store->get_to_str(beat_key(peer)) : "";
    std::lock_guard lock(mutex);
    contact = Clock::now();
    Peer& seen = peers[static_cast<size_t>(peer)];
    seen.ended = has_ended;
    seen.error = error_text;
    if (beat != seen.beat) {
      seen.beat = beat;
      seen.changed = contact;
      decode(beat, seen);
    }
  }
}

std::string Heartbeat::Shared::name(int peer) const {
  const std::string where = place ? place(peer) : "";
  return where.empty() ? fmt::format("rank {}", peer) : fmt::format("rank {} ({})", peer, where);
}

// Causes before consequences.
std::string Heartbeat::Shared::verdict() {
  const auto doing = [](const Peer& peer) {
    return peer.operation.empty()
               ? std::string("no operation of it was seen")
               : fmt::format("the last operation seen of it was {}", peer.operation);
  };
  const Clock::time_point now = Clock::now();
  for (size_t rank_of_peer = 0; rank_of_peer < peers.size(); ++rank_of_peer) {
    const Peer& peer = peers[rank_of_peer];
    if (peer.ended && !peer.error.empty()) return peer.error;
  }
  if (now - contact > kSilent) {
    return fmt::format(
        "the rendezvous store has not answered for {} s: "
        "rank 0 or the program that started the ranks is dead, stopped or cut off",
        seconds(now - contact));
  }
  int silent = -1, done = -1, behind = rank;
  for (int i = 0; i < static_cast<int>(peers.size()); ++i) {
    const Peer& peer = peers[static_cast<size_t>(i)];
    if (peer.ended) {
      done = i;
    } else if (i != rank && now - peer.changed > kSilent &&
               (silent < 0 || peer.changed < peers[static_cast<size_t>(silent)].changed)) {
      silent = i;
    } else if (peer.sequence < peers[static_cast<size_t>(behind)].sequence) {
      behind = i;
    }
  }
  if (silent >= 0) {
    const Peer& peer = peers[static_cast<size_t>(silent)];
    if (peer.beat.empty()) return fmt::format("{} did not come", name(silent));
    return fmt::format(
        "{} has given no sign of life for {} s: it was killed, is stopped or cut off; {}",
        name(silent), seconds(now - peer.changed), doing(peer));
  }
  if (done >= 0) return fmt::format("{} ended before the others", name(done));
  const Peer& peer = peers[static_cast<size_t>(behind)];
  if (behind == rank) return "the connection to another rank broke, though every rank is alive";
  return fmt::format("{} is behind: it has begun {} operations, rank {} {}; {}", name(behind),
                     peer.sequence, rank, peers[static_cast<size_t>(rank)].sequence, doing(peer));
}

Heartbeat::Heartbeat(const Rendezvous& rendezvous, const record::Recorder& recorder)
    : shared_(std::make_shared<Shared>()) {
  shared_->store = rendezvous.store->clone();
  shared_->rank = rendezvous.global_rank;
  shared_->recorder = &recorder;
  shared_->peers.resize(static_cast<size_t>(rendezvous.world_size));
  for (Peer& peer : shared_->peers) peer.changed = Clock::now();
  shared_->thread = std::thread([shared = shared_] { shared->run(); });
}

Heartbeat::~Heartbeat() {
  std::unique_lock lock(shared_->mutex);
  shared_->stop = true;
  shared_->recorder = nullptr;
  shared_->changed.notify_all();
  const bool finished =
      shared_->changed.wait_for(lock, kPatience, [this] { return shared_->finished; });
  lock.unlock();
  if (finished) {
    shared_->thread.join();
  } else {
    shared_->thread.detach();  // it owns what it still touches
  }
}

void Heartbeat::set_places(std::function<std::string(int)> place) {
  std::lock_guard lock(shared_->mutex);
  shared_->place = std::move(place);
}

std::string Heartbeat::diagnose() const {
  std::unique_lock lock(shared_->mutex);
  ++shared_->asking;
  shared_->changed.notify_all();
  const auto someone_said_why = [this] {
    for (const Peer& peer : shared_->peers) {
      if (peer.ended && !peer.error.empty()) return true;
    }
    return false;
  };
  shared_->changed.wait_for(lock, kBeatsToDiagnose * kBeat, someone_said_why);
  --shared_->asking;
  return shared_->verdict();
}

void Heartbeat::leave(const std::string& error) {
  std::lock_guard lock(shared_->mutex);
  shared_->leaving = true;
  shared_->error = error;
  shared_->changed.notify_all();
}

}  // namespace picotron
