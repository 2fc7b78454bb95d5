// Token files, folders, validation, and what is wrong with them.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/error.h"
#include "data/dataset.h"
#include "data/token_files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

std::string npy_header(const std::string& dict, int version = 1) {
  std::string out = "\x93NUMPY";
  out += static_cast<char>(version);
  out += '\0';
  const std::string padded = dict + "\n";
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) {
    out += static_cast<char>(padded.size() >> (8 * i));
  }
  return out + padded;
}

std::string dict_of(const std::string& descr, const std::string& shape,
                    const std::string& fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
}

template <class T>
std::string npy(const std::vector<T>& values, int version = 1) {
  const std::string shape = "(" + std::to_string(values.size()) + ",)";
  return npy_header(dict_of(sizeof(T) == 2 ? "<u2" : "<u4", shape), version) +
         std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

class DataFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "picotron-data-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& content) {
    const fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }

  static std::vector<int32_t> row(const Dataset& dataset, int64_t i) {
    std::vector<int32_t> out(dataset.seq_length() + 1);
    dataset.read_row(i, out);
    return out;
  }

  // The message, with the folder's name taken out.
  std::string message(const std::function<void()>& f) const {
    try {
      f();
    } catch (const UserError& error) {
      std::string text = error.what();
      for (size_t at; (at = text.find(folder_.string() + "/")) != std::string::npos;) {
        text.erase(at, folder_.string().size() + 1);
      }
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      return text;
    }
    return "no error";
  }

  fs::path folder_;
};

std::vector<uint16_t> counting(int n, int first = 0) {
  std::vector<uint16_t> out(n);
  for (int i = 0; i < n; ++i) out[i] = static_cast<uint16_t>(first + i);
  return out;
}

TEST_F(DataFiles, NpyOfEachVersionAndWidth) {
  for (const int version : {1, 2, 3}) {
    const auto opened = open_datasets(
        {.name = write("a.npy", npy(counting(22), version)), .tokenizer = "", .seq_length = 7});
    EXPECT_EQ(opened.train->num_rows(), 3);  // (22 − 1) / 7
    EXPECT_EQ(row(*opened.train, 0), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
    EXPECT_EQ(row(*opened.train, 2), (std::vector<int32_t>{14, 15, 16, 17, 18, 19, 20, 21}));
    EXPECT_FALSE(opened.train->vocab_size().has_value());
    EXPECT_FALSE(opened.train->floor().has_value());
    EXPECT_EQ(opened.validation, nullptr);
    EXPECT_TRUE(opened.notes.empty());
  }
  const auto wide = open_datasets(
      {.name = write("b.npy", npy(std::vector<uint32_t>{70000, 1, 65536})), .seq_length = 2});
  EXPECT_EQ(row(*wide.train, 0), (std::vector<int32_t>{70000, 1, 65536}));
  EXPECT_NE(wide.train->locate(0, 2).find("b.npy, token 2"), std::string::npos);
  // A header's length need not align the tokens, and its keys may stand in any order.
  const std::string odd = npy_header("{\"shape\":(3,),'fortran_order':False,'descr':\"<u2\"}");
  const auto unaligned = open_datasets(
      {.name = write("c.npy", odd + std::string("\1\0\2\0\3\0", 6)), .seq_length = 2});
  EXPECT_EQ(row(*unaligned.train, 0), (std::vector<int32_t>{1, 2, 3}));
}

TEST_F(DataFiles, HostileNpyIsOneSentence) {
  const std::string six(6, '\1');
  const struct {
    std::string content, expected;
  } cases[] = {
      {"", "is empty"},
      {"hello, this is text", "is no .npy file"},
      {"\x93NUMP", "is no .npy file"},
      {"\x93NUMPY", "is cut off within its .npy header"},
      {std::string("\x93NUMPY\1\0\5", 9), "is cut off within its .npy header"},
      {std::string("\x93NUMPY\2\0\5\0\0", 11), "is cut off within its .npy header"},
      {std::string("\x93NUMPY\4\0\0\0\0\0", 12), "is .npy version 4.0"},
      {std::string("\x93NUMPY\1\0\xff\xff", 10) + "{",
       "claims 65535 bytes, but the file ends after 1"},
      {std::string("\x93NUMPY\2\0\xff\xff\xff\xff", 12) + "{", "claims 4294967295 bytes"},
      {npy_header("[1, 2]") + six, "is no Python dict"},
      {npy_header("{") + six, "has a malformed key"},
      {npy_header("{}") + six, "lacks 'descr', 'fortran_order' or 'shape'"},
      {npy_header("{'descr': '<u2', 'shape': (3,)}") + six, "lacks 'descr'"},
      {npy_header("{'descr': '<u2'") + six, "is cut off or malformed"},
      {npy_header("{'descr' '<u2'}") + six, "lacks a colon"},
      {npy_header("{'color': 1}") + six, "has an unknown key 'color'"},
      {npy_header("{'\x1b[2J\n': 1}") + six, "has an unknown key '\\u001b[2J\\u000a'"},
      {npy_header(dict_of("\x7f\xc2\x9b", "(3,)")) + six, "holds '\\u007f\\u009b'"},
      {npy_header("{'descr': [('a', '<u2')]}") + six, "is structured"},
      {npy_header(dict_of("<u2", "(3,)", "Maybe")) + six, "fortran_order"},
      {npy_header(dict_of("<u2", "(3,)") + "x") + six, "goes on after its dict"},
      {npy_header(dict_of("<i8", "(3,)")) + six, "holds '<i8'; tokens must be uint16"},
      {npy_header(dict_of("<f4", "(3,)")) + six, "holds '<f4'"},
      {npy_header(dict_of("|u1", "(6,)")) + six, "holds '|u1'"},
      {npy_header(dict_of(">u2", "(3,)")) + six, "big-endian"},
      {npy_header(dict_of("<u2", "(1, 3)")) + six, "has 2 dimensions"},
      {npy_header(dict_of("<u2", "()")) + six, "has 0 dimensions"},
      {npy_header(dict_of("<u2", "(3,)", "True")) + six, "Fortran order"},
      {npy_header(dict_of("<u2", "(4,)")) + six,
       "is truncated: its header promises 4 tokens, it holds 3"},
      {npy_header(dict_of("<u2", "(922337203685477580,)")) + six, "is truncated"},
      {npy_header(dict_of("<u4", "(4611686018427387905,)")) + six, "is truncated"},
      {npy_header(dict_of("<u2", "(99999999999999999999999,)")) + six, "absurd shape"},
      {npy_header(dict_of("<u2", "(-3,)")) + six, "malformed shape"},
      {npy_header(dict_of("<u2", "(3 4)")) + six, "malformed shape"},
      {npy_header(dict_of("<u2", "(3")) + six, "malformed shape"},
      {npy_header(dict_of("<u2", "(2,)")) + six, "2 tokens, but 2 bytes more follow"},
      {npy_header(dict_of("<u2", "(3,)")) + std::string(5, '\1'), "is truncated"},
      {npy_header(dict_of("<u2", "(0,)")), "has 0 tokens, but one row takes seq_length + 1 = 3"},
      {npy(counting(2)),
       "has 2 tokens, but one row takes seq_length + 1 = 3; give more text, or set "
       "training.seq_length to at most 1"},
  };
  for (const auto& c : cases) {
    const std::string path = write("t.npy", c.content);
    const std::string text = message([&] { open_datasets({.name = path, .seq_length = 2}); });
    EXPECT_TRUE(text.starts_with("t.npy: ")) << text;
    EXPECT_NE(text.find(c.expected), std::string::npos) << text << "\nexpected: " << c.expected;
  }
}

TEST_F(DataFiles, TokenBeyondAnyVocabularyIsNamed) {
  const auto opened =
      open_datasets({.name = write("a.npy", npy(std::vector<uint32_t>{1, 2, 0x80000000u, 3, 4})),
                     .seq_length = 2});
  EXPECT_EQ(message([&] { row(*opened.train, 0); }),
            "a.npy, token 2: 2147483648 is larger than any vocabulary");
}

TEST_F(DataFiles, TextIsBytes) {
  const auto opened = open_datasets(
      {.name = write("a.txt", "h\xc3\xa9llo wor\xff"), .tokenizer = "bytes", .seq_length = 4});
  EXPECT_EQ(opened.train->num_rows(), 2);
  EXPECT_EQ(row(*opened.train, 0), (std::vector<int32_t>{'h', 0xc3, 0xa9, 'l', 'l'}));
  EXPECT_EQ(opened.train->vocab_size(), 256);
  EXPECT_EQ(opened.train->tokenizer()->decode(row(*opened.train, 0)), "héll");
}

TEST(ByteTokenizer, DecodesAnyBytes) {
  const ByteTokenizer bytes;
  const std::string bad = "a\xff\xe2\x82z\xed\xa0\x80\xf0\x9f\x99\x82\xc0\xaf\xe2";
  EXPECT_EQ(bytes.decode(bytes.encode(bad)),
            "a\uFFFD\uFFFDz\uFFFD\uFFFD\uFFFD\U0001F642\uFFFD\uFFFD\uFFFD");
  const std::string good = "naïve – 日本 🙂";
  EXPECT_EQ(bytes.decode(bytes.encode(good)), good);
  EXPECT_THROW(bytes.decode(std::vector<int32_t>{256}), UserError);
  EXPECT_THROW(bytes.decode(std::vector<int32_t>{-1}), UserError);
  EXPECT_THROW(open_tokenizer("wordpiece"), UserError);
}

TEST_F(DataFiles, FolderIsOneStreamInTheOrderOfNames) {
  write("d/b.npy", npy(counting(3, 10)));
  write("d/a.npy", npy(counting(5)));
  write("d/c.npy", npy(std::vector<uint32_t>{100, 101, 102}));
  write("d/README.md", "not tokens");
  const auto opened = open_datasets({.name = (folder_ / "d").string(), .seq_length = 2});
  EXPECT_EQ(opened.train->num_rows(), 5);
  EXPECT_EQ(row(*opened.train, 1), (std::vector<int32_t>{2, 3, 4}));
  EXPECT_EQ(row(*opened.train, 2), (std::vector<int32_t>{4, 10, 11}));
  EXPECT_EQ(row(*opened.train, 3), (std::vector<int32_t>{11, 12, 100}));
  EXPECT_NE(opened.train->locate(3, 1).find("b.npy, token 2"), std::string::npos);
  EXPECT_NE(opened.train->locate(3, 2).find("c.npy, token 0"), std::string::npos);
  const auto whole = open_datasets({.name = (folder_ / "d").string(), .seq_length = 10});
  EXPECT_EQ(row(*whole.train, 0), (std::vector<int32_t>{0, 1, 2, 3, 4, 10, 11, 12, 100, 101, 102}));
}

TEST_F(DataFiles, WhatCannotBeReadIsOneSentence) {
  const std::string text = write("a.txt", "some text that is long enough");
  write("mixed/a.txt", "x");
  write("mixed/b.npy", "x");
  write("later/a.jsonl", "{}");
  write("none/a.md", "x");
  fs::create_directories(folder_ / "empty");
  fs::create_directories(folder_ / "folder.npy");
  ASSERT_EQ(::mkfifo((folder_ / "pipe.npy").c_str(), 0600), 0);
  fs::create_symlink("gone", folder_ / "dangling.npy");
  const auto in = [&](const std::string& name) { return (folder_ / name).string(); };
  const struct {
    DatasetOptions options;
    std::string expected;
  } cases[] = {
      {{.name = text, .seq_length = 4},
       "text needs a tokenizer; set dataset.tokenizer to \"bytes\""},
      {{.name = text, .tokenizer = "gpt2", .seq_length = 4},
       "tokenizer \"gpt2\" is no file or folder here; use \"bytes\""},
      {{.name = write("a.npy", npy(counting(9))), .tokenizer = "gpt2", .seq_length = 4},
       "\"gpt2\" is no file or folder here; use \"bytes\", a tokenizer.json"},
      {{.name = text, .tokenizer = "bytes", .seq_length = 29}, "has 29 tokens, but one row takes"},
      {{.name = text, .tokenizer = "bytes", .seq_length = 0}, "training.seq_length 0 must be"},
      {{.name = text, .tokenizer = "bytes", .seq_length = 4, .num_samples = 0},
       "num_samples 0 must"},
      {{.name = in("gone.npy"), .seq_length = 4}, "does not exist; use builtin:stories"},
      {{.name = in("dangling.npy"), .seq_length = 4}, "does not exist"},
      {{.name = "", .seq_length = 4}, "data set \"\" does not exist"},
      {{.name = "roneneldan/TinyStories", .seq_length = 4}, "text needs a tokenizer"},
      {{.name = "builtin:tales", .seq_length = 4}, "the built-in one is builtin:stories"},
      {{.name = "builtin:stories", .tokenizer = "bytes", .seq_length = 4}, "its own tokenizer"},
      {{.name = write("a.jsonl", "{}"), .seq_length = 4}, "text needs a tokenizer"},
      {{.name = write("a.parquet", "PAR1"), .seq_length = 4}, "text needs a tokenizer"},
      {{.name = write("a.bin", "xx"), .seq_length = 4}, "is of no kind that is read"},
      {{.name = write("e.txt", ""), .tokenizer = "bytes", .seq_length = 4}, "e.txt: is empty"},
      {{.name = in("mixed"), .seq_length = 4}, "holds both .npy and .txt files"},
      {{.name = in("later"), .seq_length = 4}, "text needs a tokenizer"},
      {{.name = in("none"), .seq_length = 4}, "holds no file of text"},
      {{.name = in("empty"), .seq_length = 4}, "holds no file of text"},
      {{.name = in("folder.npy"), .seq_length = 4}, "holds no file of text"},
      {{.name = "0.5 " + text, .seq_length = 4}, "text needs a tokenizer"},
      {{.name = "0.5 a 0.5", .seq_length = 4},
       "a mixture is a list of a positive weight and a name"},
      {{.name = "0.5 a -1 b", .seq_length = 4}, "\"-1\" is not, as in"},
      {{.name = in("pipe.npy"), .seq_length = 4}, "is not a regular file"},
      {{.name = in("a.txt/b.npy"), .seq_length = 4}, "b.npy"},
      {{.name = text, .tokenizer = "bytes", .seq_length = 20, .hold_out = true},
       "has one row of seq_length 20, so none can be held out"},
      {{.name = text,
        .tokenizer = "bytes",
        .seq_length = 4,
        .hold_out = true,
        .validation_fraction = 1},
       "dataset.validation_fraction 1 must lie between 0 and 1"},
      {{.name = text, .tokenizer = "bytes", .seq_length = 4, .validation = in("gone.txt")},
       "gone.txt\" does not exist"},
      {{.name = "builtin:stories", .seq_length = 4, .validation = text}, "needs a tokenizer"},
  };
  for (const auto& c : cases) {
    const std::string said = message([&] { open_datasets(c.options); });
    EXPECT_NE(said.find(c.expected), std::string::npos) << said << "\nexpected: " << c.expected;
  }
}

TEST_F(DataFiles, UnreadableFileSaysWhy) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const std::string path = write("a.npy", npy(counting(10)));
  fs::permissions(path, fs::perms::none);
  EXPECT_NE(
      message([&] { open_datasets({.name = path, .seq_length = 2}); }).find("Permission denied"),
      std::string::npos);
}

TEST_F(DataFiles, LastRowsAreHeldOut) {
  const std::string path = write("a.npy", npy(counting(201)));
  const auto opened = open_datasets(
      {.name = path, .seq_length = 10, .hold_out = true, .validation_fraction = 0.25});
  EXPECT_EQ(opened.train->num_rows(), 15);
  EXPECT_EQ(opened.validation->num_rows(), 5);
  EXPECT_EQ(row(*opened.train, 14).back(), 150);
  EXPECT_EQ(row(*opened.validation, 0).front(), 150);
  EXPECT_EQ(row(*opened.validation, 4).back(), 200);
  EXPECT_NE(opened.validation->locate(0, 3).find("token 153"), std::string::npos);
  EXPECT_THROW(row(*opened.train, 15), BrokenInvariant);

  const auto few = open_datasets({.name = path,
                                  .seq_length = 10,
                                  .num_samples = 4,
                                  .hold_out = true,
                                  .validation_fraction = 0.1});
  EXPECT_EQ(few.train->num_rows(), 3);
  EXPECT_EQ(few.validation->num_rows(), 1);
  ASSERT_EQ(few.notes.size(), 1u);
  EXPECT_NE(few.notes[0].find("num_samples 4 leaves 16 of the 20 rows"), std::string::npos);
}

TEST_F(DataFiles, AMixtureIsTheSameInEitherOrder) {
  const std::string tokens = write("a.npy", npy(counting(101)));
  for (const std::string& name :
       {"3 builtin:stories 1 " + tokens, "1 " + tokens + " 3 builtin:stories"}) {
    const auto opened = open_datasets({.name = name, .seq_length = 10, .num_samples = 9});
    EXPECT_EQ(opened.train->vocab_size(), open_tokenizer("builtin:stories")->vocab_size());
    EXPECT_NE(opened.train->tokenizer(), nullptr);
    EXPECT_EQ(opened.tokenizer, "builtin:stories");
    EXPECT_EQ(opened.train->num_rows(), 36);
    ASSERT_EQ(opened.notes.size(), 2u);
    EXPECT_NE(opened.notes[1].find("an epoch of the mixture is 36 rows"), std::string::npos);
  }
}

TEST_F(DataFiles, ValidationMayBeAnotherDataSet) {
  const std::string a = write("a.npy", npy(counting(21))), b = write("b.npy", npy(counting(31)));
  const auto opened =
      open_datasets({.name = a, .seq_length = 10, .hold_out = true, .validation = b});
  EXPECT_EQ(opened.train->num_rows(), 2);
  EXPECT_EQ(opened.validation->num_rows(), 3);

  const auto stories =
      open_datasets({.name = "builtin:stories", .seq_length = 16, .hold_out = true});
  EXPECT_EQ(stories.train->num_rows(), 400000);
  EXPECT_NE(row(*stories.train, 0), row(*stories.validation, 0));
  EXPECT_TRUE(stories.validation->floor().has_value());
  EXPECT_EQ(open_datasets({.name = "builtin:stories", .seq_length = 16}).validation, nullptr);
  const std::string text = write("c.txt", std::string(100, 'x'));
  EXPECT_NE(message([&] {
              open_datasets({.name = text,
                             .tokenizer = "bytes",
                             .seq_length = 10,
                             .validation = "builtin:stories"});
            }).find("its own tokenizer"),
            std::string::npos);
}

}  // namespace
}  // namespace picotron
