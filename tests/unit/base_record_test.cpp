// The record: what is kept when the ring wraps, what the counters count, and who writes where.
#include "core/record.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace picotron::record {
namespace {

Entry sent(Axis axis, int64_t bytes) {
  return {.kind = Kind::collective, .axis = axis, .what = "all_reduce", .bytes = bytes};
}

TEST(RecordTest, IsEmptyAtFirst) {
  const Recorder recorder(3, 4);
  EXPECT_EQ(recorder.global_rank(), 3);
  EXPECT_EQ(recorder.newest().sequence, 0u);
  EXPECT_TRUE(recorder.entries().empty());
  EXPECT_EQ(recorder.bytes(Axis::tp), 0);
  EXPECT_EQ(recorder.product_flops(), 0);
}

TEST(RecordTest, RingKeepsTheNewestOldestFirst) {
  Recorder recorder(0, 4);
  for (int64_t i = 1; i <= 3; ++i) recorder.begin({.shape = {i}});
  ASSERT_EQ(recorder.entries().size(), 3u);
  for (int64_t i = 4; i <= 11; ++i) EXPECT_EQ(recorder.begin({.shape = {i}}), uint64_t(i));
  const std::vector<Entry> kept = recorder.entries();
  ASSERT_EQ(kept.size(), 4u);
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ(kept[i].sequence, 8 + i);
    EXPECT_EQ(kept[i].shape[0], static_cast<int64_t>(8 + i));
  }
  EXPECT_EQ(recorder.newest().sequence, 11u);
}

TEST(RecordTest, TheEndOfAnEntryThatHasLeftTheRingTouchesNoOther) {
  Recorder recorder(0, 2);
  const uint64_t first = recorder.begin({});
  const uint64_t second = recorder.begin({});
  recorder.end(second);
  const uint64_t third = recorder.begin({});  // takes the place of the first
  recorder.end(first);
  const std::vector<Entry> kept = recorder.entries();
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_GE(kept[0].end_ns, kept[0].begin_ns);
  EXPECT_EQ(kept[1].sequence, third);
  EXPECT_EQ(kept[1].end_ns, 0) << "the third is still running";
}

TEST(RecordTest, CountersOutliveTheRing) {
  Recorder recorder(0, 2);
  for (int i = 0; i < 5; ++i) recorder.begin(sent(Axis::tp, 10));
  for (int i = 0; i < 3; ++i) recorder.begin(sent(Axis::dp_cp, 7));
  for (int i = 0; i < 4; ++i) recorder.begin({.kind = Kind::product, .flops = 1.5});
  EXPECT_EQ(recorder.bytes(Axis::tp), 50);
  EXPECT_EQ(recorder.bytes(Axis::dp_cp), 21);
  EXPECT_EQ(recorder.bytes(Axis::world), 0);
  EXPECT_EQ(recorder.product_flops(), 6);
}

TEST(RecordTest, BytesByAxisAreThisRanksAndZeroOutsideARank) {
  EXPECT_EQ(current(), nullptr);
  EXPECT_EQ(bytes_sent(), Bytes{});
  Recorder recorder;
  const Attach attached(&recorder);
  { const Scope scope(sent(Axis::pp, 100)); }
  const Bytes before = bytes_sent();
  EXPECT_EQ(before[static_cast<size_t>(Axis::pp)], 100);
  { const Scope scope(sent(Axis::pp, 20)); }
  { const Scope scope(sent(Axis::world, 8)); }
  Bytes expected{};
  expected[static_cast<size_t>(Axis::pp)] = 20;
  expected[static_cast<size_t>(Axis::world)] = 8;
  EXPECT_EQ(bytes_sent_since(before), expected);
}

TEST(RecordTest, EveryAxisHasItsName) {
  const std::vector<std::string> names = {"none", "tp", "cp", "pp", "dp_cp", "world"};
  ASSERT_EQ(names.size(), static_cast<size_t>(kAxes));
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(name_of(static_cast<Axis>(i)), names[i]);
  EXPECT_EQ(name_of(Axis::world), names.back());
}

TEST(RecordTest, ScopesNestAndSayWhereTheyStand) {
  Recorder recorder;
  const Attach attached(&recorder);
  uint32_t line = 0;
  {
    const Scope outer({.kind = Kind::action, .what = "forward"});
    {
      line = __LINE__ + 1;
      const Scope inner({.kind = Kind::product, .what = "linear"});
      EXPECT_EQ(std::string(recorder.newest().what), "linear");
      EXPECT_EQ(recorder.newest().end_ns, 0);
    }
    EXPECT_EQ(recorder.entries()[0].end_ns, 0) << "the outer scope is still open";
  }
  const std::vector<Entry> kept = recorder.entries();
  ASSERT_EQ(kept.size(), 2u);
  const Entry &outer = kept[0], &inner = kept[1];
  EXPECT_EQ(std::string(outer.what), "forward");
  EXPECT_LE(outer.begin_ns, inner.begin_ns);
  EXPECT_LE(inner.begin_ns, inner.end_ns);
  EXPECT_LE(inner.end_ns, outer.end_ns);
  EXPECT_EQ(inner.line, line);
  EXPECT_NE(std::string(inner.file).find("base_record_test.cpp"), std::string::npos);
}

TEST(RecordTest, EntriesAreAboutTheInnermostWeight) {
  { const About nobody_records(3); }
  Recorder recorder;
  const Attach attached(&recorder);
  const auto about_now = [&] {
    { const Scope scope({.kind = Kind::product}); }
    return recorder.newest().about;
  };
  EXPECT_EQ(about_now(), -1);
  {
    const About outer(3);
    EXPECT_EQ(about_now(), 3);
    {
      const About inner(0);
      EXPECT_EQ(about_now(), 0);
    }
    EXPECT_EQ(about_now(), 3);
  }
  EXPECT_EQ(about_now(), -1);
}

TEST(RecordTest, AThreadWritesToTheRankItIsAttachedTo) {
  Recorder first(0), second(1);
  const Attach attached(&first);
  {
    const Attach inner(&second);
    EXPECT_EQ(current(), &second);
    const Scope scope({});
  }
  EXPECT_EQ(current(), &first);
  std::thread stranger([] {
    EXPECT_EQ(current(), nullptr) << "a new thread belongs to no rank";
    const Scope nowhere({});
  });
  stranger.join();
  std::thread helper([&] {
    const Attach of_second(&second);
    const Scope scope({});
  });
  helper.join();
  EXPECT_EQ(first.entries().size(), 0u);
  EXPECT_EQ(second.entries().size(), 2u);
}

TEST(RecordTest, ThreadsOfOneRankLoseNoEntry) {
  Recorder recorder(0, 64);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      const Attach attached(&recorder);
      for (int i = 0; i < 500; ++i) const Scope scope(sent(Axis::tp, 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(recorder.newest().sequence, 2000u);
  EXPECT_EQ(recorder.bytes(Axis::tp), 2000);
  for (const Entry& entry : recorder.entries()) EXPECT_NE(entry.end_ns, 0);
}

}  // namespace
}  // namespace picotron::record
