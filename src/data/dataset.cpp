// From a name to a data set: which kind it is, which of its rows are held out for validation, and
// what a person should be told about it.
#include "data/dataset.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "core/error.h"
#include "data/documents.h"
#include "data/mixture.h"
#include "data/prepare.h"
#include "data/stories.h"
#include "data/token_files.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view readable =
    "builtin:stories, a .npy of tokens, a .txt, .jsonl or .parquet, or a folder of them";
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
  std::optional<int32_t> end_of_document() const override { return base_->end_of_document(); }

 private:
  std::shared_ptr<const Dataset> base_;
  int64_t first_;
  int64_t count_;
};

bool is_built_in(std::string_view name) {
  return name.starts_with("builtin:");
}

// The folder's .npy files by name; none where it has text instead.
std::vector<fs::path> token_files_in(const fs::path& folder) {
  std::vector<fs::path> tokens;
  std::string text;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    std::error_code unknown;
    if (!at->is_regular_file(unknown)) continue;
    if (at->path().extension() == ".npy") tokens.push_back(at->path());
    if (!text_kind(at->path()).empty()) text = text_kind(at->path());
  }
  if (error) throw user_error("{}: cannot be read: {}", folder.string(), error.message());
  if (!tokens.empty() && !text.empty()) {
    throw user_error("{}: holds both .npy and {} files; keep one kind in a folder", folder.string(),
                     text);
  }
  std::ranges::sort(tokens);
  return tokens;
}

// One data set and the rows of it that are held out.
struct Opened {
  std::shared_ptr<const Dataset> train, validation;
};

class Opener {
 public:
  Opener(const DatasetOptions& options, OpenedDatasets& opened)
      : options_(options), opened_(opened) {}

  Opened open(const std::string& name, bool hold_out) {
    if (is_built_in(name)) {
      remember(name);
      return {open_built_in(name, StoryStream::train),
              hold_out ? open_built_in(name, StoryStream::validation) : nullptr};
    }
    const std::shared_ptr<const Dataset> all = open_whole(name);
    int64_t rows = all->num_rows();
    if (options_.num_samples && *options_.num_samples < rows && !counts_documents_) {
      rows = *options_.num_samples;
      opened_.notes.push_back(fmt::format(
          "training.num_samples {} leaves {} of the {} rows of {} unused; null uses all", rows,
          all->num_rows() - rows, all->num_rows(), name));
    }
    if (!hold_out) return {std::make_shared<RowRange>(all, 0, rows), nullptr};
    if (rows < 2) {
      throw user_error(
          "{}: has one row of seq_length {}, so none can be held out for validation; "
          "give more text or a dataset.validation",
          name, options_.seq_length);
    }
    const auto share =
        static_cast<int64_t>(static_cast<double>(rows) * options_.validation_fraction);
    const int64_t held_out = std::clamp<int64_t>(share, 1, rows - 1);
    return {std::make_shared<RowRange>(all, 0, rows - held_out),
            std::make_shared<RowRange>(all, rows - held_out, held_out)};
  }

  // All rows of it, for validation.
  std::shared_ptr<const Dataset> open_apart(const std::string& name) {
    return is_built_in(name) ? open_built_in(name, StoryStream::validation) : open_whole(name);
  }

 private:
  std::shared_ptr<const Dataset> open_built_in(const std::string& name, StoryStream stream) const {
    if (name != "builtin:stories")
      throw user_error("dataset \"{}\" does not exist; the built-in one is builtin:stories", name);
    if (!options_.tokenizer.empty())
      throw user_error("builtin:stories has its own tokenizer; remove dataset.tokenizer \"{}\"",
                       options_.tokenizer);
    return open_stories(options_.seed, stream, options_.seq_length,
                        options_.num_samples.value_or(default_story_rows));
  }

  std::shared_ptr<const Dataset> open_whole(const std::string& name) {
    counts_documents_ = false;
    std::error_code ignored;
    const fs::path path(name);
    if (fs::is_directory(path, ignored)) {
      if (fs::exists(path / "index.json", ignored)) return open_prepared(name, path);
      const std::vector<fs::path> tokens = token_files_in(path);
      if (!tokens.empty()) return open_tokens(name, tokens, options_.tokenizer);
    } else if (path.extension() == ".npy") {
      if (!fs::exists(path, ignored))
        throw user_error("data set \"{}\" does not exist; use {}", name, readable);
      return open_tokens(name, {path}, options_.tokenizer);
    }
    return open_text(name);
  }

  std::shared_ptr<const Dataset> open_tokens(const std::string& name,
                                             const std::vector<fs::path>& files,
                                             const std::string& tokenizer) {
    remember(tokenizer);
    TokenMeaning meaning;
    if (!tokenizer.empty()) meaning.tokenizer = open_tokenizer(tokenizer);
    return open_token_files(name, options_.seq_length, files, std::move(meaning));
  }

  std::shared_ptr<const Dataset> open_prepared(const std::string& name, const fs::path& folder) {
    const PreparedIndex index = read_index(folder);
    compare_tokenizers(name, index.tokenizer_content);
    TokenMeaning meaning{.vocab_size = index.vocab_size, .end_of_document = index.eos};
    std::string tokenizer = options_.tokenizer;
    if (tokenizer.empty() && !files_of_tokenizer(folder.string()).empty())
      tokenizer = folder.string();
    remember(tokenizer);
    if (!tokenizer.empty()) meaning.tokenizer = open_tokenizer(tokenizer);
    if (meaning.tokenizer && meaning.tokenizer->vocab_size() != index.vocab_size)
      throw user_error(
          "{} was prepared with a vocabulary of {}, but tokenizer {} has {}; remove "
          "dataset.tokenizer",
          name, index.vocab_size, tokenizer, meaning.tokenizer->vocab_size());
    return open_token_files(name, options_.seq_length, index.shards, std::move(meaning));
  }

  std::shared_ptr<const Dataset> open_text(const std::string& name) {
    std::vector<fs::path> files;
    if (!is_hub_id(name)) files = find_text_files(name);
    const std::string tokenizer = tokenizer_of_text();
    if (tokenizer.empty())
      throw user_error(
          "{}: text needs a tokenizer; set dataset.tokenizer to \"bytes\", a "
          "tokenizer.json, a tokenizer.model or a folder that holds one",
          name);
    if (is_hub_id(name))
      files =
          fetch_dataset(name, options_.subset_name, options_.split, options_.hub, opened_.notes);
    // Bytes are their own tokens, and a .txt of them needs no preparation.
    if (tokenizer == "bytes" && text_kind(files.front()) == ".txt")
      return open_tokens(name, files, tokenizer);
    counts_documents_ = true;
    const fs::path folder = prepare_in_cache({.dataset = name,
                                              .files = files,
                                              .text_column = options_.text_column,
                                              .tokenizer = tokenizer,
                                              .num_samples = options_.num_samples,
                                              .num_proc = options_.num_proc,
                                              .stop = options_.stop},
                                             opened_.notes);
    auto rows = open_prepared(name, folder);
    remember(tokenizer);
    return rows;
  }

  std::string tokenizer_of_text() const {
    if (is_hub_id(options_.tokenizer))
      return fetch_model(options_.tokenizer, ModelFiles::tokenizer, options_.hub, opened_.notes)
          .string();
    if (!options_.tokenizer.empty() || !options_.model_tokenizer) return options_.tokenizer;
    return options_.model_tokenizer();
  }

  // Of prepared data in one run: vocabularies of one size are not yet one vocabulary, but files may
  // differ in their spaces alone.
  void compare_tokenizers(const std::string& name, const std::string& content) {
    if (prepared_.empty()) {
      prepared_ = name;
      prepared_with_ = content;
    } else if (content != prepared_with_) {
      opened_.notes.push_back(
          fmt::format("{} and {} were prepared with tokenizer files that differ; if that is more "
                      "than a way of writing them, their tokens mean different things",
                      prepared_, name));
    }
  }

  // Of a mixture the first that is known stays, as in mixture.h.
  void remember(const std::string& tokenizer) {
    if (opened_.tokenizer.empty()) opened_.tokenizer = tokenizer;
  }

  const DatasetOptions& options_;
  OpenedDatasets& opened_;
  bool counts_documents_ = false;         // num_samples, of the data set opened last
  std::string prepared_, prepared_with_;  // the first prepared data set, its tokenizer's checksum
};

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
  Opener opener(options, opened);
  const std::vector<Ingredient> ingredients = parse_mixture(options.name);
  const bool hold_out = options.hold_out && options.validation.empty();
  std::vector<std::shared_ptr<const Dataset>> train, validation;
  for (const Ingredient& ingredient : ingredients) {
    const Opened one = opener.open(ingredient.name, hold_out);
    train.push_back(one.train), validation.push_back(one.validation);
  }
  const auto together = [&](const std::vector<std::shared_ptr<const Dataset>>& sources) {
    return sources.size() == 1 ? sources.front() : mix(options.name, ingredients, sources);
  };
  opened.train = together(train);
  if (train.size() > 1) opened.notes.push_back(describe_epoch(*opened.train, ingredients, train));
  if (hold_out) opened.validation = together(validation);
  if (options.validation.empty()) return opened;
  const std::string tokenizer = opened.tokenizer;
  opened.validation = opener.open_apart(options.validation);
  opened.tokenizer = tokenizer;
  const auto ours = opened.train->vocab_size(), theirs = opened.validation->vocab_size();
  if (ours && theirs && *ours != *theirs) {
    throw user_error("dataset.validation \"{}\" has {} tokens in its vocabulary, but \"{}\" has {}",
                     options.validation, *theirs, options.name, *ours);
  }
  return opened;
}

}  // namespace picotron
