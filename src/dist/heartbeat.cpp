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
// Of a report, with the store.
constexpr std::chrono::milliseconds kPatienceOfReport{2000};

std::string beat_key(int rank) {
  return fmt::format("beat/{}", rank);
}
std::string ended_key(int rank) {
  return fmt::format("ended/{}", rank);
}
std::string operations_key(int rank) {
  return fmt::format("operations/{}", rank);
}
// check() before get(): get() would wait for a key that nobody may ever write.
std::string read_key(c10d::Store& store, const std::string& key) {
  return store.check({key}) ? store.get_to_str(key) : "";
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

std::string encode_beat(uint64_t beats, const LastOperations& last, bool waits,
                        const std::string& place) {
  if (last.list.empty()) return fmt::format("{}\t0\t0\t{}\t", beats, place);
  const auto awaited = std::find_if(last.list.begin(), last.list.end(),
                                    [](const Operation& each) { return each.awaited; });
  const Operation& what = awaited == last.list.end() ? last.list.back() : *awaited;
  return fmt::format("{}\t{}\t{:d}\t{}\t{}", beats, last.list.back().sequence, waits, place,
                     what.text());
}

void decode_beat(const std::string& beat, Peer& peer) {
  std::istringstream text(beat);
  uint64_t beats = 0;
  text >> beats >> peer.sequence >> peer.waits;
  text.get();
  std::getline(text, peer.place, '\t');
  std::getline(text, peer.operation);
}

int64_t seconds(Clock::duration duration) {
  return std::chrono::round<std::chrono::seconds>(duration).count();
}

// `silent_seconds`: since the rank has last beat.
RankChapter chapter_of(int rank, const Peer& peer, LastOperations operations,
                       double silent_seconds) {
  std::string standing = fmt::format("last beat {:.1f} s ago", silent_seconds);
  if (peer.ended) {
    standing = peer.error.empty() ? "ended as it should" : "ended: " + peer.error;
  } else if (peer.beat.empty()) {
    standing = "did not come";
  }
  return {.rank = rank,
          .place = peer.place,
          .standing = std::move(standing),
          .seconds_ago = silent_seconds,
          .operations = std::move(operations),
          .last_seen = peer.operation};
}

// By the clocks of two machines, if they are not the same.
double seconds_since_written(const LastOperations& operations) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::chrono::milliseconds written(operations.written_ms);
  return std::max(0.0, std::chrono::duration<double>(now - written).count());
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
  std::string error;                    // of this rank, to be written when leaving
  uint64_t questions = 0, answers = 0;  // report() asks for what every rank did last
  std::vector<LastOperations> answer;   // by rank; empty: the store did not give it

  std::thread thread;

  void run();
  void write(uint64_t beats);
  void read();
  std::vector<LastOperations> read_operations() const;
  RankChapter chapter(int of, const LastOperations& operations) const;
  std::string name(int peer) const;
  std::string verdict();
};

void Heartbeat::Shared::run() {
  uint64_t beats = 0;
  Clock::time_point next_beat = Clock::now();
  std::unique_lock lock(mutex);
  while (!stop) {
    const bool news = std::exchange(has_news, false);
    const uint64_t question = questions;
    const bool asked = question != answers;
    std::vector<LastOperations> operations;
    lock.unlock();
    try {
      if (Clock::now() >= next_beat || news) {
        next_beat = Clock::now() + kBeat;
        write(++beats);
      }
      read();
      if (asked) operations = read_operations();
    } catch (const std::exception&) {
      // The store is gone or slow; `contact` grows old, which is what diagnose() looks at.
    }
    lock.lock();
    if (asked) {
      answer = std::move(operations);
      answers = question;
    }
    changed.notify_all();
    const bool glancing = asking > 0;
    const auto until = glancing ? Clock::now() + kGlance : next_beat;
    changed.wait_until(lock, until, [&] {
      return stop || leaving || has_news || questions != answers || (asking > 0 && !glancing);
    });
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
  std::string beat, operations;
  {
    std::lock_guard lock(mutex);
    if (recorder == nullptr) return;
    const uint64_t waited_for = *awaited;
    const LastOperations last = last_operations(*recorder, waited_for);
    beat = encode_beat(beats, last, waited_for != 0, place ? place(rank) : "");
    operations = encode(last);
  }
  store->set(operations_key(rank), operations);
  store->set(beat_key(rank), beat);
}

void Heartbeat::Shared::read() {
  const int world = static_cast<int>(peers.size());
  for (int peer = 0; peer < world; ++peer) {
    const bool has_ended = store->check({ended_key(peer)});
    const std::string error_text = has_ended ? store->get_to_str(ended_key(peer)) : "";
    const std::string beat = read_key(*store, beat_key(peer));
    std::lock_guard lock(mutex);
    contact = Clock::now();
    Peer& seen = peers[static_cast<size_t>(peer)];
    seen.ended = has_ended;
    seen.error = error_text;
    if (beat != seen.beat) {
      seen.beat = beat;
      seen.changed = contact;
      decode_beat(beat, seen);
    }
  }
}

std::vector<LastOperations> Heartbeat::Shared::read_operations() const {
  std::vector<LastOperations> all(peers.size());
  for (size_t peer = 0; peer < all.size(); ++peer)
    all[peer] = decode_operations(read_key(*store, operations_key(static_cast<int>(peer))));
  return all;
}

RankChapter Heartbeat::Shared::chapter(int of, const LastOperations& operations) const {
  if (of == rank) {
    return {.rank = rank,
            .place = place ? place(rank) : "",
            .standing = "wrote this",
            .operations = last_operations(*recorder, *awaited)};
  }
  const Peer& peer = peers[static_cast<size_t>(of)];
  const double seen = std::chrono::duration<double>(Clock::now() - peer.changed).count();
  RankChapter chapter = chapter_of(of, peer, operations, seen);
  if (place) chapter.place = place(of);
  // A beat is seen up to a second after it was written. Beyond that the two clocks disagree.
  chapter.seconds_ago = std::clamp(seconds_since_written(operations), seen, seen + 1);
  return chapter;
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

std::string Heartbeat::report(const std::string& heading) const {
  std::unique_lock lock(shared_->mutex);
  const uint64_t question = ++shared_->questions;
  shared_->changed.notify_all();
  const bool answered = shared_->changed.wait_for(lock, kPatienceOfReport,
                                                  [&] { return shared_->answers >= question; });
  const bool known = answered && !shared_->answer.empty();
  std::vector<RankChapter> ranks;
  for (size_t i = 0; i < shared_->peers.size(); ++i) {
    ranks.push_back(
        shared_->chapter(static_cast<int>(i), known ? shared_->answer[i] : LastOperations{}));
  }
  return picotron::report(
      known ? heading
            : heading +
                  "\nThe rendezvous store does not answer: of the other ranks there is only "
                  "what this one read last.",
      ranks);
}

LastSeen last_seen(c10d::Store& store, int rank) {
  Peer peer;
  decode_beat(read_key(store, beat_key(rank)), peer);
  return {named(rank, peer.place), peer.operation};
}

std::vector<RankChapter> chapters_in(c10d::Store& store, int world_size) {
  std::vector<RankChapter> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    Peer peer;
    peer.beat = read_key(store, beat_key(rank));
    peer.ended = store.check({ended_key(rank)});
    if (peer.ended) peer.error = store.get_to_str(ended_key(rank));
    decode_beat(peer.beat, peer);
    const LastOperations operations = decode_operations(read_key(store, operations_key(rank)));
    ranks.push_back(chapter_of(rank, peer, operations, seconds_since_written(operations)));
  }
  return ranks;
}

}  // namespace picotron
