// Who reads which row: the same rows in every layout, each once an epoch.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <set>

#include "core/error.h"
#include "data/loader.h"
#include "data/permutation.h"

namespace picotron {
namespace {

// Token (row, column) is row · 1000 + column, so that a token tells where it comes from.
class Counting : public Dataset {
 public:
  Counting(int64_t rows, int64_t seq_length) : rows_(rows), seq_length_(seq_length) {}
  const std::string& name() const override { return name_; }
  int64_t seq_length() const override { return seq_length_; }
  int64_t num_rows() const override { return rows_; }
  void read_row(int64_t row, std::span<int32_t> out) const override {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int32_t>(row * 1000 + i);
  }
  std::string locate(int64_t row, int64_t column) const override {
    return fmt::format("counting, token {}", row * seq_length_ + column);
  }

 private:
  std::string name_ = "counting";
  int64_t rows_, seq_length_;
};

std::vector<int64_t> rows_of(const std::vector<Microbatch>& microbatches) {
  std::vector<int64_t> rows;
  for (const Microbatch& m : microbatches) {
    for (int64_t i = 0; i < m.rows; ++i) rows.push_back(m.input_ids[i * m.columns] / 1000);
  }
  return rows;
}

TEST(Permutation, IsABijection) {
  for (const int64_t n : {1, 2, 3, 4, 5, 7, 1000, 1024, 1025, 65537}) {
    const Permutation permutation(99, n);
    std::vector<bool> seen(n);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t value = permutation(i);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, n);
      ASSERT_FALSE(seen[value]) << n;
      seen[value] = true;
    }
  }
  const Permutation huge(1, int64_t{1} << 62);
  EXPECT_GE(huge((int64_t{1} << 62) - 1), 0);
}

TEST(Permutation, ShufflesWellAndByKey) {
  constexpr int64_t n = 10007;
  const Permutation a(1, n), b(2, n);
  int64_t fixed = 0, same = 0, neighbours = 0, in_first_half = 0;
  for (int64_t i = 0; i < n; ++i) {
    fixed += a(i) == i;
    same += a(i) == b(i);
    if (i > 0) neighbours += std::abs(a(i) - a(i - 1)) == 1;
    if (i < n / 2) in_first_half += a(i) < n / 2;
  }
  EXPECT_LT(fixed, 8);                                            // 1 expected
  EXPECT_LT(same, 8);                                             // 1 expected
  EXPECT_LT(neighbours, 12);                                      // 2 expected
  EXPECT_NEAR(static_cast<double>(in_first_half), n / 4.0, 150);  // 3 standard deviations
}

TEST(Loader, EveryLayoutReadsTheSameRows) {
  const Counting data(37, 8);
  for (const bool shuffle : {false, true}) {
    const BatchLoader one(data, {.global_batch_size = 12,
                                 .micro_batch_size = 12,
                                 .seed = 5,
                                 .shuffle = shuffle,
                                 .vocab_size = 100000});
    for (int64_t step = 0; step < 8; ++step) {
      const auto expected = rows_of(one.next(step));
      for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(expected[i], one.row_at(step * 12 + i));
      for (const int64_t dp : {1, 2, 3, 4, 12}) {
        for (const int64_t micro : {1, 2, 3}) {
          if (12 % (dp * micro) != 0) continue;
          std::vector<int64_t> rows;
          for (int64_t rank = 0; rank < dp; ++rank) {
            const BatchLoader loader(data, {.global_batch_size = 12,
                                            .micro_batch_size = micro,
                                            .dp_rank = rank,
                                            .dp_size = dp,
                                            .seed = 5,
                                            .shuffle = shuffle,
                                            .vocab_size = 100000});
            const auto microbatches = loader.next(step);
            EXPECT_EQ(static_cast<int64_t>(microbatches.size()), loader.num_microbatches());
            EXPECT_EQ(microbatches.front().rows, micro);
            const auto mine = rows_of(microbatches);
            rows.insert(rows.end(), mine.begin(), mine.end());
          }
          EXPECT_EQ(rows, expected) << "dp " << dp << " micro " << micro << " step " << step;
        }
      }
    }
  }
}

TEST(Loader, EveryEpochReadsEveryRowOnceInAnotherOrder) {
  const Counting data(37, 4);
  const BatchLoader loader(
      data, {.global_batch_size = 1, .seed = 3, .shuffle = true, .vocab_size = 100000});
  std::set<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 5; ++epoch) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < 37; ++i) order.push_back(rows_of(loader.next(epoch * 37 + i))[0]);
    EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 37u);
    EXPECT_TRUE(orders.insert(order).second);
  }
  const BatchLoader other(
      data, {.global_batch_size = 37, .seed = 4, .shuffle = true, .vocab_size = 100000});
  EXPECT_FALSE(orders.contains(rows_of(other.next(0))));
}

TEST(Loader, SaysWhereAnEpochBegins) {
  const Counting data(10, 4);
  const BatchLoader loader(data, {.global_batch_size = 4, .vocab_size = 100000});
  EXPECT_EQ(loader.epoch_begun(0), std::nullopt);  // rows 0 to 3
  EXPECT_EQ(loader.epoch_begun(1), std::nullopt);
  EXPECT_EQ(loader.epoch_begun(2), 1);  // 8 9 0 1
  EXPECT_EQ(loader.epoch_begun(3), std::nullopt);
  EXPECT_EQ(loader.epoch_begun(4), std::nullopt);  // 6 7 8 9
  EXPECT_EQ(loader.epoch_begun(5), 2);             // 0 1 2 3
  EXPECT_EQ(rows_of(BatchLoader(
                        data, {.global_batch_size = 4, .micro_batch_size = 2, .vocab_size = 100000})
                        .next(2)),
            (std::vector<int64_t>{8, 9, 0, 1}));
  const Counting few(3, 4);
  const BatchLoader wraps(few, {.global_batch_size = 8, .vocab_size = 100000});
  EXPECT_EQ(wraps.epoch_begun(0), 2);  // 0 1 2 0 1 2 0 1
  EXPECT_EQ(wraps.epoch_begun(1), 5);  // 2 0 1 2 0 1 2 0
}

TEST(Loader, ContextParallelSlicesMakeUpTheRow) {
  const Counting data(4, 24);
  const BatchLoader whole(data,
                          {.global_batch_size = 2, .micro_batch_size = 2, .vocab_size = 9999});
  const Microbatch expected = whole.next(1)[0];
  EXPECT_EQ(expected.input_ids[1], 2001);
  EXPECT_EQ(expected.target_ids[1], 2002);
  for (const int64_t cp : {2, 3, 4}) {
    std::vector<int64_t> inputs(2 * 24, -1), targets(2 * 24, -1);
    for (int64_t rank = 0; rank < cp; ++rank) {
      const BatchLoader loader(data, {.global_batch_size = 2,
                                      .micro_batch_size = 2,
                                      .cp_rank = rank,
                                      .cp_size = cp,
                                      .vocab_size = 9999});
      const Microbatch slice = loader.next(1)[0];
      ASSERT_EQ(slice.columns, 24 / cp);
      // Zig-zag: the first chunk from the front, the second as far from the end.
      EXPECT_EQ(slice.position_ids.front(), rank * 24 / (2 * cp));
      EXPECT_EQ(slice.position_ids.back(), 23 - rank * 24 / (2 * cp));
      for (int64_t row = 0; row < 2; ++row) {
        for (int64_t i = 0; i < slice.columns; ++i) {
          const int64_t at = row * 24 + slice.position_ids[i];
          EXPECT_EQ(inputs[at], -1);
          inputs[at] = slice.input_ids[row * slice.columns + i];
          targets[at] = slice.target_ids[row * slice.columns + i];
        }
      }
    }
    EXPECT_EQ(inputs, expected.input_ids);
    EXPECT_EQ(targets, expected.target_ids);
  }
}

// Token 7 ends a document. What the last token of a row begins is the next row's.
TEST(Loader, TellsDocumentsApart) {
  class Documents : public Dataset {
   public:
    const std::string& name() const override { return name_; }
    int64_t seq_length() const override { return 8; }
    int64_t num_rows() const override { return 2; }
    void read_row(int64_t row, std::span<int32_t> out) const override {
      static const std::vector<std::vector<int32_t>> rows = {{1, 7, 7, 2, 3, 4, 5, 7, 7},
                                                             {7, 1, 2, 3, 4, 5, 6, 1, 2}};
      std::ranges::copy(rows[static_cast<size_t>(row)], out.begin());
    }
    std::string locate(int64_t, int64_t) const override { return ""; }

   private:
    std::string name_ = "documents";
  } data;
  BatchLoaderOptions options{
      .global_batch_size = 2, .micro_batch_size = 2, .vocab_size = 9, .end_of_document = 7};
  using List = std::vector<int64_t>;
  const std::vector<List> begins = {{0, 2, 3}, {0, 1}};
  const Microbatch whole = BatchLoader(data, options).next(0)[0];
  EXPECT_EQ(whole.document_begins, begins);
  EXPECT_EQ(whole.position_ids, (List{0, 1, 0, 0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5, 6}));
  options.cp_size = 2, options.cp_rank = 1;  // columns 2 to 5
  const Microbatch part = BatchLoader(data, options).next(0)[0];
  EXPECT_EQ(part.document_begins, begins);
  EXPECT_EQ(part.position_ids, (List{0, 0, 1, 2, 1, 2, 3, 4}));
  options = {.global_batch_size = 2, .micro_batch_size = 2, .vocab_size = 9};
  const Microbatch unmasked = BatchLoader(data, options).next(0)[0];
  EXPECT_TRUE(unmasked.document_begins.empty());
  EXPECT_EQ(unmasked.position_ids[15], 7);
}

TEST(Loader, RefusesWhatDoesNotFit) {
  const Counting data(10, 8);
  const auto text = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const UserError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(text([&] { BatchLoader(data, {.global_batch_size = 4, .vocab_size = 2003}).next(0); }),
            "counting, token 19: 2003 is not in the model's vocabulary of 2003");
  EXPECT_EQ(text([&] {
              BatchLoader(
                  data,
                  {.global_batch_size = 4, .micro_batch_size = 3, .dp_size = 2, .vocab_size = 9});
            }),
            "training.global_batch_size 4 is no multiple of micro_batch_size 3 × dp_size 2 = 6");
  EXPECT_EQ(text([&] { BatchLoader(data, {.cp_size = 3, .vocab_size = 9}); }),
            "training.seq_length 8 is no multiple of 2 × cp_size = 6");
  EXPECT_THROW(BatchLoader(data, {.dp_rank = 2, .dp_size = 2, .vocab_size = 9}), BrokenInvariant);
}

TEST(Loader, ReadsFasterThanAnyModelLearns) {
  const auto stories = open_datasets({.name = "builtin:stories", .seq_length = 256}).train;
  const BatchLoader loader(*stories, {.global_batch_size = 64,
                                      .micro_batch_size = 16,
                                      .shuffle = true,
                                      .vocab_size = *stories->vocab_size()});
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t step = 0; step < 20; ++step) loader.next(step);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  const double rate = 20 * 64 * 256 / seconds.count();
  fmt::print("{:.1f}M tokens/s\n", rate / 1e6);
  EXPECT_GT(rate, 1e6);  // a small model on two cores learns from 20 thousand
}

}  // namespace
}  // namespace picotron
