// From a name to a data set: which kind it is, which of its rows are held out for validation, and
// what a person should be told about it.
#include "data/dataset.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "core/error.h"
#include "data/stories.h"
#include "data/token_files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view readable =
    "builtin:stories, a .npy of tokens, a .txt, or a folder of them";
constexpr int64_t default_story_rows = 400000;

// Rows [first, first + count) of another data set.
class RowRange : public Dataset {
 public:
  RowRange(std::shared_ptr<const Dataset> base, int64_t first, int64_t count)
      : base_(std::move(base)), first_(first), count_(count) {}
  const std::string& name() const override { return base_->name(); }
  int64_t seq_length() const override { return base_->seq_length(); }
  int64_t num_rows() const override { return count_; }
  void read_row(int64_t row, std::span<int32_t> out) const override {
    check(row >= 0 && row < count_, "the row is one of the data set's");
    base_->read_row(first_ + row, out);
  }
  std::string locate(int64_t row, int64_t column) const override {
    return base_->locate(first_ + row, column);
  }
  std::optional<int64_t> vocab_size() const override { return base_->vocab_size(); }
  std::optional<double> floor() const override { return base_->floor(); }
  std::shared_ptr<const Tokenizer> tokenizer() const override { return base_->tokenizer(); }

 private:
  std::shared_ptr<const Dataset> base_;
  int64_t first_;
  int64_t count_;
};

bool is_built_in(std::string_view name) {
  return name.starts_with("builtin:");
}

std::unique_ptr<Dataset> open_built_in(const DatasetOptions& options, const std::string& name,
                                       StoryStream stream) {
  if (name != "builtin:stories") {
    throw user_error("dataset \"{}\" does not exist; the built-in one is builtin:stories", name);
  }
  if (!options.tokenizer.empty()) {
    throw user_error("builtin:stories has its own tokenizer; remove dataset.tokenizer \"{}\"",
                     options.tokenizer);
  }
  return open_stories(options.seed, stream, options.seq_length,
                      options.num_samples.value_or(default_story_rows));
}

// The folder's files of the one kind that is read, by name.
std::vector<fs::path> files_of_folder(const fs::path& folder) {
  std::vector<fs::path> tokens, texts, others;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    std::error_code unknown;
    if (!at->is_regular_file(unknown)) continue;
    const fs::path extension = at->path().extension();
    if (extension == ".npy") tokens.push_back(at->path());
    if (extension == ".txt") texts.push_back(at->path());
    if (extension == ".jsonl" || extension == ".parquet") others.push_back(at->path());
  }
  if (error) throw user_error("{}: cannot be read: {}", folder.string(), error.message());
  if (!tokens.empty() && !texts.empty()) {
    throw user_error("{}: holds both .npy and .txt files; keep one kind in a folder",
                     folder.string());
  }
  std::vector<fs::path>& files = tokens.empty() ? texts : tokens;
  if (!others.empty()) {
    throw user_error("{}: reading {} files is not built yet; use .npy or .txt files",
                     folder.string(), others.front().extension().string());
  }
  if (files.empty()) {
    throw user_error("{}: holds no .npy and no .txt file", folder.string());
  }
  std::ranges::sort(files);
  return files;
}

std::unique_ptr<Dataset> open_files(const DatasetOptions& options, const std::string& name) {
  const fs::path path(name);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  const std::string extension = path.extension().string();
  if (status.type() == fs::file_type::not_found) {
    const bool is_path = name.empty() || name.front() == '/' || name.front() == '.' ||
                         name.back() == '/' || extension == ".npy" || extension == ".txt" ||
                         extension == ".jsonl" || extension == ".parquet";
    if (is_path) throw user_error("data set \"{}\" does not exist; use {}", name, readable);
    throw user_error(
        "data set \"{}\" is no file or folder here, and data sets of the hub are not built yet; "
        "use {}",
        name, readable);
  }
  if (error) throw user_error("{}: cannot be read: {}", name, error.message());

  const bool is_folder = fs::is_directory(status);
  if (!is_folder && (extension == ".jsonl" || extension == ".parquet")) {
    throw user_error("{}: reading {} files is not built yet; use {}", name, extension, readable);
  }
  if (!is_folder && extension != ".npy" && extension != ".txt") {
    throw user_error("{}: is of no kind that is read; use {}", name, readable);
  }
  const std::vector<fs::path> files =
      is_folder ? files_of_folder(path) : std::vector<fs::path>{path};
  if (options.tokenizer.empty() && files.front().extension() == ".txt") {
    throw user_error("{}: text needs a tokenizer; set dataset.tokenizer to \"bytes\"", name);
  }
  if (options.tokenizer != "bytes" && files.front().extension() == ".txt") {
    throw user_error("{}: tokenizing text with {} is not built yet; use \"bytes\"", name,
                     options.tokenizer);
  }
  std::shared_ptr<const Tokenizer> tokenizer;
  if (!options.tokenizer.empty()) tokenizer = open_tokenizer(options.tokenizer);
  return open_token_files(name, options.seq_length, files, tokenizer);
}

void check_options(const DatasetOptions& options) {
  if (options.seq_length < 1) {
    throw user_error("training.seq_length {} must be at least 1", options.seq_length);
  }
  if (options.num_samples && *options.num_samples < 1) {
    throw user_error("training.num_samples {} must be at least 1, or null for all",
                     *options.num_samples);
  }
  const double fraction = options.validation_fraction;
  const bool cuts = options.hold_out && options.validation.empty() && !is_built_in(options.name);
  if (cuts && !(fraction > 0 && fraction < 1)) {
    throw user_error("dataset.validation_fraction {} must lie between 0 and 1", fraction);
  }
}

}  // namespace

OpenedDatasets open_datasets(const DatasetOptions& options) {
  check_options(options);
  OpenedDatasets opened;
  if (is_built_in(options.name)) {
    opened.train = open_built_in(options, options.name, StoryStream::train);
    if (options.hold_out && options.validation.empty()) {
      opened.validation = open_built_in(options, options.name, StoryStream::validation);
    }
  } else {
    const std::shared_ptr<const Dataset> all = open_files(options, options.name);
    int64_t rows = all->num_rows();
    if (options.num_samples && *options.num_samples < rows) {
      rows = *options.num_samples;
      opened.notes.push_back(fmt::format(
          "training.num_samples {} leaves {} of the {} rows of {} unused; null uses all", rows,
          all->num_rows() - rows, all->num_rows(), options.name));
    }
    int64_t held_out = 0;
    if (options.hold_out && options.validation.empty()) {
      if (rows < 2) {
        throw user_error(
            "{}: has one row of seq_length {}, so none can be held out for validation; "
            "give more text or a dataset.validation",
            options.name, options.seq_length);
      }
      const auto share =
          static_cast<int64_t>(static_cast<double>(rows) * options.validation_fraction);
      held_out = std::clamp<int64_t>(share, 1, rows - 1);
      opened.validation = std::make_unique<RowRange>(all, rows - held_out, held_out);
    }
    opened.train = std::make_unique<RowRange>(all, 0, rows - held_out);
  }
  if (!options.validation.empty()) {
    opened.validation = is_built_in(options.validation)
                            ? open_built_in(options, options.validation, StoryStream::validation)
                            : open_files(options, options.validation);
    const auto ours = opened.train->vocab_size(), theirs = opened.validation->vocab_size();
    if (ours && theirs && *ours != *theirs) {
      throw user_error(
          "dataset.validation \"{}\" has {} tokens in its vocabulary, but \"{}\" has {}",
          options.validation, *theirs, options.name, *ours);
    }
  }
  return opened;
}

}  // namespace picotron
