// A child process answers line by line; one that is not there, or has ended, is a missing answer.
#include "core/child_process.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include <iostream>

namespace picotron {
namespace {

TEST(ChildProcess, AnswersLineByLine) {
  ChildProcess cat = ChildProcess::start("cat", {});
  for (const std::string line : {"steps 5", "", "floor"}) {
    ASSERT_TRUE(cat.write_line(line));
    EXPECT_EQ(cat.read_line(), line);
  }
}

TEST(ChildProcess, RunsAFunctionInACopyOfThisProcess) {
  const int known_before = 3;
  ChildProcess child = ChildProcess::fork([&] {
    for (int number = 0; std::cin >> number;) std::cout << number * known_before << std::endl;
    return 0;
  });
  child.write_line("14");
  EXPECT_EQ(child.read_line(), "42");
}

TEST(ChildProcess, TwoLiveSideBySide) {
  ChildProcess first = ChildProcess::start("cat", {});
  {
    ChildProcess second = ChildProcess::start("cat", {});
    second.write_line("second");
    EXPECT_EQ(second.read_line(), "second");
  }  // ends although the first is still open
  first.write_line("first");
  EXPECT_EQ(first.read_line(), "first");
}

TEST(ChildProcess, AMissingProgramIsAMissingAnswer) {
  ChildProcess none = ChildProcess::start("/nowhere/python", {"x"});
  EXPECT_EQ(none.read_line(), std::nullopt);
  // The kernel may close the dead child's end of the other pipe a moment later.
  bool written = true;
  for (int tries = 0; tries < 1000 && written; ++tries) {
    written = none.write_line("steps 1");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_FALSE(written);
}

}  // namespace
}  // namespace picotron
