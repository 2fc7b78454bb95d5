// System calls, their errors, and what a crash between any two of them leaves.
#include "core/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/error.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFlushBehind = int64_t{32} << 20;

std::string hex_of(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace

// ---------------------------------------------------------------------------------- checksums

struct Checksum::State {
  XXH3_state_t xxh3;
};

Checksum::Checksum() : state_(std::make_unique<State>()) {
  XXH3_128bits_reset(&state_->xxh3);
}
Checksum::~Checksum() = default;

void Checksum::add(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&state_->xxh3, bytes.data(), bytes.size());
}

std::string Checksum::hex() const {
  return hex_of(XXH3_128bits_digest(&state_->xxh3));
}

std::string checksum_of(std::string_view text) {
  return hex_of(XXH3_128bits(text.data(), text.size()));
}

std::string checksum_of_file(const fs::path& file) {
  const Descriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> buffer(size_t{1} << 20);
  Checksum sum;
  for (;;) {
    const ssize_t count = fd.get() < 0 ? -1 : ::read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw user_error("cannot read {}: {}", file.string(), std::strerror(errno));
    if (count == 0) return sum.hex();
    sum.add(std::span(buffer).first(static_cast<size_t>(count)));
  }
}

// -------------------------------------------------------------------------------------- files

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

namespace {

[[nodiscard]] RunError failed(std::string_view action, const fs::path& file) {
  const int reason = errno;
  return run_error(
      "cannot {} {}: {}{}", action, file.string(), std::strerror(reason),
      reason == ENOSPC || reason == EDQUOT ? "; make room or choose another folder" : "");
}

}  // namespace

NewFile::NewFile(const fs::path& file)
    : file_(file),
      partial_(file.string() + ".partial"),
      fd_(::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
  if (fd_.get() >= 0) return;
  // Where it may be written is the user's choice; that the disk is full or broken is not.
  if (errno == EACCES || errno == EPERM || errno == EROFS || errno == ENOENT || errno == ENOTDIR) {
    throw user_error("cannot write {}: {}; choose a folder that exists and is yours", file.string(),
                     std::strerror(errno));
  }
  throw failed("create", file);
}

NewFile::~NewFile() {
  if (!committed_) ::unlink(partial_.c_str());
}

void NewFile::append(std::span<const std::byte> bytes) {
  checksum_.add(bytes);
  bytes_ += static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    // One call moves at most 2 GiB on Linux, and may move less: on a full disk, or by a signal.
    const ssize_t written = ::write(fd_.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw failed("write", file_);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  if (bytes_ - flushing_ >= kFlushBehind) flush_behind();
}

void NewFile::flush_behind() {
  // Best effort: where a file system cannot, fsync does it all. Errors are reported by fsync too.
  constexpr unsigned kBegin = SYNC_FILE_RANGE_WRITE;
  constexpr unsigned kWait = SYNC_FILE_RANGE_WAIT_BEFORE | kBegin | SYNC_FILE_RANGE_WAIT_AFTER;
  const int fd = fd_.get();
  ::sync_file_range(fd, flushing_, bytes_ - flushing_, kBegin);
  ::sync_file_range(fd, flushed_, flushing_ - flushed_, kWait);
  ::posix_fadvise(fd, flushed_, flushing_ - flushed_, POSIX_FADV_DONTNEED);
  flushed_ = flushing_;
  flushing_ = bytes_;
}

void NewFile::overwrite(std::string_view beginning) {
  if (::pwrite(fd_.get(), beginning.data(), beginning.size(), 0) != std::ssize(beginning))
    throw failed("write", file_);
}

void NewFile::commit() {
  if (::fsync(fd_.get()) != 0) throw failed("flush", file_);
  if (::rename(partial_.c_str(), file_.c_str()) != 0) throw failed("rename", file_);
  committed_ = true;
}

void write_text_file(const fs::path& file, std::string_view text) {
  NewFile out(file);
  out.append(text);
  out.commit();
  sync_folder(file.has_parent_path() ? file.parent_path() : fs::path("."));
}

std::string read_text_file(const fs::path& file) {
  const Descriptor fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  std::string text;
  std::array<char, 1 << 16> buffer{};
  for (;;) {
    const ssize_t count = fd.get() < 0 ? -1 : ::read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw user_error("cannot read {}: {}", file.string(), std::strerror(errno));
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(count));
  }
}

void sync_folder(const fs::path& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot flush a folder (EINVAL); there is nothing more to do on those.
  if (fd.get() < 0 || (::fsync(fd.get()) != 0 && errno != EINVAL)) {
    throw run_error("cannot flush folder {}: {}", folder.string(), std::strerror(errno));
  }
}

fs::path cache_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value == nullptr ? "" : value);
  };
  if (const fs::path own = variable("PICOTRON_CACHE"); !own.empty()) return own;
  if (const fs::path xdg = variable("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "picotron";
  const fs::path home = variable("HOME");
  return (home.empty() ? fs::temp_directory_path() : home / ".cache") / "picotron";
}

fs::path set_aside(const fs::path& path) {
  if (!fs::exists(path)) return {};
  const bool is_folder = fs::is_directory(path);
  for (int i = 1;; ++i) {
    const fs::path aside =
        path.parent_path() /
        (is_folder ? fmt::format("{}.old{}", path.filename().string(), i)
                   : fmt::format("{}.{}{}", path.stem().string(), i, path.extension().string()));
    if (fs::exists(aside)) continue;
    fs::rename(path, aside);
    return aside;
  }
}

}  // namespace picotron
