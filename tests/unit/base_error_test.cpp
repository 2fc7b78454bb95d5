// What a message may look like, whatever the file that it speaks of holds.
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/utf8.h"

namespace picotron {
namespace {

std::string message(const std::string& quoted) {
  return user_error("a.json: unknown key {}; remove it", quoted).what();
}

TEST(ErrorTest, WhatAMessageQuotesCannotCommandTheTerminal) {
  EXPECT_EQ(message("größe"), "a.json: unknown key größe; remove it");
  EXPECT_EQ(message("\x1b[2J\n\t\x7f"),
            R"(a.json: unknown key \u001b[2J\u000a\u0009\u007f; remove it)");
  EXPECT_EQ(message("\xc2\x9b"
                    "2J\xc2\xa0"),
            "a.json: unknown key \\u009b2J\xc2\xa0; remove it");
}

TEST(ErrorTest, OfALongMessageTheMiddleIsLeftOut) {
  // Characters of two bytes, at every alignment: the cut must not halve one.
  for (const char* before : {"", "a", "aa", "aaa"}) {
    std::string name = before;
    for (int i = 0; i < 1'000'000; ++i) name += "é";
    const std::string text = message(name);
    EXPECT_LE(text.size(), 1010U);
    EXPECT_TRUE(text.starts_with("a.json: unknown key " + name.substr(0, 100))) << text;
    EXPECT_TRUE(text.ends_with("ééé; remove it")) << text;
    EXPECT_NE(text.find("é … é"), std::string::npos) << text;
    EXPECT_EQ(replace_invalid_utf8(text), text);
  }
}

TEST(ErrorTest, SeveralMistakesAreALineEach) {
  EXPECT_STREQ(user_errors({"a\nb", "c"}).what(), "a\\u000ab\nc");
  EXPECT_STREQ(user_errors({"a", "b\x1b", "c", "d"}).what(),
               "a\nb\\u001b\nand 2 more mistakes; mend these first");
}

}  // namespace
}  // namespace picotron
