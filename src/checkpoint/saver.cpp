// The order in which a checkpoint comes into being, in this thread or in another.
#include "checkpoint/saver.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "core/error.h"
#include "core/files.h"
#include "dist/channel.h"
#include "dist/collectives.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// A file that one machine has written may take a moment to be seen by another.
constexpr std::chrono::seconds kSeen{10};

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "its machine";
}

// Of what a rank saves, each element once.
std::vector<LocalPart> counted(std::vector<LocalPart> parts) {
  std::erase_if(parts, [](const LocalPart& part) { return !part.parameter->counts_in_norm; });
  return parts;
}

}  // namespace

CheckpointSaver::CheckpointSaver(SaverOptions options, Group world, TensorShapes shapes,
                                 std::vector<ShardedTensors> tensors,
                                 const std::vector<LocalPart>& parts)
    : options_(std::move(options)),
      world_(std::move(world)),
      shapes_(std::move(shapes)),
      tensors_(std::move(tensors)),
      parts_(counted(parts)),
      writer_(shapes_, parts_, world_) {
  check_shared_folder();
  if (!options_.async) return;
  int64_t numel = 0;
  for (const LocalPart& part : parts_) numel += part.size();
  // Filled now: pages that are touched for the first time would make the first pause longer.
  for (const ShardedTensors& tensors_of_kind : tensors_)
    copies_.push_back(at::empty({numel}, tensors_of_kind.held).zero_());
}

CheckpointSaver::~CheckpointSaver() {
  if (!thread_.joinable()) return;
  if (world_.channel != nullptr) world_.channel->close();
  thread_.join();
}

void CheckpointSaver::check_shared_folder() const {
  // A name of its own each time: what another run has left proves nothing.
  const at::Tensor number = at::full({1}, Clock::now().time_since_epoch().count(), at::kLong);
  broadcast(number, 0, world_).wait();
  const fs::path file = options_.save_dir / fmt::format(".seen-{}", number.item<int64_t>());
  on_rank(0, world_, [&] {
    fs::create_directories(options_.save_dir);
    write_text_file(file, "");
  });
  const auto deadline = Clock::now() + kSeen;
  std::error_code ignored;
  while (!fs::exists(file, ignored) && Clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  agree(fs::exists(file, ignored)
            ? ""
            : fmt::format("rank {} on {} does not see {}, which rank 0 has written: checkpoints "
                          "need a folder that all machines share; set checkpoint.save_dir to one",
                          world_.rank, host_name(), file.string()),
        world_);
  if (world_.rank == 0) fs::remove(file, ignored);
}

fs::path CheckpointSaver::partial(int64_t step) const {
  return options_.save_dir / fmt::format("{}.partial", step);
}

// The same tensors as they are now, for a thread that writes them later.
std::vector<ShardedTensors> CheckpointSaver::copies() {
  std::vector<ShardedTensors> result = tensors_;
  for (size_t i = 0; i < result.size(); ++i) {
    std::map<const Parameter*, std::pair<int64_t, int64_t>> places;  // begin of its part, offset
    int64_t offset = 0;
    for (const LocalPart& part : parts_) {
      copies_[i].narrow(0, offset, part.size()).copy_(tensors_[i].values(part));
      places[part.parameter] = {part.begin, offset};
      offset += part.size();
    }
    result[i].values = [copy = copies_[i], places](const LocalPart& part) {
      const auto& [begin, at] = places.at(part.parameter);
      return copy.narrow(0, at + part.begin - begin, part.size());
    };
  }
  return result;
}

void CheckpointSaver::save(const CheckpointState& state) {
  const auto begin = Clock::now();
  finish();
  SaveReport report{.step = state.train.step, .wait_seconds = seconds_since(begin)};
  if (!options_.async) {
    write(state, tensors_, report);
    const std::lock_guard lock(mutex_);
    reports_.back().pause_seconds = seconds_since(begin);
    return;
  }
  std::vector<ShardedTensors> copied = copies();
  report.pause_seconds = seconds_since(begin);
  thread_ = std::thread([this, state, tensors = std::move(copied), report] {
    try {
      write(state, tensors, report);
    } catch (const std::exception& error) {
      const std::lock_guard lock(mutex_);
      failure_ = plain_sentence(error.what());
    }
  });
}

void CheckpointSaver::finish() {
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw RunError(failure_);
}

std::vector<SaveReport> CheckpointSaver::take_reports() {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw RunError(failure_);
  return std::exchange(reports_, {});
}

void CheckpointSaver::write(const CheckpointState& state,
                            const std::vector<ShardedTensors>& tensors, SaveReport report) {
  const auto begin = Clock::now();
  const fs::path folder = partial(state.train.step);
  try {
    on_rank(0, world_, [&] {
      fs::remove_all(folder);  // left by a run that was killed
      for (const ShardedTensors& kind : tensors) fs::create_directories(folder / kind.folder);
    });
    CheckpointState complete = state;
    complete.files = writer_.write(folder, tensors);
    on_rank(0, world_, [&] { publish(std::move(complete), tensors, report); });
  } catch (const RunError&) {
    std::error_code ignored;
    if (world_.rank == 0) fs::remove_all(folder, ignored);
    throw;
  }
  report.write_seconds = seconds_since(begin);
  const std::lock_guard lock(mutex_);
  reports_.push_back(std::move(report));
}

// On rank 0, when every other file is on the disk.
void CheckpointSaver::publish(CheckpointState state, const std::vector<ShardedTensors>& tensors,
                              SaveReport& report) const {
  const fs::path folder = partial(state.train.step);
  const auto write_text = [&](const std::string& path, const std::string& text) {
    NewFile file(folder / path);
    file.append(text);
    file.commit();
    state.files[path] = {file.bytes(), file.checksum()};
  };
  for (const ShardedTensors& kind : tensors)
    write_text(kind.folder + "/model.safetensors.index.json", writer_.index(kind));
  for (const auto& [name, text] : options_.model_files)
    write_text(tensors.front().folder + "/" + name, text);
  for (const ShardedTensors& kind : tensors) {
    // Up to the checkpoint's folder: each list of names that has changed.
    for (fs::path list = folder / kind.folder; list != folder; list = list.parent_path())
      sync_folder(list);
  }
  write_text_file(folder / "state.json", to_json(state));
  report.folder = options_.save_dir / fmt::format("{}", state.train.step);
  for (const auto& [path, record] : state.files) report.bytes += record.bytes;
  set_aside(report.folder);
  fs::rename(folder, report.folder);
  sync_folder(options_.save_dir);
  write_text_file(options_.save_dir / "latest", fmt::format("{}\n", state.train.step));
  if (options_.keep_last > 0)
    report.removed = prune_checkpoints(options_.save_dir, options_.keep_last);
}

}  // namespace picotron
