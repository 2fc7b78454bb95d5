// Mixtures: shares after any number of rows, every row of a data set in its order, and names.
#include "data/mixture.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/error.h"

namespace picotron {
namespace {

// Row r is r, `mark`.
class Marked : public Dataset {
 public:
  Marked(int32_t mark, int64_t rows, std::optional<int32_t> end = {},
         std::optional<int64_t> vocab = 99)
      : mark_(mark), rows_(rows), end_(end), vocab_(vocab) {}
  const std::string& name() const override { return name_; }
  int64_t seq_length() const override { return 1; }
  int64_t num_rows() const override { return rows_; }
  void read_row(int64_t row, std::span<int32_t> out) const override {
    out[0] = static_cast<int32_t>(row);
    out[1] = mark_;
  }
  std::string locate(int64_t row, int64_t column) const override {
    return fmt::format("{}: {}, {}", mark_, row, column);
  }
  std::optional<int64_t> vocab_size() const override { return vocab_; }
  std::optional<int32_t> end_of_document() const override { return end_; }

 private:
  std::string name_ = "marked";
  int32_t mark_;
  int64_t rows_;
  std::optional<int32_t> end_;
  std::optional<int64_t> vocab_;
};

std::unique_ptr<Dataset> mixed(const std::vector<double>& weights,
                               const std::vector<int64_t>& rows) {
  std::vector<Ingredient> ingredients;
  std::vector<std::shared_ptr<const Dataset>> sources;
  for (size_t i = 0; i < weights.size(); ++i) {
    ingredients.push_back({weights[i], "x"});
    sources.push_back(std::make_shared<Marked>(static_cast<int32_t>(i), rows[i]));
  }
  return mix("mixture", ingredients, sources);
}

TEST(Mixture, GivesEachItsShareAfterAnyNumberOfRows) {
  for (const std::vector<double>& weights :
       std::vector<std::vector<double>>{{0.7, 0.3}, {5, 1, 2}, {1, 1}, {0.001, 3, 0.9, 0.2, 7}}) {
    double all = 0;
    for (const double weight : weights) all += weight;
    const auto data = mixed(weights, std::vector<int64_t>(weights.size(), 1'000'000));
    std::vector<int64_t> given(weights.size(), 0);
    for (int64_t row = 0; row < 20'000; ++row) {
      std::array<int32_t, 2> out{};
      data->read_row(row, out);
      const auto source = static_cast<size_t>(out[1]);
      ASSERT_EQ(out[0], given[source]) << "a data set's rows come in order, each once";
      ++given[source];
      for (size_t i = 0; i < weights.size(); ++i) {
        const double share = static_cast<double>(row + 1) * weights[i] / all;
        ASSERT_LT(std::abs(static_cast<double>(given[i]) - share),
                  static_cast<double>(weights.size()));
      }
    }
  }
}

TEST(Mixture, EndsWithTheOneThatLastsLongest) {
  const auto data = mixed({0.25, 0.75}, {100, 30});
  EXPECT_EQ(data->num_rows(), 400);  // the first at a quarter: all of its 100 rows, once
  std::vector<int> times(30, 0);
  int64_t of_first = 0;
  for (int64_t row = 0; row < data->num_rows(); ++row) {
    std::array<int32_t, 2> out{};
    data->read_row(row, out);
    if (out[1] == 1) ++times[static_cast<size_t>(out[0])];
    of_first += out[1] == 0;
  }
  EXPECT_EQ(of_first, 100);
  for (const int count : times) EXPECT_EQ(count, 10);
  EXPECT_EQ(data->locate(3, 1), "0: 0, 1");
}

TEST(Mixture, KnowsWhatAllAgreeOn) {
  const std::vector<Ingredient> two = {{1, "a"}, {1, "b"}};
  const auto with = [&](std::optional<int32_t> first, std::optional<int32_t> second) {
    return mix("m", two,
               {std::make_shared<Marked>(0, 9, first), std::make_shared<Marked>(1, 9, second)})
        ->end_of_document();
  };
  EXPECT_EQ(with(7, 7), 7);
  EXPECT_EQ(with(7, 8), std::nullopt);
  EXPECT_EQ(with(7, std::nullopt), std::nullopt);
  EXPECT_THROW(
      mix("m", two, {std::make_shared<Marked>(0, 9), std::make_shared<Marked>(1, 9, 7, 50)}),
      UserError);
}

TEST(Mixture, HasTheVocabularyOfTheFirstThatHasOne) {
  const auto vocabulary = [](const std::vector<std::optional<int64_t>>& of_each) {
    std::vector<Ingredient> ingredients;
    std::vector<std::shared_ptr<const Dataset>> sources;
    for (const auto& vocab : of_each) {
      ingredients.push_back({1, "x"});
      sources.push_back(std::make_shared<Marked>(0, 9, std::nullopt, vocab));
    }
    return mix("m", ingredients, sources)->vocab_size();
  };
  EXPECT_EQ(vocabulary({std::nullopt, 50, 50}), 50);
  EXPECT_EQ(vocabulary({50, std::nullopt}), 50);
  EXPECT_EQ(vocabulary({std::nullopt, std::nullopt}), std::nullopt);
  EXPECT_THROW(vocabulary({std::nullopt, 50, 60}), UserError);
}

TEST(Mixture, SaysHowOftenItReadsEach) {
  const std::vector<Ingredient> two = {{0.25, "code/"}, {0.75, "b.npy"}};
  const std::vector<std::shared_ptr<const Dataset>> sources = {std::make_shared<Marked>(0, 100),
                                                               std::make_shared<Marked>(1, 30)};
  EXPECT_EQ(describe_epoch(*mix("m", two, sources), two, sources),
            "an epoch of the mixture is 400 rows: the 100 rows of code/ 1.00 times, the 30 rows of "
            "b.npy 10.00 times");
}

TEST(Mixture, IsNamedByWeightsAndNames) {
  const auto parts = parse_mixture("0.7  code/ 3 a.npy");
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(parts[0].weight, 0.7);
  EXPECT_EQ(parts[0].name, "code/");
  EXPECT_EQ(parts[1].weight, 3);
  EXPECT_EQ(parts[1].name, "a.npy");
  for (const char* plain : {"code/", "my file.txt", "roneneldan/TinyStories", "", "12"}) {
    ASSERT_EQ(parse_mixture(plain).size(), 1U) << plain;
    EXPECT_EQ(parse_mixture(plain)[0].name, plain);
  }
  for (const char* wrong : {"0.7 a b 0.3", "0.7 a 0.3", "0 a 1 b", "-1 a 1 b", "inf a 1 b"})
    EXPECT_THROW(parse_mixture(wrong), UserError) << wrong;
}

}  // namespace
}  // namespace picotron
