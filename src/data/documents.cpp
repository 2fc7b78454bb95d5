// Names to files, files to records, records to text.
#include "data/documents.h"

#include <glob.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/utf8.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunk = size_t{1} << 20;

std::vector<fs::path> matches_of(const std::string& pattern) {
  glob_t found{};
  const int result = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<fs::path> files;
  for (size_t i = 0; result == 0 && i < found.gl_pathc; ++i) files.emplace_back(found.gl_pathv[i]);
  ::globfree(&found);
  return files;
}

std::vector<fs::path> text_files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  const auto follow = fs::directory_options::follow_directory_symlink;
  for (fs::recursive_directory_iterator at(folder, follow, error), end; !error && at != end;
       at.increment(error)) {
    if (at->path().filename().string().starts_with('.')) {
      if (at->is_directory()) at.disable_recursion_pending();
    } else if (!text_kind(at->path()).empty() && at->is_regular_file()) {
      files.push_back(at->path());
    }
  }
  if (error) throw user_error("{}: cannot be read: {}", folder.string(), error.message());
  std::ranges::sort(files);
  return files;
}

bool is_hex(char c) {
  return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

// The number of an escape "\uXXXX" at text[i]; −1 where there is none.
int escaped_unit(std::string_view text, size_t i) {
  if (i + 6 > text.size() || text[i] != '\\' || text[i + 1] != 'u') return -1;
  const std::string_view digits = text.substr(i + 2, 4);
  if (!std::ranges::all_of(digits, is_hex)) return -1;
  return std::stoi(std::string(digits), nullptr, 16);
}

// JSON whose lone surrogates, "\ud83d" without its other half, are "\ufffd": Unicode has no
// character for them.
std::string pair_surrogates(std::string json) {
  for (size_t i = 0; (i = json.find('\\', i)) != std::string::npos; i += 2) {
    const int unit = escaped_unit(json, i);
    if (unit < 0xD800 || unit > 0xDFFF) continue;
    const int next = escaped_unit(json, i + 6);
    if (unit < 0xDC00 && next >= 0xDC00 && next <= 0xDFFF) {
      i += 6;
    } else {
      json.replace(i, 6, "\\ufffd");
    }
  }
  return json;
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace

std::string text_kind(const fs::path& file) {
  const std::string last = file.extension().string();
  if (last == ".txt" || last == ".jsonl" || last == ".parquet") return last;
  const bool compressed = last == ".gz" || last == ".zst";
  return compressed && file.stem().extension() == ".jsonl" ? ".jsonl" : "";
}

std::vector<fs::path> find_text_files(const std::string& name) {
  std::error_code ignored;
  std::vector<fs::path> files;
  if (fs::is_directory(name, ignored)) {
    files = text_files_in(name);
  } else if (fs::exists(name, ignored)) {
    files = {name};
  } else {
    files = matches_of(name);
  }
  std::set<std::string> kinds;
  for (const fs::path& file : files) {
    kinds.insert(text_kind(file));
    if (text_kind(file).empty())
      throw user_error(
          "{}: is of no kind that is read; use .txt, .jsonl, .jsonl.gz, .jsonl.zst or "
          ".parquet",
          file.string());
  }
  if (files.empty() && fs::is_directory(name, ignored))
    throw user_error(
        "{} holds no file of text (.txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet) or tokens (.npy)",
        name);
  if (files.empty())
    throw user_error(
        "data set \"{}\" does not exist; use builtin:stories, a file or folder of .txt, .jsonl, "
        ".jsonl.gz, .jsonl.zst, .parquet or .npy, or a pattern of such files",
        name);
  if (kinds.size() > 1)
    throw user_error("{} has {} files; name one kind with a pattern, such as {}", name,
                     fmt::join(kinds, " and "), (fs::path(name) / ("*" + *kinds.begin())).string());
  return files;
}

DocumentReader::DocumentReader(std::vector<fs::path> files, std::string text_column,
                               DocumentPlace begin)
    : files_(std::move(files)), text_column_(std::move(text_column)), place_{begin.file, 0} {
  std::error_code ignored;
  for (int64_t file = 0; file < begin.file; ++file)
    bytes_of_files_before_ +=
        static_cast<int64_t>(fs::file_size(files_.at(static_cast<size_t>(file)), ignored));
  if (begin.record == 0) return;
  if (text_kind(files_.at(static_cast<size_t>(begin.file))) == ".parquet") {
    rows_ = open_parquet(files_[static_cast<size_t>(begin.file)], text_column_);
    rows_->skip(begin.record);
    is_open_ = true;
    place_ = begin;
    return;
  }
  for (Record passed; place_ != begin && next(passed);) continue;
}

DocumentReader::~DocumentReader() = default;

int64_t DocumentReader::bytes_read() const {
  return bytes_of_files_before_ + (rows_     ? rows_->file_bytes()
                                   : stream_ ? stream_->file_bytes()
                                             : int64_t{0});
}

bool DocumentReader::next_of_file(std::string& bytes) {
  if (rows_) return rows_->next(bytes);
  const bool by_line = text_kind(files_[static_cast<size_t>(place_.file)]) == ".jsonl";
  if (!by_line && place_.record > 0) return false;
  size_t searched = begin_;
  for (;;) {
    const size_t end = by_line ? buffer_.find('\n', searched) : std::string::npos;
    if (end != std::string::npos) {
      bytes.assign(buffer_, begin_, end - begin_);
      begin_ = end + 1;
      return true;
    }
    buffer_.erase(0, begin_), begin_ = 0;
    searched = buffer_.size();
    buffer_.resize(searched + kChunk);
    const size_t count = stream_->read(std::span(buffer_).subspan(searched));
    buffer_.resize(searched + count);
    if (count > 0) continue;
    // The last line needs no end; a .txt is a document even where it is empty.
    if (by_line && buffer_.empty()) return false;
    bytes = std::exchange(buffer_, {});
    return true;
  }
}

bool DocumentReader::next(Record& record) {
  for (; place_.file < std::ssize(files_); ++place_.file, place_.record = 0) {
    const fs::path& file = files_[static_cast<size_t>(place_.file)];
    const std::string kind = text_kind(file);
    if (!is_open_) {
      if (kind == ".parquet") {
        rows_ = open_parquet(file, text_column_);
      } else {
        stream_ = open_bytes(file);
      }
      is_open_ = true;
    }
    while (next_of_file(record.bytes)) {
      record.place = place_;
      ++place_.record;
      if (kind != ".jsonl" || !is_blank(record.bytes)) return true;
    }
    is_open_ = false;
    rows_.reset(), stream_.reset(), buffer_.clear(), begin_ = 0;
    std::error_code ignored;
    bytes_of_files_before_ += static_cast<int64_t>(fs::file_size(file, ignored));
  }
  return false;
}

std::string DocumentReader::text_of(const Record& record) const {
  const fs::path& file = files_.at(static_cast<size_t>(record.place.file));
  if (text_kind(file) != ".jsonl") return replace_invalid_utf8(record.bytes);
  const auto reject = [&](const std::string& why) {
    return user_error("{}, line {}: {}", file.string(), record.place.record + 1, why);
  };
  using nlohmann::json;
  json line;
  try {
    line = json::parse(pair_surrogates(replace_invalid_utf8(record.bytes)));
  } catch (const json::parse_error& error) {
    throw reject(fmt::format("is no JSON, from byte {} on", error.byte));
  } catch (const json::out_of_range&) {
    throw reject("holds a number beyond 1.8e308, the largest there is in 64 bits");
  }
  if (!line.is_object()) throw reject("is no JSON object, {\"" + text_column_ + "\": \"…\"}");
  const auto found = line.find(text_column_);
  if (found == line.end()) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : line.items())
      if (value.is_string()) keys.push_back(key);
    throw reject(fmt::format("has no \"{}\"; its texts are {} (dataset.text_column)", text_column_,
                             keys.empty() ? "none" : fmt::format("{}", fmt::join(keys, ", "))));
  }
  if (found->is_null()) return "";
  if (!found->is_string()) throw reject(fmt::format("\"{}\" is no string", text_column_));
  return std::move(found->get_ref<std::string&>());
}

}  // namespace picotron
