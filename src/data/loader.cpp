// The rule of loader.h in code: position → row, and this rank's rows and columns of a step. Every
// token is checked against the vocabulary here, before it becomes an index.
#include "data/loader.h"

#include "core/error.h"
#include "data/permutation.h"

namespace picotron {
namespace {

// This rank's columns of a row: chunks cp_rank and 2·cp_size − 1 − cp_rank of 2·cp_size.
std::vector<int64_t> zigzag_columns(int64_t seq_length, int64_t cp_rank, int64_t cp_size) {
  std::vector<int64_t> columns;
  if (cp_size == 1) {
    for (int64_t i = 0; i < seq_length; ++i) columns.push_back(i);
    return columns;
  }
  const int64_t chunk = seq_length / (2 * cp_size);
  for (const int64_t which : {cp_rank, 2 * cp_size - 1 - cp_rank}) {
    for (int64_t i = 0; i < chunk; ++i) columns.push_back(which * chunk + i);
  }
  return columns;
}

// The columns at which documents begin. The first one may have begun in the row before.
std::vector<int64_t> documents_of(const std::vector<int32_t>& row, std::optional<int32_t> end) {
  std::vector<int64_t> begins = {0};
  const int64_t columns = std::ssize(row) - 1;
  for (int64_t column = 1; column < columns && end; ++column)
    if (row[static_cast<size_t>(column) - 1] == *end) begins.push_back(column);
  return begins;
}

}  // namespace

BatchLoader::BatchLoader(const Dataset& dataset, const BatchLoaderOptions& options)
    : dataset_(dataset), options_(options) {
  const auto& o = options_;
  check(o.micro_batch_size >= 1 && o.dp_size >= 1 && o.cp_size >= 1, "sizes are at least 1");
  check(o.dp_rank >= 0 && o.dp_rank < o.dp_size, "dp_rank is a rank of dp");
  check(o.cp_rank >= 0 && o.cp_rank < o.cp_size, "cp_rank is a rank of cp");
  check(o.vocab_size >= 1, "the model has a vocabulary");
  if (o.global_batch_size < 1 || o.global_batch_size % (o.micro_batch_size * o.dp_size) != 0) {
    throw user_error(
        "training.global_batch_size {} is no multiple of micro_batch_size {} × dp_size {} = {}",
        o.global_batch_size, o.micro_batch_size, o.dp_size, o.micro_batch_size * o.dp_size);
  }
  if (o.cp_size > 1 && dataset.seq_length() % (2 * o.cp_size) != 0) {
    throw user_error("training.seq_length {} is no multiple of 2 × cp_size = {}",
                     dataset.seq_length(), 2 * o.cp_size);
  }
  columns_ = zigzag_columns(dataset.seq_length(), o.cp_rank, o.cp_size);
}

int64_t BatchLoader::num_microbatches() const {
  return options_.global_batch_size / (options_.micro_batch_size * options_.dp_size);
}

int64_t BatchLoader::row_at(int64_t position) const {
  const int64_t num_rows = dataset_.num_rows();
  const int64_t epoch = position / num_rows, i = position % num_rows;
  if (!options_.shuffle) return i;
  return Permutation(combine_keys(options_.seed, static_cast<uint64_t>(epoch)), num_rows)(i);
}

std::optional<int64_t> BatchLoader::epoch_begun(int64_t step) const {
  const int64_t begin = options_.origin + step * options_.global_batch_size;
  const int64_t last = begin + options_.global_batch_size - 1;
  const int64_t epoch = last / dataset_.num_rows();
  if (epoch == 0 || epoch * dataset_.num_rows() < begin) return std::nullopt;
  return epoch;
}

std::vector<Microbatch> BatchLoader::next(int64_t step) const {
  const int64_t rows = options_.micro_batch_size;
  const auto columns = static_cast<int64_t>(columns_.size());
  int64_t position = options_.origin + step * options_.global_batch_size +
                     options_.dp_rank * options_.global_batch_size / options_.dp_size;
  std::vector<int32_t> tokens(dataset_.seq_length() + 1);
  std::vector<Microbatch> microbatches(num_microbatches());
  for (Microbatch& microbatch : microbatches) {
    microbatch.rows = rows;
    microbatch.columns = columns;
    microbatch.input_ids.reserve(rows * columns);
    microbatch.target_ids.reserve(rows * columns);
    for (int64_t i = 0; i < rows; ++i, ++position) {
      const int64_t row = row_at(position);
      dataset_.read_row(row, tokens);
      for (size_t column = 0; column < tokens.size(); ++column) {
        if (tokens[column] >= options_.vocab_size) {
          throw user_error("{}: {} is not in the model's vocabulary of {}",
                           dataset_.locate(row, static_cast<int64_t>(column)), tokens[column],
                           options_.vocab_size);
        }
      }
      const std::vector<int64_t> begins = documents_of(tokens, options_.end_of_document);
      size_t document = 0;
      for (const int64_t column : columns_) {
        while (document + 1 < begins.size() && begins[document + 1] <= column) ++document;
        microbatch.position_ids.push_back(column - begins[document]);
        microbatch.input_ids.push_back(tokens[column]);
        microbatch.target_ids.push_back(tokens[column + 1]);
      }
      if (options_.end_of_document) microbatch.document_begins.push_back(begins);
    }
  }
  return microbatches;
}

}  // namespace picotron
