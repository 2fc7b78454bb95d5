// What is written is read again, is the same every time, and is there whole or not at all.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "checkpoint/safetensors.h"
#include "core/error.h"
#include "core/files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

class SafetensorsWriter : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "safetensorsXXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string bytes_of(const fs::path& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  size_t files_here() {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }
  fs::path folder_;
};

const std::vector<TensorHeader> kTensors = {
    {"layers.10.weight", StoredType::BF16, {3, 5}},
    {"bias", StoredType::F32, {7}},
    {"名", StoredType::F64, {1}},
    {"scalar", StoredType::F32, {}},
    {"empty", StoredType::BF16, {0, 4}},
    {"flag", StoredType::BOOL, {1}},
};

// Bytes that follow from the name alone, so that a tensor in another's place is seen.
std::vector<std::byte> content(const TensorHeader& tensor) {
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes()));
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(static_cast<size_t>(tensor.name[0]) + 3 * i);
  }
  return bytes;
}

TensorSource source(std::vector<std::byte>& buffer) {
  return [&buffer](const TensorHeader& tensor) -> std::span<const std::byte> {
    buffer = content(tensor);
    return buffer;
  };
}

TEST_F(SafetensorsWriter, WrittenIsReadAgain) {
  std::vector<std::byte> buffer;
  const fs::path file = folder_ / "model.safetensors";
  write_safetensors(file, kTensors, {{"format", "pt"}}, source(buffer));
  EXPECT_EQ(files_here(), 1U) << "nothing is left beside it";
  const SafetensorsFile read(file);
  EXPECT_EQ(read.metadata().at("format"), "pt");
  ASSERT_EQ(read.tensors().size(), kTensors.size());
  for (const TensorHeader& tensor : kTensors) {
    const StoredTensor& stored = read.tensors().at(tensor.name);
    EXPECT_EQ(stored.type, tensor.type) << tensor.name;
    EXPECT_EQ(stored.shape, tensor.shape) << tensor.name;
    const std::vector<std::byte> expected = content(tensor);
    EXPECT_TRUE(
        std::equal(stored.bytes.begin(), stored.bytes.end(), expected.begin(), expected.end()))
        << tensor.name;
    const auto address = reinterpret_cast<uintptr_t>(stored.bytes.data());
    EXPECT_EQ(address % static_cast<uintptr_t>(stored_type_bits(tensor.type) / 8), 0U)
        << tensor.name << " is not aligned";
  }
}

TEST_F(SafetensorsWriter, TheSameTensorsGiveTheSameBytes) {
  std::vector<std::byte> buffer;
  write_safetensors(folder_ / "a", kTensors, {}, source(buffer));
  std::vector<TensorHeader> reversed(kTensors.rbegin(), kTensors.rend());
  write_safetensors(folder_ / "b", reversed, {}, source(buffer));
  EXPECT_EQ(bytes_of(folder_ / "a"), bytes_of(folder_ / "b"));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes_of(folder_ / "a").data(), 8);
  EXPECT_EQ(header_bytes % 8, 0U);
}

TEST_F(SafetensorsWriter, AFullDiskLeavesTheOldFile) {
  const fs::path file = folder_ / "model.safetensors";
  write_text_file(file, "old");
  // A limit on the size of files fails a write in its middle, as a full disk does.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 100'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  std::vector<std::byte> buffer;
  try {
    write_safetensors(file, {{"large", StoredType::U8, {1'000'000}}}, {}, source(buffer));
  } catch (const RunError& error) {
    message = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_NE(message.find(file.string()), std::string::npos) << message;
  EXPECT_EQ(bytes_of(file), "old");
  EXPECT_EQ(files_here(), 1U) << "the half-written file is gone";
}

TEST_F(SafetensorsWriter, ASourceThatFailsLeavesTheOldFile) {
  const fs::path file = folder_ / "model.safetensors";
  write_text_file(file, "old");
  const TensorSource failing = [](const TensorHeader&) -> std::span<const std::byte> {
    throw RunError("no more");
  };
  EXPECT_THROW(write_safetensors(file, kTensors, {}, failing), RunError);
  const std::vector<std::byte> short_bytes(1);
  const TensorSource wrong = [&](const TensorHeader&) { return std::span(short_bytes); };
  EXPECT_THROW(write_safetensors(file, kTensors, {}, wrong), BrokenInvariant);
  EXPECT_EQ(bytes_of(file), "old");
  EXPECT_EQ(files_here(), 1U);
}

TEST_F(SafetensorsWriter, AFolderThatIsNotThereIsTheUsersError) {
  const fs::path file = folder_ / "nowhere" / "model.safetensors";
  try {
    write_text_file(file, "x");
    ADD_FAILURE();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find(file.string()), std::string::npos) << error.what();
  }
}

TEST_F(SafetensorsWriter, NamesAreGivenOnce) {
  std::vector<std::byte> buffer;
  const TensorHeader tensor{"a", StoredType::U8, {1}};
  EXPECT_THROW(write_safetensors(folder_ / "x", {tensor, tensor}, {}, source(buffer)),
               BrokenInvariant);
  EXPECT_EQ(files_here(), 0U);
}

}  // namespace
}  // namespace picotron
