// Folders told by their names and by whether their state.json can be read.
#include "checkpoint/save_dir.h"

#include <algorithm>
#include <chrono>
#include <tuple>

#include "core/error.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

// Bytes and time of its files; one that vanishes meanwhile, for a run goes on, is passed over.
void measure(SavedFolder& found) {
  using std::chrono::file_clock, std::chrono::system_clock;
  std::error_code gone;
  fs::recursive_directory_iterator files(found.folder, gone);
  for (; !gone && files != fs::recursive_directory_iterator(); files.increment(gone)) {
    std::error_code ignored;
    const auto size = files->is_regular_file(ignored) ? files->file_size(ignored) : 0;
    const auto time = files->last_write_time(ignored);
    if (ignored) continue;
    found.bytes += static_cast<int64_t>(size);
    const auto seconds = std::chrono::floor<std::chrono::seconds>(file_clock::to_sys(time));
    found.written = std::max(found.written, system_clock::to_time_t(seconds));
  }
}

std::optional<SavedFolder> recognise(const fs::path& folder) {
  const std::string extension = folder.extension().string();
  const auto step = step_of(folder.stem());
  const bool aside = extension.starts_with(".old"), partial = extension == ".partial";
  std::error_code ignored;
  if (!step || !fs::is_directory(folder, ignored) || (!extension.empty() && !aside && !partial))
    return std::nullopt;
  SavedFolder found{.folder = folder, .step = *step};
  const bool has_state = fs::is_regular_file(folder / "state.json", ignored);
  if (has_state) {
    try {
      found.state = read_state(folder);
    } catch (const UserError&) {
      found.kind = FolderKind::unreadable;
    }
  }
  if (partial || !has_state) {
    found.kind = FolderKind::half_written;
  } else if (aside) {
    found.kind = FolderKind::set_aside;
  }
  measure(found);
  return found;
}

}  // namespace

std::vector<SavedFolder> look_into(const fs::path& save_dir) {
  std::error_code error;
  std::vector<SavedFolder> all;
  for (const fs::directory_entry& entry : fs::directory_iterator(save_dir, error))
    if (auto found = recognise(entry.path())) all.push_back(std::move(*found));
  if (error) {
    throw user_error("cannot look into {} ({}); give a save_dir, the folder of checkpoints",
                     save_dir.string(), error.message());
  }
  const auto place = [](const SavedFolder& found) {
    return std::tuple(found.step, !found.folder.has_extension(), found.folder);
  };
  std::sort(all.begin(), all.end(),
            [&](const auto& a, const auto& b) { return place(a) < place(b); });
  return all;
}

std::vector<fs::path> checkpoints_meant(const fs::path& path) {
  std::vector<fs::path> folders = {find_checkpoint(path)};
  if (fs::equivalent(folders.front(), path)) return folders;
  folders.clear();
  for (const SavedFolder& found : look_into(path))
    if (!found.folder.has_extension()) folders.push_back(found.folder);
  return folders;
}

Soundness check_soundness(const fs::path& checkpoint) {
  Soundness result;
  try {
    const CheckpointState state = read_state(checkpoint);
    result.files = std::ssize(state.files);
    for (const auto& [path, record] : state.files) result.bytes += record.bytes;
    for (int64_t file = 0; file < result.files; ++file)
      if (const auto damage = find_damage(checkpoint, state, file, result.files))
        result.damage.push_back(*damage);
  } catch (const UserError& error) {
    result.damage.emplace_back(error.what());
  }
  return result;
}

fs::path sound_model_folder(const fs::path& path) {
  const fs::path checkpoint = find_checkpoint(path);
  CheckpointState state = read_state(checkpoint);
  std::erase_if(state.files, [](const auto& file) { return !file.first.starts_with("model/"); });
  if (const auto damage = find_damage(checkpoint, state))
    throw user_error("{}{}", *damage, remedy_for_damage(checkpoint));
  return checkpoint / "model";
}

std::vector<SavedFolder> beyond_the_newest(const fs::path& save_dir, int64_t keep_last,
                                           bool half_written) {
  std::vector<SavedFolder> all = look_into(save_dir);
  int64_t kept = 0;
  for (auto found = all.rbegin(); found != all.rend(); ++found) {
    // Out of the list goes what stays.
    if (found->kind == FolderKind::complete
            ? kept++ < keep_last
            : found->kind != FolderKind::half_written || !half_written)
      found->folder.clear();
  }
  std::erase_if(all, [](const SavedFolder& found) { return found.folder.empty(); });
  return all;
}

void remove(const SavedFolder& found) {
  if (found.kind == FolderKind::complete) {
    remove_checkpoint(found.folder);
  } else {
    fs::remove_all(found.folder);
  }
}

}  // namespace picotron
