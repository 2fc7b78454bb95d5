// A checkpoint's state.json. Its checksum covers the rest of it, which hardly any change survives;
// so the text is read twice, as it is and, where it is a JSON object, with the checksum mended.
#include <cmath>

#include "checkpoint/checkpoint_folder.h"
#include "core/files.h"
#include "support.h"

namespace picotron::fuzz {
namespace {

namespace fs = std::filesystem;

void look_at(const CheckpointState& state) {
  const TrainState& train = state.train;
  for (const int64_t count :
       {train.step, train.trained_tokens, train.updates, train.data.seq_length, train.data.num_rows,
        train.data.position, train.loss.steps})
    require(count >= 0, "a count is not negative");
  require(train.global_batch_size >= 1, "a step has a sequence");
  require(std::isfinite(train.loss.mean) && std::isfinite(train.loss.variance),
          "the loss's mean and variance are numbers");
  require(train.loss.variance >= 0, "a variance is not negative");
  require(state.config.is_object(), "the config is an object");
  for (const auto& [path, record] : state.files) {
    require(record.bytes >= 0 && record.checksum.size() == 32, "a record has a size and a sum");
    const fs::path inside = ("checkpoint" / fs::path(path)).lexically_normal();
    require(*inside.begin() == "checkpoint", "a file is inside the checkpoint");
  }
  const std::string written = to_json(state);
  require(to_json(parse_state(written, "state.json")) == written,
          "what is written reads back as the same");
}

void look_at_text(std::string_view text) {
  std::optional<CheckpointState> state;
  if (takes([&] { state = parse_state(text, "state.json"); })) look_at(*state);
}

std::string sound_state() {
  const auto record = FileRecord{.bytes = 10, .checksum = "0123456789abcdef0123456789abcdef"};
  return to_json({.train = {.step = 2,
                            .trained_tokens = 256,
                            .global_batch_size = 4,
                            .updates = 2,
                            .data = {.name = "stories", .seq_length = 32, .num_rows = 99},
                            .loss = {.steps = 2, .mean = 4.25, .variance = 0.5}},
                  .layout = "dp 1",
                  .dtype = "float32",
                  .optimizer = "adamw",
                  .program = "0.1.0",
                  .config = {{"training", {{"seed", 42}}}},
                  .files = {{"model/config.json", record}}});
}

}  // namespace
}  // namespace picotron::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace fuzz = picotron::fuzz;
  const std::string_view text = fuzz::text_of(data, size);
  fuzz::look_at_text(text);
  auto root = nlohmann::ordered_json::parse(text, nullptr, false);
  if (root.is_object()) {
    root.erase("checksum");
    root["checksum"] = picotron::checksum_of(root.dump());
    fuzz::look_at_text(root.dump());
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  static const std::string sound = picotron::fuzz::sound_state();
  picotron::fuzz::begin_at(sound, data, size, max_size, seed);
  return picotron::fuzz::mutate_words(data, size, max_size, seed);
}
