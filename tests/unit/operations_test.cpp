// Which operations a rank keeps, that they survive the way through the store, and what the report
// of several ranks says.
#include "dist/operations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using record::Axis;
using record::Entry;
using record::Kind;
using record::Recorder;

Entry collective(const char* what, Axis axis) {
  return {.kind = Kind::collective, .axis = axis, .what = what, .bytes = 4096};
}

uint64_t done(Recorder& recorder, const Entry& entry) {
  const uint64_t sequence = recorder.begin(entry);
  recorder.end(sequence);
  return sequence;
}

// A forward in which `before` collectives over tp have ended and another one has begun.
uint64_t forward_up_to(Recorder& recorder, int before, const char* last = "all_reduce") {
  recorder.begin({.kind = Kind::action, .what = "forward", .shape = {3}});
  for (int i = 0; i < before; ++i) done(recorder, collective("all_reduce", Axis::tp));
  return recorder.begin(collective(last, Axis::tp));
}

TEST(LastOperationsTest, ThoseThatRunStayHoweverOld) {
  Recorder recorder;
  const uint64_t awaited = recorder.begin(collective("reduce_scatter", Axis::dp_cp));
  done(recorder, {.kind = Kind::product, .what = "linear_forward"});
  const uint64_t running =
      recorder.begin({.kind = Kind::send_receive, .axis = Axis::pp, .what = "receive", .peer = 2});
  for (int i = 0; i < 50; ++i) done(recorder, {.kind = Kind::product, .what = "linear_forward"});

  const std::vector<Operation> list = last_operations(recorder, awaited).list;
  ASSERT_EQ(list.size(), kOperationsKept);
  EXPECT_TRUE(std::is_sorted(list.begin(), list.end(), [](const Operation& a, const Operation& b) {
    return a.sequence < b.sequence;
  }));
  EXPECT_EQ(list[0].sequence, awaited);
  EXPECT_TRUE(list[0].awaited);
  EXPECT_EQ(list[1].sequence, running);
  EXPECT_EQ(list[1].took_ns, -1);
  EXPECT_EQ(list[1].text(), "receive over pp from rank 2");
  EXPECT_EQ(list[2].sequence, 53u - 17) << "then the newest that have ended";
  EXPECT_EQ(list.back().sequence, 53u);
  EXPECT_GE(list.back().took_ns, 0);
}

TEST(LastOperationsTest, TheAwaitedAndTheNewestStayAmongManyThatRun) {
  Recorder recorder;
  for (int i = 0; i < 40; ++i) recorder.begin(collective("all_gather", Axis::world));
  done(recorder, {.kind = Kind::optimizer, .what = "adamw"});
  const std::vector<Operation> list = last_operations(recorder, 2).list;
  ASSERT_EQ(list.size(), kOperationsKept);
  EXPECT_EQ(list.front().sequence, 2u);
  EXPECT_EQ(list.back().sequence, 41u);
}

TEST(LastOperationsTest, AnOperationNamesItsAction) {
  Recorder recorder;
  const uint64_t action = recorder.begin({.kind = Kind::action, .what = "forward", .shape = {3}});
  done(recorder, collective("all_reduce", Axis::tp));
  recorder.end(action);
  done(recorder, {.kind = Kind::optimizer, .what = "adamw"});
  const std::vector<Operation> list = last_operations(recorder, 0).list;
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0].text(), "forward of microbatch 3");
  EXPECT_EQ(list[1].text(), "all_reduce over tp, in forward of microbatch 3");
  EXPECT_EQ(list[2].text(), "adamw");
}

TEST(LastOperationsTest, ComeBackFromTheStoreAsTheyWere) {
  Recorder recorder;
  done(recorder, collective("reduce_scatter", Axis::dp_cp));
  recorder.begin({.kind = Kind::action, .what = "backward", .shape = {1}});
  const uint64_t awaited = recorder.begin(
      {.kind = Kind::send_receive, .axis = Axis::pp, .what = "send", .bytes = 12, .peer = 7});
  const LastOperations before = last_operations(recorder, awaited);
  const LastOperations after = decode_operations(encode(before));
  EXPECT_EQ(after.written_ms, before.written_ms);
  EXPECT_EQ(after.collectives, before.collectives);
  ASSERT_EQ(after.list.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const Operation &a = after.list[i], &b = before.list[i];
    EXPECT_EQ(std::tie(a.sequence, a.axis, a.nth, a.peer, a.bytes, a.age_ns, a.took_ns, a.awaited),
              std::tie(b.sequence, b.axis, b.nth, b.peer, b.bytes, b.age_ns, b.took_ns, b.awaited));
    EXPECT_EQ(a.text(), b.text());
  }
  EXPECT_EQ(after.list.back().text(), "send over pp to rank 7, in backward of microbatch 1");
  EXPECT_TRUE(decode_operations("").list.empty()) << "a rank that wrote nothing";
}

TEST(LastOperationsTest, AreFewBytes) {
  Recorder recorder;
  for (int i = 0; i < 1'000'000; ++i) recorder.begin({});
  recorder.begin({.kind = Kind::action, .what = "receive_activation", .shape = {1023, 1}});
  for (int i = 0; i < 20; ++i) recorder.begin(collective("reduce_scatter", Axis::dp_cp));
  EXPECT_LT(encode(last_operations(recorder, 0)).size(), 3000u);
}

// The lines of a rank's chapter, its heading first.
std::vector<std::string> chapter(const std::string& text, const std::string& heading) {
  std::istringstream in(text.substr(text.find("\n" + heading + ", ") + 1));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line) && !line.empty();) lines.push_back(line);
  return lines;
}

// dp 2 × tp 2: rank 1 has not begun the 3rd all_reduce over tp that rank 0 waits for; the other
// two are far ahead, in a group of their own.
std::vector<RankChapter> four_ranks() {
  std::vector<RankChapter> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    Recorder recorder(rank);
    done(recorder, collective("broadcast", Axis::world));
    if (rank == 0) done(recorder, {.kind = Kind::product, .what = "only_here"});
    const uint64_t awaited = forward_up_to(recorder, rank == 0 ? 2 : rank == 1 ? 1 : 9);
    if (rank == 1) recorder.end(awaited);
    ranks.push_back({.rank = rank,
                     .place = "dp " + std::to_string(rank / 2) + ", tp " + std::to_string(rank % 2),
                     .standing = rank == 1 ? "was ended by signal 9" : "last beat 0.5 s ago",
                     .seconds_ago = 60,
                     .operations = last_operations(recorder, rank == 1 ? 0 : awaited)});
  }
  return ranks;
}

TEST(ReportTest, MarksWhereTheRanksOfAGroupDiffer) {
  const std::string text = report("rank 1 (dp 0, tp 1) was ended by signal 9", four_ranks());
  EXPECT_TRUE(text.starts_with("rank 1 (dp 0, tp 1) was ended by signal 9\n"));

  const auto waiting = chapter(text, "rank 0 (dp 0, tp 0)");
  ASSERT_EQ(waiting.size(), 2u + 6);
  EXPECT_EQ(waiting[0], "rank 0 (dp 0, tp 0), last beat 0.5 s ago");
  for (size_t i = 1; i + 1 < waiting.size(); ++i) EXPECT_EQ(waiting[i][0], ' ') << waiting[i];
  const std::string& last = waiting.back();
  EXPECT_EQ(last[0], '*') << last;
  EXPECT_NE(last.find(" 60."), std::string::npos) << last;
  for (const char* part :
       {" s ago", "waited for", "4096", "tp 3", "all_reduce over tp, in forward of microbatch 3"})
    EXPECT_NE(last.find(part), std::string::npos) << part << " in " << last;

  // What rank 1 has begun, rank 0 has too, though its record counts one operation less.
  for (const std::string& line : chapter(text, "rank 1 (dp 0, tp 1)")) EXPECT_NE(line[0], '*');
  // Another group's numbers are no difference, and these two agree.
  for (const char* name : {"rank 2 (dp 1, tp 0)", "rank 3 (dp 1, tp 1)"}) {
    for (const std::string& line : chapter(text, name)) EXPECT_NE(line[0], '*') << line;
  }
}

TEST(ReportTest, TheTableMarksWhoIsBehind) {
  const std::string text = report("why", four_ranks());
  const auto row = [&](const std::string& name) {
    const size_t at = text.find("\n" + name + " ") + 1;
    return text.substr(at, text.find('\n', at) - at);
  };
  EXPECT_NE(row("rank 0 (dp 0, tp 0)").find(" 3  "), std::string::npos);
  EXPECT_NE(row("rank 1 (dp 0, tp 1)").find(" 2* "), std::string::npos);
  EXPECT_EQ(row("rank 3 (dp 1, tp 1)").find('*'), std::string::npos);
  EXPECT_NE(row("rank 1 (dp 0, tp 1)").find("was ended by signal 9"), std::string::npos);
}

TEST(ReportTest, MarksAnotherCollectiveAndOneThatHasEndedElsewhere) {
  Recorder first, second, third;
  forward_up_to(first, 2, "all_gather");
  forward_up_to(second, 2, "reduce_scatter");
  third.end(forward_up_to(third, 2, "all_gather"));
  const auto last_line = [](const Recorder& mine, const Recorder& other) {
    return chapter(report("why",
                          {{.rank = 0, .place = "tp 0", .operations = last_operations(mine, 0)},
                           {.rank = 1, .place = "tp 1", .operations = last_operations(other, 0)}}),
                   "rank 0 (tp 0)")
        .back();
  };
  EXPECT_EQ(last_line(first, first)[0], ' ');
  EXPECT_EQ(last_line(first, second)[0], '*');
  EXPECT_EQ(last_line(first, third)[0], '*');
  EXPECT_NE(last_line(first, third).find("runs"), std::string::npos);
}

TEST(ReportTest, TellsWhatLittleIsKnown) {
  const std::string text =
      report("why", {{.rank = 0, .standing = "last beat 3.0 s ago", .last_seen = "barrier"},
                     {.rank = 1, .standing = "did not come"}});
  EXPECT_EQ(chapter(text, "rank 0").back(), "  the last operation seen of it was barrier");
  EXPECT_EQ(chapter(text, "rank 1").back(), "  no operation of it is known");
}

TEST(WriteReportTest, TakesTheFirstFreeNumber) {
  const fs::path folder = fs::path(::testing::TempDir()) / "operations_test" / "run";
  fs::remove_all(folder);
  EXPECT_EQ(write_report(folder, "one"), folder / "operations.1.txt") << "the folder is made";
  EXPECT_EQ(write_report(folder, "two"), folder / "operations.2.txt");
  fs::remove(folder / "operations.1.txt");
  EXPECT_EQ(write_report(folder, "three"), folder / "operations.1.txt");
  const auto text_of = [&](const char* name) {
    std::ifstream file(folder / name);
    std::string date, text;
    std::getline(file, date);
    std::getline(file, text);
    return text;
  };
  EXPECT_EQ(text_of("operations.1.txt"), "three");
  EXPECT_EQ(text_of("operations.2.txt"), "two");
  EXPECT_THROW(write_report(folder / "operations.1.txt", "no folder"), RunError);
}

}  // namespace
}  // namespace picotron
