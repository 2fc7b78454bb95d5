// One repository of a hub and its part of the cache (hub/hub.h draws it): what is here, what there
// is, and how a file comes from there to here.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/files.h"
#include "core/log.h"
#include "hub/http.h"
#include "hub/hub.h"

namespace picotron {

// How far the files that come are, all together. Thread-safe.
class Progress {
 public:
  void expect(int64_t bytes) { expected_ += bytes; }
  void add(int64_t bytes);
  int64_t done() const { return done_; }  // bytes
  double seconds() const;                 // since it was made

 private:
  using Clock = std::chrono::steady_clock;
  std::atomic<int64_t> expected_ = 0, done_ = 0;
  std::mutex mutex_;
  log::ProgressLine line_;
  const Clock::time_point begin_ = Clock::now();
};

// Held by one thread of one process at a time, on one machine.
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& file);

 private:
  Descriptor fd_;
};

// Files of a repository at a revision: a branch, or the commit that it was when it was asked for.
struct RepositoryFiles {
  std::string revision;
  std::vector<std::string> files;
};

// What the hub refuses is a UserError that says what to do; no answer, a damaged file and a full
// disk are RunErrors.
class Repository {
 public:
  // kind: "models" or "datasets". `options` outlives it.
  Repository(std::string kind, std::string id, const HubOptions& options);

  const std::string& id() const { return id_; }
  std::string what() const { return kind_ == "models" ? "model" : "data set"; }

  // --- the cache
  // The snapshot of a revision, if something of it is here.
  std::optional<std::filesystem::path> snapshot(const std::string& revision) const;
  std::filesystem::path folder_of(const std::string& commit) const;
  bool is_known_absent(const std::filesystem::path& snapshot, const std::string& file) const;
  // Held while the notes below are written, which other processes may write too.
  FileLock lock_notes() const;
  void note_absent(const std::string& commit, const std::string& file) const;
  void note_commit(const std::string& revision, const std::string& commit) const;

  // --- the hub
  // The commit that a revision is, and all its files, sorted.
  RepositoryFiles list(const std::string& revision) const;
  nlohmann::json ask(const std::string& url) const;
  // Brings files of a revision, four at a time, into the cache. → the revision's commit; "" where
  // there are no files.
  std::string bring(const RepositoryFiles& wanted, Progress& progress) const;

 private:
  void require_success(const http::Response& response, const std::string& file) const;
  std::string download(const std::string& revision, const std::string& file,
                       Progress& progress) const;
  void bring_blob(const std::string& url, const std::string& file,
                  const std::filesystem::path& blob, const std::string& etag, int64_t bytes,
                  Progress& progress) const;

  std::string kind_, id_, folder_name_;
  const HubOptions& options_;
  std::filesystem::path folder_;
};

}  // namespace picotron
