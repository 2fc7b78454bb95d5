// The thread that beats and reads the others' beats, and the verdict: the cause that a rank left
// behind, else a silent rank, else the one that is behind. A beat is a line of text with tabs.
#include "dist/heartbeat.h"

#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <sstream>
#include <thread>
#include <utility>
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
  bool waits = false;         // for other ranks
  std::string place;          // "tp 1, pp 0"; empty until it has made its mesh
  std::string operation;  // that it waits for, else its newest: "all_reduce over tp, in forward …"
  bool ended = false;
  std::string error;  // why it ended; empty if as it should
};

// "receive over pp from rank 2, in forward of microbatch 1": an entry and the action that it is in.
std::string describe(const record::Entry& entry, const std::vector<record::Entry>& all) {
  std::string text = entry.what;
  if (entry.kind == record::Kind::action)
    return fmt::format("{} of microbatch {}", text, entry.shape[0]);
  if (entry.axis != record::Axis::none)
    text += fmt::format(" over {}", record::name_of(entry.axis));
  if (entry.peer >= 0)
    text += fmt::format(" {} rank {}", text.starts_with("send") ? "to" : "from", entry.peer);
  const auto in = std::find_if(all.rbegin(), all.rend(), [&](const record::Entry& action) {
    return action.kind == record::Kind::action && action.sequence < entry.sequence;
  });
  const bool goes_on = in != all.rend() && (in->end_ns == 0 || in->end_ns >= entry.begin_ns);
  return goes_on ? fmt::format("{}, in {}", text, describe(*in, all)) : text;
}

std::string encode(uint64_t beats, const record::Recorder& recorder, uint64_t awaited,
                   const std::string& place) {
  const std::vector<record::Entry> all = recorder.entries();
  if (all.empty()) return fmt::format("{}\t0\t0\t{}\t", beats, place);
  const auto waited_for = std::find_if(all.begin(), all.end(), [&](const record::Entry& entry) {
    return entry.sequence == awaited;
  });
  const record::Entry& what = waited_for == all.end() ? all.back() : *waited_for;
  return fmt::format("{}\t{}\t{:d}\t{}\t{}", beats, all.back().sequence, awaited != 0, place,
                     describe(what, all));
}

void decode(const std::string& beat, Peer& peer) {
  std::istringstream text(beat);
  uint64_t beats = 0;
  text >> beats >> peer.sequence >> peer.waits;
  text.get();
  std::getline(text, peer.place, '\t');
  std::getline(text, peer.operation);
}

std::string named(int rank, const std::string& place) {
  return place.empty() ? fmt::format("rank {}", rank) : fmt::format("rank {} ({})", rank, place);
}

int64_t seconds(Clock::duration duration) {
  return std::chrono::round<std::chrono::seconds>(duration).count();
}

}  // namespace

struct Heartbeat::Shared {
  c10::intrusive_ptr<c10d::Store> store;  // this thread's own connection
  int rank = 0;
  const std::shared_ptr<std::atomic<uint64_t>> awaited = std::make_shared<std::atomic<uint64_t>>(0);

  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  const record::Recorder* recorder = nullptr;  // null once the Heartbeat is gone
  std::vector<Peer> peers;
  std::function<std::string(int)> place;
  Clock::time_point contact = Clock::now();  // the last time the store answered
  int asking = 0;                            // how many wait in diagnose()
  bool has_news = false, leaving = false, stop = false, finished = false;
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
    const bool news = std::exchange(has_news, false);
    lock.unlock();
    try {
      if (Clock::now() >= next_beat || news) {
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
    changed.wait_until(lock, until,
                       [&] { return stop || leaving || has_news || (asking > 0 && !glancing); });
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
  std::string beat;
  {
    std::lock_guard lock(mutex);
    if (recorder == nullptr) return;
    beat = encode(beats, *recorder, *awaited, place ? place(rank) : "");
  }
  store->set(beat_key(rank), beat);
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
  return named(peer, place ? place(peer) : "");
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
  int silent = -1, done = -1;
  for (int i = 0; i < static_cast<int>(peers.size()); ++i) {
    const Peer& peer = peers[static_cast<size_t>(i)];
    if (peer.ended) {
      done = i;
    } else if (i != rank && now - peer.changed > kSilent &&
               (silent < 0 || peer.changed < peers[static_cast<size_t>(silent)].changed)) {
      silent = i;
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
  const auto behind =
      std::min_element(peers.begin(), peers.end(), [](const Peer& a, const Peer& b) {
        return std::pair(a.waits, a.sequence) < std::pair(b.waits, b.sequence);
      });
  const Peer& mine = peers[static_cast<size_t>(rank)];
  if (&*behind == &mine || (behind->waits && behind->sequence == mine.sequence))
    return "the connection to another rank broke, though every rank is alive";
  const std::string why =
      behind->waits ? fmt::format("it waits for {}, and every rank waits", behind->operation)
                    : doing(*behind);
  return fmt::format("{} is behind: {}; {} waits for {}",
                     name(static_cast<int>(behind - peers.begin())), why, name(rank),
                     mine.operation);
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

const std::shared_ptr<std::atomic<uint64_t>>& Heartbeat::awaited() const {
  return shared_->awaited;
}

void Heartbeat::set_places(std::function<std::string(int)> place) {
  std::lock_guard lock(shared_->mutex);
  shared_->place = std::move(place);
  shared_->has_news = true;  // so that a launcher knows the place of a rank that ends early
  shared_->changed.notify_all();
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

LastSeen last_seen(c10d::Store& store, int rank) {
  Peer peer;
  if (store.check({beat_key(rank)})) decode(store.get_to_str(beat_key(rank)), peer);
  return {named(rank, peer.place), peer.operation};
}

}  // namespace picotron
