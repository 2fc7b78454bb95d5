// The rule of mixture.h.
#include "data/mixture.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace picotron {
namespace {

std::optional<double> number_of(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

class Mixture : public Dataset {
 public:
  Mixture(std::string name, const std::vector<double>& weights,
          std::vector<std::shared_ptr<const Dataset>> sources)
      : name_(std::move(name)), sources_(std::move(sources)) {
    double left = std::accumulate(weights.begin(), weights.end(), 0.0);
    const double all = left;
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool is_last = i + 1 == weights.size();
      shares_.push_back(is_last ? 1 : weights[i] / left);
      left -= weights[i];
      const auto rows = static_cast<double>(sources_[i]->num_rows());
      num_rows_ = std::max(num_rows_, static_cast<int64_t>(std::ceil(rows * all / weights[i])));
    }
  }

  const std::string& name() const override { return name_; }
  int64_t seq_length() const override { return sources_.front()->seq_length(); }
  int64_t num_rows() const override { return num_rows_; }
  void read_row(int64_t row, std::span<int32_t> out) const override {
    const auto [source, its_row] = find(row);
    source->read_row(its_row, out);
  }
  std::string locate(int64_t row, int64_t column) const override {
    const auto [source, its_row] = find(row);
    return source->locate(its_row, column);
  }
  std::optional<int64_t> vocab_size() const override {
    for (const auto& source : sources_)
      if (const auto size = source->vocab_size()) return size;
    return std::nullopt;
  }
  std::shared_ptr<const Tokenizer> tokenizer() const override {
    for (const auto& source : sources_)
      if (auto tokenizer = source->tokenizer()) return tokenizer;
    return nullptr;
  }
  std::optional<int32_t> end_of_document() const override {
    const auto end = sources_.front()->end_of_document();
    const bool agree = std::ranges::all_of(
        sources_, [&](const auto& source) { return source->end_of_document() == end; });
    return agree ? end : std::nullopt;
  }

 private:
  std::pair<const Dataset*, int64_t> find(int64_t row) const {
    for (size_t i = 0;; ++i) {
      const auto before = [&](int64_t rows) {
        return static_cast<int64_t>(std::floor(static_cast<double>(rows) * shares_[i]));
      };
      const int64_t its_row = before(row);
      if (before(row + 1) > its_row) return {sources_[i].get(), its_row % sources_[i]->num_rows()};
      row -= its_row;
    }
  }

  std::string name_;
  std::vector<std::shared_ptr<const Dataset>> sources_;
  std::vector<double> shares_;  // of the rows that those before have left
  int64_t num_rows_ = 0;
};

}  // namespace

std::vector<Ingredient> parse_mixture(const std::string& name) {
  std::istringstream text(name);
  std::vector<std::string> words;
  for (std::string word; text >> word;) words.push_back(word);
  if (words.size() < 2 || !number_of(words.front())) return {{.name = name}};
  std::vector<Ingredient> ingredients;
  for (size_t i = 0; i < words.size(); i += 2) {
    const auto weight = number_of(words[i]);
    if (!weight || !(*weight > 0) || !std::isfinite(*weight) || i + 1 == words.size())
      throw user_error(
          "dataset.name \"{}\": a mixture is a list of a positive weight and a name, "
          "and again; \"{}\" is not, as in \"0.7 code/ 0.3 stories.npy\"",
          name, words[i]);
    ingredients.push_back({*weight, words[i + 1]});
  }
  return ingredients;
}

std::unique_ptr<Dataset> mix(const std::string& name, const std::vector<Ingredient>& ingredients,
                             std::vector<std::shared_ptr<const Dataset>> sources) {
  check(!sources.empty() && sources.size() == ingredients.size(), "each data set has a weight");
  std::vector<double> weights;
  const Dataset* known = nullptr;  // the first whose vocabulary is
  for (size_t i = 0; i < sources.size(); ++i) {
    weights.push_back(ingredients[i].weight);
    if (!sources[i]->vocab_size()) continue;
    if (known == nullptr) known = sources[i].get();
    if (known->vocab_size() != sources[i]->vocab_size())
      throw user_error("{} has {} tokens in its vocabulary, but {} of the same mixture has {}",
                       sources[i]->name(), *sources[i]->vocab_size(), known->name(),
                       *known->vocab_size());
  }
  return std::make_unique<Mixture>(name, weights, std::move(sources));
}

std::string describe_epoch(const Dataset& mixture, const std::vector<Ingredient>& ingredients,
                           const std::vector<std::shared_ptr<const Dataset>>& sources) {
  double all = 0;
  for (const Ingredient& ingredient : ingredients) all += ingredient.weight;
  std::string text = fmt::format("an epoch of the mixture is {} rows", mixture.num_rows());
  for (size_t i = 0; i < sources.size(); ++i) {
    const double read = static_cast<double>(mixture.num_rows()) * ingredients[i].weight / all;
    text +=
        fmt::format("{} the {} rows of {} {:.2f} times", i == 0 ? ":" : ",", sources[i]->num_rows(),
                    ingredients[i].name, read / static_cast<double>(sources[i]->num_rows()));
  }
  return text;
}

}  // namespace picotron
