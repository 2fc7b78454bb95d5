// A checkpoint's folder and its files: what is written is read again, whatever else is there is one
// sentence, and nothing is taken for complete that is not.
#include "checkpoint/checkpoint_folder.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "checkpoint/save_dir.h"
#include "core/error.h"
#include "core/files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class CheckpointFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "checkpointXXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const fs::path& file, const std::string& text) {
    fs::create_directories((folder_ / file).parent_path());
    std::ofstream(folder_ / file, std::ios::binary) << text;
  }
  // A complete checkpoint of two files.
  fs::path make_checkpoint(int64_t step);
  fs::path folder_;
};

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "(no UserError)";
}

CheckpointState some_state() {
  return {.train = {.step = 3,
                    .trained_tokens = 768,
                    .global_batch_size = 8,
                    .updates = 2,
                    .data = {.name = "größe",
                             .seq_length = 32,
                             .num_rows = 100,
                             .position = 24,
                             .seed = ~uint64_t{0},
                             .shuffle = true},
                    .loss = {.steps = 3, .mean = 0.1, .variance = 1e-300}},
          .layout = "dp 2",
          .dtype = "Float",
          .optimizer = "adamw",
          .program = "1.2.3",
          .config = {{"training", {{"seed", 7}, {"learning_rate", 0.1}}}, {"model", nullptr}},
          .files = {{"model/a", {.bytes = 3, .checksum = checksum_of("abc")}},
                    {"optimizer/b", {.bytes = 0, .checksum = checksum_of("")}}}};
}

fs::path CheckpointFolder::make_checkpoint(int64_t step) {
  const std::string name = std::to_string(step);
  write(name + "/model/a", "abc");
  write(name + "/optimizer/b", "");
  CheckpointState state = some_state();
  state.train.step = step;
  write(name + "/state.json", to_json(state));
  return folder_ / name;
}

// ------------------------------------------------------------------------------------- state.json

TEST(CheckpointState, IsReadAsItWasWritten) {
  const std::string text = to_json(some_state());
  const CheckpointState read = parse_state(text, "3/state.json");
  EXPECT_EQ(to_json(read), text);
  EXPECT_EQ(read.train.data.seed, ~uint64_t{0});
  EXPECT_EQ(read.train.loss.mean, 0.1);
  EXPECT_EQ(read.train.loss.variance, 1e-300);
  EXPECT_EQ(read.train.data.name, "größe");
  EXPECT_EQ(read.files.at("model/a").bytes, 3);
}

// The same state with something else in it, and a checksum that is right again.
std::string changed(const std::function<void(ordered_json&)>& change) {
  ordered_json root = ordered_json::parse(to_json(some_state()));
  change(root);
  root.erase("checksum");
  root["checksum"] = checksum_of(root.dump());
  return root.dump();
}

TEST(CheckpointState, EveryValueOfTheWrongKindIsNamed) {
  const ordered_json whole = ordered_json::parse(to_json(some_state())).flatten();
  int count = 0;
  for (const auto& [pointer, value] : whole.items()) {
    if (pointer.starts_with("/config/") || pointer == "/checksum") continue;
    const ordered_json::json_pointer place(pointer);
    const std::string& key = pointer;
    for (const ordered_json& wrong : {ordered_json(nullptr), ordered_json::array()}) {
      const std::string said = message_of([&] {
        parse_state(changed([&](ordered_json& root) { root[place] = wrong; }), "3/state.json");
      });
      EXPECT_TRUE(said.starts_with("3/state.json cannot be used: ")) << key << ": " << said;
      EXPECT_NE(said.find(place.back()), std::string::npos) << key << ": " << said;
    }
    const std::string missing = message_of([&] {
      parse_state(
          changed([&](ordered_json& root) { root[place.parent_pointer()].erase(place.back()); }),
          "3/state.json");
    });
    EXPECT_NE(missing.find(place.back() + " is missing"), std::string::npos) << missing;
    ++count;
  }
  EXPECT_GE(count, 22);
}

TEST(CheckpointState, NumbersOutOfTheirRangeAreRefused) {
  const std::vector<std::pair<std::string, ordered_json>> wrong = {
      {"/train/step", -1},
      {"/train/step", 1.5},
      {"/train/step", ~uint64_t{0}},
      {"/train/global_batch_size", 0},
      {"/data/seed", -1},
      {"/data/shuffle", 1},
      {"/loss/mean", "0.1"},
      {"/loss/variance", -0.5},
      {"/files/model~1a/bytes", -3},
      {"/files/model~1a/xxh3_128", "abc"},
      {"/files/model~1a/xxh3_128", std::string(32, 'G')},
      {"/format", "something else"}};
  for (const auto& [pointer, value] : wrong) {
    const std::string said = message_of([&, &pointer = pointer, &value = value] {
      parse_state(
          changed([&](ordered_json& root) { root[ordered_json::json_pointer(pointer)] = value; }),
          "3/state.json");
    });
    EXPECT_TRUE(said.starts_with("3/state.json cannot be used: ")) << pointer << ": " << said;
  }
}

TEST(CheckpointState, ANewerVersionIsNotReadOn) {
  const std::string said = message_of([] {
    parse_state(R"({"format": "picotron checkpoint", "version": 2, "program": "9.9"})", "s");
  });
  EXPECT_NE(said.find("version 2"), std::string::npos) << said;
  EXPECT_NE(said.find("9.9"), std::string::npos) << said;
  EXPECT_NE(said.find("newer picotron"), std::string::npos) << said;
}

TEST(CheckpointState, AChangedValueIsFoundByTheChecksum) {
  std::string text = to_json(some_state());
  text.replace(text.find("768"), 3, "769");
  EXPECT_NE(message_of([&] { parse_state(text, "s"); }).find("checksum"), std::string::npos);
}

TEST(CheckpointState, EveryTruncationIsASentence) {
  const std::string text = to_json(some_state());
  for (size_t size = 0; size + 2 < text.size(); size += 7) {
    const std::string said = message_of([&] { parse_state(text.substr(0, size), "s"); });
    EXPECT_NE(said.find("is not JSON from byte"), std::string::npos) << said;
  }
}

TEST(CheckpointState, AKeyTwiceAndDeepNestingAreRefused) {
  std::string text = to_json(some_state());
  text.insert(1, "\"version\": 1,");
  EXPECT_NE(message_of([&] { parse_state(text, "s"); }).find("there twice"), std::string::npos);
  const std::string deep(100'000, '[');
  EXPECT_NE(message_of([&] { parse_state(deep, "s"); }).find("too deeply"), std::string::npos);
}

TEST(CheckpointState, PathsThatLeaveTheFolderAreRefused) {
  for (const char* path : {"", "/etc/passwd", "../a", "model/../../a", "./a"}) {
    const std::string said = message_of([&] {
      parse_state(
          changed([&](ordered_json& root) { root["files"][path] = root["files"]["model/a"]; }),
          "s");
    });
    EXPECT_NE(said.find("not inside the checkpoint"), std::string::npos) << path << ": " << said;
  }
}

// ---------------------------------------------------------------------------------------- folders

TEST_F(CheckpointFolder, CompleteOnesAreListedByTheirNumber) {
  make_checkpoint(10);
  make_checkpoint(9);
  write("11/model/a", "no state.json");
  write("12.partial/state.json", "{}");
  write("3.old1/state.json", "{}");
  write("5x/state.json", "{}");
  const std::vector<CheckpointEntry> all = list_checkpoints(folder_);
  ASSERT_EQ(all.size(), 2);
  EXPECT_EQ(all[0].step, 9);
  EXPECT_EQ(all[1].folder, folder_ / "10");
  EXPECT_TRUE(list_checkpoints(folder_ / "nope").empty());
}

TEST_F(CheckpointFolder, ACheckpointOrASaveDirIsFound) {
  const fs::path nine = make_checkpoint(9), ten = make_checkpoint(10);
  EXPECT_EQ(find_checkpoint(folder_), ten);
  EXPECT_EQ(find_checkpoint(nine), nine);
  EXPECT_EQ(find_checkpoint(nine / ""), nine);
  write("11/model/a", "");
  write("empty/metrics.jsonl", "");
  const auto says = [&](const fs::path& path) {
    return message_of([&] { find_checkpoint(path); });
  };
  EXPECT_NE(says(folder_ / "11").find("is not complete"), std::string::npos);
  EXPECT_NE(says(folder_ / "empty").find("holds no complete checkpoint"), std::string::npos);
  EXPECT_NE(says(folder_ / "nope").find("is not a folder"), std::string::npos);
}

TEST_F(CheckpointFolder, DamageIsFoundAndNamed) {
  const fs::path nine = make_checkpoint(9), ten = make_checkpoint(10);
  const CheckpointState state = read_state(ten);
  EXPECT_EQ(find_damage(ten, state), std::nullopt);
  EXPECT_TRUE(check_soundness(ten).damage.empty());
  write("10/model/a", "abd");
  EXPECT_NE(find_damage(ten, state)->find("10/model/a is damaged"), std::string::npos);
  EXPECT_TRUE(find_damage(ten, state, 0, 2).has_value());  // the first of two files
  EXPECT_FALSE(find_damage(ten, state, 1, 2).has_value());
  write("10/model/a", "abcd");
  EXPECT_NE(find_damage(ten, state)->find("has 4 bytes, and 3 were written"), std::string::npos);
  fs::remove(ten / "optimizer/b");
  ASSERT_EQ(check_soundness(ten).damage.size(), 2);  // every one of them, not only the first
  EXPECT_NE(check_soundness(ten).damage[1].find("optimizer/b is missing"), std::string::npos);
  EXPECT_NE(remedy_for_damage(ten).find(nine.string()), std::string::npos);
  EXPECT_NE(remedy_for_damage(nine).find("no complete checkpoint is before"), std::string::npos);
  EXPECT_EQ(remedy_for_damage(folder_ / "model"), "");
  EXPECT_NE(message_of([&] { sound_model_folder(ten); }).find(nine.string()), std::string::npos);
  EXPECT_EQ(sound_model_folder(nine), nine / "model");
}

TEST_F(CheckpointFolder, PruningKeepsTheNewest) {
  for (const int64_t step : {2, 9, 10}) make_checkpoint(step);
  write("11.partial/model/a", "");
  EXPECT_EQ(prune_checkpoints(folder_, 5).size(), 0);
  EXPECT_EQ(prune_checkpoints(folder_, 1), (std::vector{folder_ / "2", folder_ / "9"}));
  EXPECT_FALSE(fs::exists(folder_ / "2") || fs::exists(folder_ / "2.partial"));
  EXPECT_TRUE(fs::exists(folder_ / "10/state.json") && fs::exists(folder_ / "11.partial"));
}

TEST_F(CheckpointFolder, ASaveDirIsTold) {
  for (const int64_t step : {9, 10, 11}) make_checkpoint(step);
  write("11/state.json", "{}");
  write("12.partial/model/a", "abcd");
  set_aside(make_checkpoint(3));
  const std::vector<SavedFolder> all = look_into(folder_);
  std::vector<std::string> names;
  for (const SavedFolder& found : all) names.push_back(found.folder.filename());
  EXPECT_EQ(names, (std::vector<std::string>{"3.old1", "9", "10", "11", "12.partial"}));
  EXPECT_EQ(all[0].kind, FolderKind::set_aside);
  EXPECT_EQ(all[0].state->train.step, 3);
  EXPECT_EQ(all[1].kind, FolderKind::complete);
  EXPECT_EQ(all[3].kind, FolderKind::unreadable);
  EXPECT_EQ(all[4].kind, FolderKind::half_written);
  EXPECT_EQ(all[4].bytes, 4);
  EXPECT_EQ(checkpoints_meant(folder_).size(), 3);
  EXPECT_EQ(checkpoints_meant(folder_ / "9").size(), 1);

  // The one that cannot be read is not what is kept instead of a good one, and stays.
  const auto beyond = beyond_the_newest(folder_, 1, false);
  ASSERT_EQ(beyond.size(), 1);
  EXPECT_EQ(beyond[0].folder, folder_ / "9");
  EXPECT_EQ(beyond_the_newest(folder_, 1, true).size(), 2);
  for (const SavedFolder& found : beyond_the_newest(folder_, 1, true)) remove(found);
  EXPECT_EQ(look_into(folder_).size(), 3);
  EXPECT_NE(message_of([&] { look_into(folder_ / "nope"); }).find("nope"), std::string::npos);
}

// ------------------------------------------------------------------------------------------ files

TEST_F(CheckpointFolder, NothingIsLostWhenItIsSetAside) {
  write("3/a", "1");
  write("metrics.jsonl", "1");
  EXPECT_EQ(set_aside(folder_ / "nope"), fs::path());
  EXPECT_EQ(set_aside(folder_ / "3"), folder_ / "3.old1");
  EXPECT_EQ(set_aside(folder_ / "metrics.jsonl"), folder_ / "metrics.1.jsonl");
  write("3/a", "2");
  EXPECT_EQ(set_aside(folder_ / "3"), folder_ / "3.old2");
  EXPECT_EQ(read_text_file(folder_ / "3.old1/a"), "1");
  EXPECT_EQ(read_text_file(folder_ / "3.old2/a"), "2");
}

TEST_F(CheckpointFolder, ChecksumsAreThoseOfTheSpecification) {
  EXPECT_EQ(checksum_of(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(checksum_of("abc"), "06b05ab6733a618578af5f94892f3950");
  // In pieces, and beyond the buffer with which a file is read.
  std::string text(3'000'001, 'x');
  text[2'000'000] = 'y';
  Checksum sum;
  sum.add(std::as_bytes(std::span(text).first(1'000)));
  sum.add(std::as_bytes(std::span(text).subspan(1'000)));
  EXPECT_EQ(sum.hex(), checksum_of(text));
  write("file", text);
  EXPECT_EQ(checksum_of_file(folder_ / "file"), checksum_of(text));
  EXPECT_NE(message_of([&] { checksum_of_file(folder_ / "nope"); }).find("nope"),
            std::string::npos);
}

TEST_F(CheckpointFolder, ANewFileIsThereWholeOrNotAtAll) {
  write("file", "old");
  {
    NewFile file(folder_ / "file");
    file.append("new and");
    EXPECT_EQ(read_text_file(folder_ / "file"), "old");
  }
  EXPECT_EQ(read_text_file(folder_ / "file"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);  // nothing is left behind
  NewFile file(folder_ / "file");
  file.append("new and ");
  file.append("whole");
  file.commit();
  EXPECT_EQ(read_text_file(folder_ / "file"), "new and whole");
  EXPECT_EQ(file.bytes(), 13);
  EXPECT_EQ(file.checksum(), checksum_of("new and whole"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  EXPECT_NE(message_of([&] { NewFile(folder_ / "nope/file"); }).find("nope/file"),
            std::string::npos);
}

}  // namespace
}  // namespace picotron
