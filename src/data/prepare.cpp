// A reader, threads that tokenize, and a writer that takes their results in order.
#include "data/prepare.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "data/documents.h"
#include "data/token_files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr int64_t kFormat = 1;
constexpr size_t kBatchBytes = size_t{1} << 20;  // of text that a thread takes at once

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// ------------------------------------------------------------------------ what decides the tokens

constexpr int64_t kPiece = int64_t{1} << 20, kPieces = 256;

// A sum over a file's content: all of it, or `pieces` of 1 MiB spread over it evenly, the first and
// the last included.
std::string content_of(const fs::path& file, int64_t pieces = INT64_MAX) {
  const auto size = static_cast<int64_t>(fs::file_size(file));
  if (size / kPiece <= pieces) return checksum_of_file(file);
  const MappedFile mapped(file);
  Checksum sum;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = i + 1 < pieces ? (size - kPiece) / (pieces - 1) * i : size - kPiece;
    sum.add(mapped.bytes().subspan(static_cast<size_t>(begin), kPiece));
  }
  return sum.hex();
}

// The first keys of index.json: same text, same tokens.
ordered_json recipe_of(const PrepareOptions& options) {
  const auto tokenizer = open_tokenizer(options.tokenizer);
  ordered_json files = ordered_json::array();
  int64_t bytes = 0;
  for (const fs::path& file : options.files) bytes += static_cast<int64_t>(fs::file_size(file));
  const int64_t pieces = bytes <= kPieces * kPiece
                             ? INT64_MAX
                             : std::max<int64_t>(2, kPieces / std::ssize(options.files));
  for (const fs::path& file : options.files) {
    files.push_back({{"name", file.filename().string()},
                     {"bytes", fs::file_size(file)},
                     {"content", content_of(file, pieces)}});
  }
  Checksum content;
  for (const auto& [name, file] : files_of_tokenizer(options.tokenizer)) {
    const std::string sum = content_of(file);
    content.add(std::as_bytes(std::span(sum)));
  }
  ordered_json recipe = {{"format", kFormat}, {"complete", false}, {"dataset", options.dataset}};
  recipe["files"] = files;
  recipe["text_column"] = options.text_column;
  recipe["tokenizer"] = options.tokenizer;
  recipe["tokenizer_content"] = content.hex();
  recipe["vocab_size"] = tokenizer->vocab_size();
  recipe["eos"] = eos_of(*tokenizer, options.tokenizer, options.eos_token);
  recipe["num_samples"] =
      options.num_samples ? ordered_json(*options.num_samples) : ordered_json(nullptr);
  recipe["shard_tokens"] = options.shard_tokens;
  return recipe;
}

// Of a recipe's keys: names may differ, contents may not.
bool decides_tokens(const std::string& key) {
  return key != "complete" && key != "dataset" && key != "tokenizer";
}

// The shards that an index lists. UserError where one is missing or has another size.
std::vector<fs::path> sound_shards(const fs::path& folder, const ordered_json& index) {
  std::vector<fs::path> shards;
  for (const ordered_json& shard : index.at("shards")) {
    const fs::path name = shard.at("file").get<std::string>();
    const int64_t promised = shard.at("tokens");
    std::error_code ignored;
    if (name.has_parent_path() || !fs::exists(folder / name, ignored) ||
        TokenFile(folder / name).size() != promised)
      throw user_error(
          "{} has not the {} tokens that index.json promises; remove {} and prepare it anew",
          (folder / name).string(), promised, folder.string());
    shards.push_back(folder / name);
  }
  return shards;
}

// --------------------------------------------------------------------------------------- progress

// How far reading `bytes` bytes of text is.
class Tokenizing {
 public:
  explicit Tokenizing(int64_t bytes) : bytes_(std::max<int64_t>(bytes, 1)) {}
  void show(int64_t read, int64_t tokens) {
    if (!line_.is_due()) return;
    std::string text =
        fmt::format("Tokenizing: {:.0f} % of {:.1f} MB, {:.2f}M tokens",
                    100.0 * static_cast<double>(read) / static_cast<double>(bytes_),
                    static_cast<double>(bytes_) / 1e6, static_cast<double>(tokens) / 1e6);
    if (begin_) {
      const auto since = static_cast<double>(read - first_);
      const double rate = since / std::max(seconds_since(*begin_), 1e-3);
      text += fmt::format(", {:.1f} MB/s, {:.0f} s left", rate / 1e6,
                          rate > 0 ? static_cast<double>(bytes_ - read) / rate : 0);
    } else {
      first_ = read, begin_ = Clock::now();
    }
    line_.show(text);
  }

 private:
  log::ProgressLine line_;
  int64_t bytes_, first_ = 0;
  std::optional<Clock::time_point> begin_;
};

// ----------------------------------------------------------------------------------------- shards

// An .npy of as many tokens as come: its header, of fixed size, is written last.
class Shard {
 public:
  Shard(const fs::path& file, bool is_wide) : file_(file), is_wide_(is_wide) {
    file_.append(header());
  }
  void append(std::span<const int32_t> tokens) {
    const auto write = [&](auto word) {
      std::vector<decltype(word)> words(tokens.begin(), tokens.end());
      sum_.add(std::as_bytes(std::span(words)));
      file_.append(std::as_bytes(std::span(words)));
    };
    if (is_wide_) {
      write(uint32_t{});
    } else {
      write(uint16_t{});
    }
    tokens_ += std::ssize(tokens);
    ++documents_;
  }
  void commit() {
    file_.overwrite(header());
    file_.commit();
  }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  std::string checksum() const { return sum_.hex(); }
  std::string name() const { return file_.path().filename().string(); }

 private:
  // Version 1.0; blanks up to 128 bytes, a line feed at the end.
  std::string header() const {
    const std::string dict = fmt::format(
        "{{'descr': '<u{}', 'fortran_order': False, 'shape': ({},), }}", is_wide_ ? 4 : 2, tokens_);
    return fmt::format("{}\x01{}\x76{}{:<117}\n", "\x93NUMPY", '\0', '\0', dict);
  }

  NewFile file_;
  bool is_wide_;
  Checksum sum_;
  int64_t tokens_ = 0, documents_ = 0;
};

// -------------------------------------------------------------------------------------- the stream

struct Batch {
  std::vector<std::vector<int32_t>> documents;  // with what ends them
  std::vector<DocumentPlace> next;              // where the reader was after each
  int64_t bytes_read = 0;
};

class Preparation {
 public:
  explicit Preparation(const PrepareOptions& options)
      : options_(options), index_(recipe_of(options)) {
    index_["documents"] = 0, index_["tokens"] = 0, index_["shards"] = ordered_json::array();
  }

  // A name for what it writes: another text, tokenizer or option gives another one.
  std::string identity() const {
    ordered_json recipe;
    for (const auto& [key, value] : index_.items())
      if (decides_tokens(key)) recipe[key] = value;
    return checksum_of(recipe.dump());
  }

  Prepared run(const fs::path& out_dir) {
    const auto begin = Clock::now();
    out_dir_ = out_dir;
    Prepared result{.was_there = !take_up()};
    for (const ordered_json& file : index_["files"]) result.bytes += file["bytes"].get<int64_t>();
    if (!result.was_there) {
      write_shards(result.bytes);
      index_["complete"] = true;
      save_index();
      result.seconds = seconds_since(begin);
    }
    result.documents = index_["documents"], result.tokens = index_["tokens"];
    result.shards = std::ssize(index_["shards"]);
    return result;
  }

 private:
  fs::path index_file() const { return out_dir_ / "index.json"; }
  void save_index() const { write_text_file(index_file(), index_.dump(1) + "\n"); }

  // Goes on with what is there. False where all is.
  bool take_up() {
    std::error_code ignored;
    if (!fs::exists(index_file(), ignored)) {
      for (const auto& entry : fs::directory_iterator(out_dir_))
        if (entry.path().extension() == ".npy")
          throw user_error("{} holds {}, which is not of a preparation; choose another out_dir",
                           out_dir_.string(), entry.path().filename().string());
      for (const auto& [name, file] : files_of_tokenizer(options_.tokenizer))
        if (!fs::equivalent(file, out_dir_ / name, ignored))
          write_text_file(out_dir_ / name, read_text_file(file));
      save_index();
      return true;
    }
    const ordered_json found = ordered_json::parse(read_text_file(index_file()), nullptr, false);
    for (const auto& [key, value] : index_.items()) {
      if (!found.is_object() || !found.contains(key))
        throw user_error(
            "{} is no index of a preparation, or damaged: it has no \"{}\"; choose "
            "another out_dir",
            index_file().string(), key);
      const bool grows = key == "documents" || key == "tokens" || key == "shards";
      if (decides_tokens(key) && !grows && found[key] != value)
        throw user_error("{} was made with another {}; choose another out_dir, or remove it",
                         out_dir_.string(), key);
    }
    index_ = found;
    sound_shards(out_dir_, index_);
    return index_["complete"] != true;
  }

  void write_shards(int64_t bytes) {
    const auto tokenizer = open_tokenizer(options_.tokenizer);
    const bool is_wide = tokenizer->vocab_size() > 65536;
    DocumentPlace begin;
    if (const ordered_json& shards = index_["shards"]; !shards.empty())
      begin = {shards.back()["next"][0], shards.back()["next"][1]};
    DocumentReader reader(options_.files, options_.text_column, begin);
    Tokenizing line(bytes);
    int64_t left = options_.num_samples.value_or(INT64_MAX) - index_["documents"].get<int64_t>();
    std::deque<std::future<Batch>> under_way;
    std::optional<Shard> shard;
    DocumentPlace reached = begin;
    for (;;) {
      while (std::ssize(under_way) < options_.num_proc && left > 0) {
        std::vector<Record> records = read_some(reader, left);
        if (records.empty()) break;
        under_way.push_back(std::async(
            std::launch::async, [&, records = std::move(records), read = reader.bytes_read()] {
              return tokenize(reader, *tokenizer, records, read);
            }));
      }
      if (under_way.empty()) break;
      const Batch batch = under_way.front().get();
      under_way.pop_front();
      for (size_t i = 0; i < batch.documents.size(); ++i) {
        if (!shard) shard.emplace(next_file(), is_wide);
        shard->append(batch.documents[i]);
        reached = batch.next[i];
        if (shard->tokens() >= options_.shard_tokens) finish(shard, reached);
      }
      line.show(batch.bytes_read,
                index_["tokens"].get<int64_t>() + (shard ? shard->tokens() : int64_t{0}));
      if (options_.stop && options_.stop())
        throw run_error("the preparation of {} was stopped; the same command goes on with it",
                        options_.dataset);
    }
    if (shard) finish(shard, reached);
    if (index_["tokens"] == 0) throw user_error("{} has no document", options_.dataset);
  }

  // Records of about kBatchBytes together, at most `left`.
  std::vector<Record> read_some(DocumentReader& reader, int64_t& left) const {
    std::vector<Record> records;
    size_t bytes = 0;
    for (Record record; bytes < kBatchBytes && left > 0 && reader.next(record); --left) {
      bytes += record.bytes.size() + 64;
      records.push_back(std::move(record));
    }
    return records;
  }

  Batch tokenize(const DocumentReader& reader, const Tokenizer& tokenizer,
                 const std::vector<Record>& records, int64_t bytes_read) const {
    Batch batch{.bytes_read = bytes_read};
    const auto eos = index_["eos"].get<int32_t>();
    for (const Record& record : records) {
      batch.documents.push_back(tokenizer.encode(reader.text_of(record)));
      batch.documents.back().push_back(eos);
      batch.next.push_back({record.place.file, record.place.record + 1});
    }
    return batch;
  }

  fs::path next_file() const {
    return out_dir_ / fmt::format("tokens-{:05}.npy", index_["shards"].size());
  }

  void finish(std::optional<Shard>& shard, const DocumentPlace& next) {
    shard->commit();
    sync_folder(out_dir_);
    index_["shards"].push_back({{"file", shard->name()},
                                {"documents", shard->documents()},
                                {"tokens", shard->tokens()},
                                {"checksum", shard->checksum()},
                                {"next", {next.file, next.record}}});
    index_["documents"] = index_["documents"].get<int64_t>() + shard->documents();
    index_["tokens"] = index_["tokens"].get<int64_t>() + shard->tokens();
    save_index();
    shard.reset();
  }

  const PrepareOptions& options_;
  fs::path out_dir_;
  ordered_json index_;
};

// ---------------------------------------------------------------------------- one writer a folder

// The folder of a preparation, or the cache; `remedy` says where else it could be.
void make_folder(const fs::path& folder, std::string_view remedy) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw user_error("cannot make the folder {}: {}; {}", folder.string(), error.message(), remedy);
}

// Held by one process at a time; the system lets go of it for one that is killed.
class FileLock {
 public:
  FileLock(fs::path file, std::string_view remedy)
      : file_(std::move(file)), fd_(::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (fd_.get() < 0)
      throw user_error("cannot write {}: {}; {}", file_.string(), std::strerror(errno), remedy);
  }
  // False where another process holds it.
  [[nodiscard]] bool take() const {
    if (::flock(fd_.get(), LOCK_EX | LOCK_NB) == 0) return true;
    if (errno != EWOULDBLOCK && errno != EINTR)
      throw run_error("cannot lock {}: {}", file_.string(), std::strerror(errno));
    return false;
  }
  const fs::path& file() const { return file_; }

 private:
  fs::path file_;
  Descriptor fd_;  // closing it lets go
};

constexpr std::string_view kOutDir = "choose another out_dir";
constexpr std::string_view kCache = "set PICOTRON_CACHE to a folder that is yours";

}  // namespace

Prepared prepare(const PrepareOptions& options) {
  check(options.num_proc >= 1 && options.shard_tokens >= 1, "threads and shards have a size");
  if (options.num_samples && *options.num_samples < 1)
    throw user_error("num_samples {} must be at least 1, or left out for all",
                     *options.num_samples);
  Preparation preparation(options);
  make_folder(options.out_dir, kOutDir);
  const FileLock lock(options.out_dir / ".lock", kOutDir);
  if (!lock.take())
    throw run_error("another process prepares data in {}; wait for its end, or {}",
                    options.out_dir.string(), kOutDir);
  const Prepared done = preparation.run(options.out_dir);
  std::error_code ignored;
  fs::remove(lock.file(), ignored);  // who took it up meanwhile finds that all is done
  return done;
}

PreparedIndex read_index(const fs::path& folder) {
  const fs::path file = folder / "index.json";
  try {
    const ordered_json index = ordered_json::parse(read_text_file(file));
    if (index.at("format") != kFormat)
      throw user_error("{} is of format {}; this program reads format {}", file.string(),
                       index.at("format").dump(), kFormat);
    if (index.at("complete") != true)
      throw user_error("{} is not finished; run the prepare-data that made it again",
                       folder.string());
    return {.shards = sound_shards(folder, index),
            .vocab_size = index.at("vocab_size"),
            .eos = index.at("eos"),
            .tokenizer_content = index.at("tokenizer_content")};
  } catch (const ordered_json::exception& error) {
    throw user_error("{} is no index of a preparation, or damaged ({}); prepare the data anew",
                     file.string(), plain_sentence(error.what()));
  }
}

fs::path prepare_in_cache(const PrepareOptions& options, std::vector<std::string>& notes) {
  Preparation preparation(options);
  const std::string identity = preparation.identity();
  const fs::path cache = cache_folder() / "tokens", folder = cache / identity;
  make_folder(folder, kCache);
  const FileLock lock(cache / (identity + ".lock"), kCache);
  while (!lock.take()) {
    if (options.stop && options.stop())
      throw run_error("stopped while another process prepared the data");
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  const Prepared done = preparation.run(folder);
  notes.push_back(fmt::format(
      "{}: {} documents, {} tokens, {} {}", options.dataset, done.documents, done.tokens,
      done.was_there ? "found in" : fmt::format("made in {:.1f} s and kept in", done.seconds),
      folder.string()));
  return folder;
}

}  // namespace picotron
