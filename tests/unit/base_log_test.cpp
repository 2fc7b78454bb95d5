// Who speaks: rank 0, and of the others only their errors, with the rank in front.
#include "core/log.h"

#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <string>

#include "core/record.h"

namespace picotron {
namespace {

struct Heard {
  std::string out, err;
};

Heard hear(std::optional<int> rank, const std::function<void()>& speak) {
  record::Recorder recorder(rank.value_or(0));
  const record::Attach attached(rank ? &recorder : nullptr);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  speak();
  Heard heard;
  heard.out = ::testing::internal::GetCapturedStdout();
  heard.err = ::testing::internal::GetCapturedStderr();
  return heard;
}

void say_everything() {
  log::print("a line");
  log::warn("be careful");
  log::error("it broke");
}

TEST(LogTest, RankZeroSpeaksPlainly) {
  const Heard heard = hear(0, say_everything);
  EXPECT_EQ(heard.out, "a line\n");
  EXPECT_EQ(heard.err, "warning: be careful\nerror: it broke\n");
}

TEST(LogTest, AThreadWithoutARankSpeaksAsRankZero) {
  const Heard heard = hear(std::nullopt, [] {
    EXPECT_TRUE(log::speaks());
    say_everything();
  });
  EXPECT_EQ(heard.out, "a line\n");
  EXPECT_EQ(heard.err, "warning: be careful\nerror: it broke\n");
}

TEST(LogTest, OfOtherRanksOnlyErrorsAreHeardAndTheySayWhichRank) {
  const Heard heard = hear(3, [] {
    EXPECT_FALSE(log::speaks());
    say_everything();
  });
  EXPECT_EQ(heard.out, "");
  EXPECT_EQ(heard.err, "[rank 3] error: it broke\n");
}

TEST(LogTest, TextIsNotAFormat) {
  const Heard heard = hear(0, [] {
    log::print("100% of {}");
    log::error("{} %s");
  });
  EXPECT_EQ(heard.out, "100% of {}\n");
  EXPECT_EQ(heard.err, "error: {} %s\n");
}

}  // namespace
}  // namespace picotron
