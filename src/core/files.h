// Files that are there whole or not at all: written under another name, flushed to the disk, then
// renamed. A checksum runs along, so that nothing is read again to know it.
//
//     step.partial  ── write, write, … ── fsync ── rename ──▶  step      (and fsync of the folder)
//
// A crash at any point leaves the old file or the new one. No LibTorch here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace picotron {

// XXH3, 128 bits (Collet, https://github.com/Cyan4973/xxHash): a running sum over bytes.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  void add(std::span<const std::byte> bytes);
  std::string hex() const;  // 32 digits, of what was added so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string checksum_of(std::string_view text);
// Of a file, read once from its beginning to its end. UserError where it cannot be read.
std::string checksum_of_file(const std::filesystem::path& file);

// A file descriptor that is closed.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// A file that gets its name when it is whole. Leaving before commit() removes it. UserError where
// the folder cannot be written to, RunError naming the file where the disk is full or fails.
class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& file);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void append(std::span<const std::byte> bytes);
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }
  // Writes over the file's first bytes, which were appended before. The checksum is not told.
  void overwrite(std::string_view beginning);
  // Lets the disk begin with what was written since the last call, waits for what it was told to
  // begin with then, and gives those pages back. So commit() finds little left to do, and a file
  // larger than memory passes through a few pages, which are used again and again: other files stay
  // in the page cache, and memory that was never touched costs more than the disk on many virtual
  // machines. append() calls it every 32 MB.
  void flush_behind();
  // Flushes and renames. The folder's list of names is the caller's to flush (sync_folder), once
  // for many files.
  void commit();

  const std::filesystem::path& path() const { return file_; }
  int64_t bytes() const { return bytes_; }
  std::string checksum() const { return checksum_.hex(); }

 private:
  std::filesystem::path file_;
  std::string partial_;
  Descriptor fd_;
  int64_t bytes_ = 0;                   // written,
  int64_t flushing_ = 0, flushed_ = 0;  // of which the disk has begun with, and has
  Checksum checksum_;
  bool committed_ = false;
};

// A small text file, written with the same care.
void write_text_file(const std::filesystem::path& file, std::string_view text);
// All of a file. UserError where it cannot be read.
std::string read_text_file(const std::filesystem::path& file);

// Flushes a folder's list of names, without which a rename may be lost when the power fails.
void sync_folder(const std::filesystem::path& folder);

// Renames `path`, if it exists, to the first free of base.1.ext, base.2.ext, … (a file), base.old1,
// base.old2, … (a folder): nothing is lost. Returns the new path, an empty one where nothing was.
std::filesystem::path set_aside(const std::filesystem::path& path);

// Where a user's programs keep what they can make again: $PICOTRON_CACHE, else
// $XDG_CACHE_HOME/picotron, else ~/.cache/picotron.
std::filesystem::path cache_folder();

}  // namespace picotron
