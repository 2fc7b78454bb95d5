// Files as the format allows them, and hostile ones: each of those is one UserError that names the
// file, within milliseconds, whatever it claims about its size.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "safetensorsXXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }
  std::string message_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const UserError& error) {
      return error.what();
    }
    return "(no UserError)";
  }
  fs::path folder_;
};

std::string length_prefix(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

// A file with this header and so many bytes of data.
std::string file_of(const std::string& header, size_t data_bytes) {
  std::string bytes = length_prefix(header.size()) + header;
  for (size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets +
         "]}";
}

TEST_F(Safetensors, ReadsWhatTheFormatAllows) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"größe.重み":)" + entry("F32", "2,1", "0,8") +
      R"(,"scalar":)" + entry("BF16", "", "8,10") + R"(,"empty":)" + entry("F64", "0,5", "10,10") +
      R"(,"four bits":)" + entry("F4", "4", "10,12") + "}   ";  // padded, and not to 8 bytes
  const SafetensorsFile file(write("good.safetensors", file_of(header, 12)));
  ASSERT_EQ(file.tensors().size(), 4U);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const StoredTensor& unicode = file.tensors().at("größe.重み");
  EXPECT_EQ(unicode.type, StoredType::F32);
  EXPECT_EQ(unicode.shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(unicode.bytes.size(), 8U);
  EXPECT_EQ(unicode.bytes[3], std::byte{3});
  EXPECT_TRUE(file.tensors().at("scalar").shape.empty());
  EXPECT_EQ(file.tensors().at("scalar").bytes[0], std::byte{8});
  EXPECT_TRUE(file.tensors().at("empty").bytes.empty());
  EXPECT_TRUE(SafetensorsFile(write("none.safetensors", file_of("{}", 0))).tensors().empty());
}

TEST_F(Safetensors, TheMappingOutlivesCopiesOfTheFileObject) {
  const fs::path path =
      write("m.safetensors", file_of("{\"a\":" + entry("U8", "3", "0,3") + "}", 3));
  std::vector<SafetensorsFile> files;
  files.emplace_back(path);
  const SafetensorsFile copy = files.back();
  files.clear();
  EXPECT_EQ(copy.tensors().at("a").bytes[2], std::byte{2});
}

struct Hostile {
  const char* name;
  std::string bytes;
  const char* says;
};

TEST_F(Safetensors, HostileFilesAreRefused) {
  const std::string good = entry("F32", "2", "0,8");
  const auto one = [](const std::string& tensor) { return "{\"a\":" + tensor + "}"; };
  const auto two = [](const std::string& a, const std::string& b) {
    return "{\"a\":" + a + ",\"b\":" + b + "}";
  };
  std::string many_dimensions = "1";
  for (int i = 0; i < 100; ++i) many_dimensions += ",1";
  const std::vector<Hostile> cases = {
      {"empty file", "", "0 bytes long"},
      {"no whole length", std::string(7, '\0'), "7 bytes long"},
      {"length alone", length_prefix(100), "100 bytes long"},
      {"length 2^63", length_prefix(uint64_t{1} << 63) + "{}", "above the limit"},
      {"length 2^64-1", length_prefix(~uint64_t{0}) + "{}", "above the limit"},
      {"length that wraps", length_prefix(~uint64_t{0} - 7) + "{}", "above the limit"},
      {"length beyond the file", length_prefix(50'000'000) + "{}", "2 bytes follow"},
      {"length zero", file_of("", 8), "does not begin with {"},
      {"text", "version https://git-lfs.github.com/spec/v1\n", "above the limit"},
      {"not JSON", file_of("{\"a\": oops}", 0), "not JSON from byte"},
      {"half a header", file_of("{\"a\":{\"dtype\":\"F32\"", 0), "not JSON from byte"},
      {"two values", file_of("{} {}", 0), "not JSON from byte"},
      {"a NUL and anything", file_of(std::string("{}\0 hidden", 10), 0), "byte 3 is 0"},
      {"a name that commands the terminal", file_of(R"({"\u001b[2J\n":7})", 0),
       R"("\u001b[2J\u000a" is not an object)"},
      {"not UTF-8", file_of("{\"\xff\xfe\":" + good + "}", 8), "not JSON from byte"},
      {"a list", file_of("[1, 2]", 0), "does not begin with {"},
      {"space before", file_of(" {}", 0), "does not begin with {"},
      {"nested", file_of("{\"a\":" + std::string(100'000, '['), 0), "nested too deeply"},
      {"number too large", file_of(one(entry("F32", "1e999", "0,8")), 8), "not JSON"},
      {"entry is a number", file_of(one("7"), 8), "not an object"},
      {"no dtype", file_of(one(R"({"shape":[2],"data_offsets":[0,8]})"), 8), "no \"dtype\""},
      {"no shape", file_of(one(R"({"dtype":"F32","data_offsets":[0,8]})"), 8), "\"shape\""},
      {"no offsets", file_of(one(R"({"dtype":"F32","shape":[2]})"), 8), "\"data_offsets\""},
      {"unknown dtype", file_of(one(entry("F33", "2", "0,8")), 8), "unknown dtype \"F33\""},
      {"dtype in lower case", file_of(one(entry("f32", "2", "0,8")), 8), "unknown dtype"},
      {"negative shape", file_of(one(entry("F32", "-2", "0,8")), 8), "holds -2"},
      {"fractional shape", file_of(one(entry("F32", "2.0", "0,8")), 8), "holds 2.0"},
      {"textual shape", file_of(one(entry("F32", "\"2\"", "0,8")), 8), "holds \"2\""},
      {"shape 2^63", file_of(one(entry("F32", "9223372036854775808", "0,8")), 8), "holds 922"},
      {"product overflows to 0", file_of(one(entry("U8", "4294967296,4294967296", "0,0")), 0),
       "does not fill"},
      {"bytes overflow to 8", file_of(one(entry("F64", "2305843009213693953", "0,8")), 8),
       "does not fill"},
      {"too many dimensions", file_of(one(entry("U8", many_dimensions, "0,1")), 1),
       "101 dimensions"},
      {"shape too small", file_of(one(entry("F32", "1", "0,8")), 8), "does not fill its 8 bytes"},
      {"shape too large", file_of(one(entry("F32", "3", "0,8")), 8), "does not fill its 8 bytes"},
      {"half a byte", file_of(one(entry("F4", "3", "0,1")), 1), "does not fill"},
      {"negative offset", file_of(one(entry("F32", "2", "-8,0")), 8), "holds -8"},
      {"offsets reversed", file_of(one(entry("F32", "2", "8,0")), 8), "a begin and an end"},
      {"three offsets", file_of(one(entry("F32", "2", "0,8,8")), 8), "a begin and an end"},
      {"offset beyond the data", file_of(one(entry("F32", "2", "0,8")), 7), "7 bytes of data"},
      {"offset near 2^63",
       file_of(one(entry("F32", "2", "9223372036854775799,9223372036854775807")), 8),
       "8 bytes of data"},
      {"overlap", file_of(two(good, entry("F32", "2", "4,12")), 12), "begins at byte 4, inside"},
      {"same bytes twice", file_of(two(good, good), 8), "begins at byte 0, inside"},
      {"hole between", file_of(two(good, entry("F32", "1", "12,16")), 16), "begins at byte 12"},
      {"hole at the front", file_of(one(entry("F32", "2", "8,16")), 16), "begins at byte 8"},
      {"bytes after", file_of(one(good), 9), "1 bytes follow the last"},
      {"data without tensors", file_of("{}", 4), "4 bytes follow the last"},
      {"name twice", file_of("{\"a\":" + good + ",\"a\":" + good + "}", 8), "\"a\" is there twice"},
      {"dtype twice",
       file_of(one(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"), 8),
       "\"dtype\" is there twice"},
      {"metadata is a list", file_of(R"({"__metadata__":[]})", 0), "__metadata__ is not"},
      {"metadata holds a number", file_of(R"({"__metadata__":{"a":1}})", 0), "not a string"},
  };
  for (const Hostile& hostile : cases) {
    const fs::path path = write("hostile.safetensors", hostile.bytes);
    const auto begin = std::chrono::steady_clock::now();
    const std::string message = message_of([&] { SafetensorsFile{path}; });
    const auto took = std::chrono::steady_clock::now() - begin;
    EXPECT_NE(message.find(hostile.says), std::string::npos) << hostile.name << ": " << message;
    EXPECT_NE(message.find(path.string()), std::string::npos) << hostile.name << ": " << message;
    EXPECT_LT(message.size(), 400U) << hostile.name << ": " << message;
    EXPECT_LT(took, std::chrono::milliseconds(200)) << hostile.name;
  }
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = file_of(
      "{\"a\":" + entry("F32", "2", "0,8") + ",\"b\":" + entry("I8", "3", "8,11") + "}", 11);
  for (size_t length = 0; length < whole.size(); ++length) {
    const fs::path path = write("cut.safetensors", whole.substr(0, length));
    EXPECT_THROW(SafetensorsFile{path}, UserError) << length;
  }
  EXPECT_NO_THROW(SafetensorsFile{write("whole.safetensors", whole)});
}

TEST_F(Safetensors, WhatIsNotAFileIsRefused) {
  const std::string absent = (folder_ / "absent.safetensors").string();
  EXPECT_NE(message_of([&] { SafetensorsFile{absent}; }).find(absent), std::string::npos);
  EXPECT_NE(message_of([&] { SafetensorsFile{folder_}; }).find("is not a file"), std::string::npos);
}

TEST_F(Safetensors, FoldersWithAnIndex) {
  write("model-00001-of-00002.safetensors", file_of("{\"a\":" + entry("U8", "2", "0,2") + "}", 2));
  write("model-00002-of-00002.safetensors", file_of("{\"b\":" + entry("U8", "3", "0,3") + "}", 3));
  write("model.safetensors.index.json",
        R"({"metadata":{"total_size":5},"weight_map":{"a":"model-00001-of-00002.safetensors",
            "b":"model-00002-of-00002.safetensors"}})");
  const SafetensorsFolder folder(folder_);
  EXPECT_EQ(folder.tensors().size(), 2U);
  EXPECT_EQ(folder.tensors().at("b").bytes[2], std::byte{2});
  EXPECT_EQ(folder.file_of("b").filename(), "model-00002-of-00002.safetensors");
}

TEST_F(Safetensors, LyingIndexesAreRefused) {
  const fs::path empty = folder_ / "empty";
  fs::create_directory(empty);
  EXPECT_FALSE(SafetensorsFolder::has_weights(empty));
  EXPECT_NE(message_of([&] { SafetensorsFolder{empty}; }).find(empty.string()), std::string::npos);
  const fs::path inside = folder_ / "model";
  fs::create_directory(inside);
  const std::string a = file_of("{\"a\":" + entry("U8", "2", "0,2") + "}", 2);
  write("x.safetensors", a);
  write("model/x.safetensors", a);
  const std::string outside = (folder_ / "x.safetensors").string();
  const std::vector<std::pair<std::string, const char*>> cases = {
      {R"({"weight_map":{"a":"gone.safetensors"}})", "gone.safetensors, which is not there"},
      {R"({"weight_map":{"b":"x.safetensors"}})", "\"b\" in"},
      {R"({"weight_map":{"a":"../x.safetensors"}})", "\"../x.safetensors\""},
      {R"({"weight_map":{"a":"./x.safetensors"}})", "\"./x.safetensors\""},
      {R"({"weight_map":{"a":")" + outside + R"("}})", "not the name of a file beside it"},
      {R"({"weight_map":{"a":".."}})", "\"..\""},
      {R"({"weight_map":{"a":""}})", "\"\""},
      {R"({"weight_map":{"a":"x.safetensors\u0000y"}})", "not the name of a file beside it"},
      {R"({"weight_map":{"a":7}})", "in 7"},
      {R"({"weight_map":[]})", "\"weight_map\""},
      {R"({"a":"x.safetensors"})", "\"weight_map\""},
      {R"([1,2,3,4,5])", "\"weight_map\""},
      {R"({"weight_map":)", "not JSON from byte"},
      {R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})", "there twice"},
      {std::string("{\"weight_map\":{\"a\":\"x.safetensors\"}}\0 hidden", 44), "byte 37 is 0"},
  };
  for (const auto& [index, says] : cases) {
    write("model/model.safetensors.index.json", index);
    const std::string message = message_of([&] { SafetensorsFolder{inside}; });
    EXPECT_NE(message.find(says), std::string::npos) << index << ": " << message;
    EXPECT_NE(message.find("model.safetensors.index.json"), std::string::npos) << message;
  }
  fs::resize_file(inside / "model.safetensors.index.json", 5'000'000'000);
  EXPECT_NE(message_of([&] { SafetensorsFolder{inside}; }).find("5000000000 bytes long, above"),
            std::string::npos);
  write("model/x.safetensors", a + "more");
  write("model/model.safetensors.index.json", R"({"weight_map":{"a":"x.safetensors"}})");
  EXPECT_NE(message_of([&] { SafetensorsFolder{inside}; }).find("model/x.safetensors"),
            std::string::npos);
}

}  // namespace
}  // namespace picotron
