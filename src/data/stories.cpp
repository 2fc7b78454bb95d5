// The grammar compiled once, rows drawn from it on demand, and the prompt's words for a person.
#include "data/stories.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "core/error.h"
#include "data/grammar.h"
#include "data/random.h"

namespace picotron {
namespace {

const Automaton& automaton() {
  static const Automaton grammar = compile_grammar(story_grammar());
  return grammar;
}

class StoriesDataset : public Dataset {
 public:
  StoriesDataset(uint64_t key, int64_t seq_length, int64_t num_rows)
      : key_(key),
        seq_length_(seq_length),
        num_rows_(num_rows),
        floor_(entropy_per_token(automaton(), seq_length)) {}

  const std::string& name() const override { return name_; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t num_rows() const override { return num_rows_; }

  void read_row(int64_t row, std::span<int32_t> out) const override {
    check(row >= 0 && row < num_rows_, "the row is one of the data set's");
    check(static_cast<int64_t>(out.size()) == seq_length_ + 1, "a row is seq_length + 1 tokens");
    generate_stories(automaton(), combine_keys(key_, static_cast<uint64_t>(row)), out);
  }

  std::string locate(int64_t row, int64_t column) const override {
    return fmt::format("{}, row {}, token {}", name_, row, column);
  }

  std::optional<int64_t> vocab_size() const override { return tokenizer()->vocab_size(); }
  std::optional<double> floor() const override { return floor_; }
  std::shared_ptr<const Tokenizer> tokenizer() const override { return story_tokenizer(); }

 private:
  std::string name_ = "builtin:stories";
  uint64_t key_;
  int64_t seq_length_;
  int64_t num_rows_;
  double floor_;
};

}  // namespace

std::unique_ptr<Dataset> open_stories(uint64_t seed, StoryStream stream, int64_t seq_length,
                                      int64_t num_rows) {
  const uint64_t key = combine_keys(seed, static_cast<uint64_t>(stream));
  return std::make_unique<StoriesDataset>(key, seq_length, num_rows);
}

std::shared_ptr<const Tokenizer> story_tokenizer() {
  static const std::shared_ptr<const Tokenizer> tokenizer =
      std::make_shared<WordTokenizer>(automaton().vocabulary);
  return tokenizer;
}

std::string story_vocabulary() {
  std::vector<std::string> words;
  for (const std::string& word : automaton().vocabulary) {
    if (word != story_mark) words.push_back(word);
  }
  std::ranges::sort(words);
  size_t width = 0;
  for (const std::string& word : words) width = std::max(width, word.size() + 2);
  const size_t columns = std::max<size_t>(1, 100 / width);
  const size_t rows = (words.size() + columns - 1) / columns;
  std::string out;
  for (size_t row = 0; row < rows; ++row) {
    std::string line;
    for (size_t i = row; i < words.size(); i += rows)
      line += fmt::format("{:<{}}", words[i], width);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

}  // namespace picotron
