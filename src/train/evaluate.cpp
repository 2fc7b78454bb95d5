// A slice's rows in groups of microbatches, and the sums at the end.
#include "train/evaluate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dist/collectives.h"
#include "train/batches.h"
#include "train/layout.h"

namespace picotron {
namespace {

// Bytes of the text that the targets of rows [begin, end) spell; what ends a document spells none.
int64_t bytes_of_rows(const Dataset& data, const Range& rows) {
  const auto tokenizer = data.tokenizer();
  if (tokenizer == nullptr) return 0;
  int64_t bytes = 0;
  std::vector<int32_t> row(static_cast<size_t>(data.seq_length()) + 1);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    data.read_row(i, row);
    std::vector<int32_t> targets(row.begin() + 1, row.end());
    std::erase_if(targets, [&](int32_t token) { return tokenizer->eos() == token; });
    bytes += tokenizer->num_bytes(targets);
  }
  return bytes;
}

}  // namespace

double Evaluation::perplexity() const {
  return std::exp(loss);
}

double Evaluation::bits_per_byte() const {
  if (bytes == 0) return 0;
  return loss * static_cast<double>(tokens) / (std::numbers::ln2 * static_cast<double>(bytes));
}

Evaluation evaluate(Llama& model, const Run& run, const Mesh& mesh, at::Device device) {
  const Dataset& data = *run.datasets.validation;
  const int64_t rows = data.num_rows(), dp = mesh.sizes.dp;
  const Range mine{rows * mesh.my.dp / dp, rows * (mesh.my.dp + 1) / dp};
  ScheduleOptions options = schedule_options(run.config, mesh.my.pp, /*forward_only=*/true);
  const at::Tensor sums = at::zeros({2}, at::TensorOptions(at::kDouble).device(device));
  for (int64_t row = mine.begin; row < mine.end;) {
    // As many microbatches are under way as the pipeline has stages; the last one may be smaller.
    const int64_t left = mine.end - row,
                  size = std::min(run.config.training.micro_batch_size, left);
    options.microbatches = std::min<int64_t>(options.virtual_stages(), left / size);
    const BatchLoader group(data, {.origin = row,
                                   .global_batch_size = options.microbatches * size,
                                   .micro_batch_size = size,
                                   .cp_rank = mesh.my.cp,
                                   .cp_size = mesh.sizes.cp,
                                   .vocab_size = run.architecture.vocab_size,
                                   .end_of_document = masked_document_end(run.config, data)});
    sums[0] += run_forward(make_schedule(options), model, next_batches(group, 0, device), mesh);
    row += options.microbatches * size;
  }
  // Every replica of tp has the loss; the text is counted by one rank of each slice.
  sums[0] /= mesh.sizes.tp;
  if (mesh.my.tp == 0 && mesh.my.pp == 0 && mesh.my.cp == 0)
    sums[1] = static_cast<double>(bytes_of_rows(data, mine));
  all_reduce(sums, mesh.world).wait();
  const int64_t tokens = rows * data.seq_length();
  return {.rows = rows,
          .tokens = tokens,
          .bytes = static_cast<int64_t>(sums[1].item<double>()),
          .loss = sums[0].item<double>() / static_cast<double>(tokens)};
}

}  // namespace picotron
