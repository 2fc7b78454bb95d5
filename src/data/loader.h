// Which rank reads which row. The rule knows nothing of the layout, so that the losses of a run are
// the same in every one (one curve):
//
//   position p = 0, 1, 2, …    step = (p − origin) / global_batch_size     epoch = p / num_rows
//   row        = p mod num_rows, or permutation(seed, epoch)[p mod num_rows] under shuffle
//
// A step's global batch is cut into dp_size contiguous slices, and a slice into microbatches in
// order. Context parallel cuts each row's columns into 2·cp chunks and gives rank c the chunks c
// and 2·cp−1−c, so that under the causal mask each rank has the same work ("zig-zag", Zhu 2024,
// https://github.com/zhuzilin/ring-flash-attention; Llama 3, section 3.3.2):
//
//   cp 2    columns  | 0 | 1 | 2 | 3 |       rank 0: 0 and 3      rank 1: 1 and 2
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "data/dataset.h"

namespace picotron {

struct Microbatch {
  int64_t rows = 0;                   // micro_batch_size
  int64_t columns = 0;                // seq_length / cp_size
  std::vector<int64_t> input_ids;     // [rows, columns], row-major
  std::vector<int64_t> target_ids;    // [rows, columns]
  std::vector<int64_t> position_ids;  // [rows, columns], counted from the document's beginning
  // Of each row the columns, of the whole row, at which its documents begin, ascending from 0.
  // Empty where documents are not told apart: a row is one document.
  std::vector<std::vector<int64_t>> document_begins;
};

struct BatchLoaderOptions {
  int64_t origin = 0;             // position of step 0: below 0 where a run went on with other data
  int64_t global_batch_size = 1;  // rows of a step; micro_batch_size · dp_size divides it
  int64_t micro_batch_size = 1;
  int64_t dp_rank = 0, dp_size = 1;
  int64_t cp_rank = 0, cp_size = 1;
  uint64_t seed = 0;
  bool shuffle = false;
  int64_t vocab_size = 0;  // the model's
  // The token that ends a document: the one after it begins another. None: a row is one document.
  std::optional<int32_t> end_of_document = {};
};

class BatchLoader {
 public:
  // `dataset` outlives the loader. UserError where the sizes do not divide.
  BatchLoader(const Dataset& dataset, const BatchLoaderOptions& options);

  // This rank's microbatches of step `step`, from 0. No state: any step, in any order, any number
  // of times. UserError for a token the vocabulary does not hold, naming where it lies.
  std::vector<Microbatch> next(int64_t step) const;

  // The epoch, from 1 for the first repetition, that begins within step `step` (the last one where
  // a step is longer than the data); none where none begins. So the loop can say that data repeats.
  std::optional<int64_t> epoch_begun(int64_t step) const;

  int64_t num_microbatches() const;  // per step and rank

  // The row of the data set at position `position` of the run.
  int64_t row_at(int64_t position) const;

 private:
  const Dataset& dataset_;
  BatchLoaderOptions options_;
  std::vector<int64_t> columns_;  // of a row, that are this rank's, in order
};

}  // namespace picotron
