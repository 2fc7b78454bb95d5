// From rows of a data set to tensors of a rank.
#include "train/batches.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"
#include "dist/collectives.h"
#include "train/layout.h"

namespace picotron {
namespace {

BatchLoaderOptions loader_options(const Run& run, const Mesh& mesh, const Dataset& data) {
  return {.global_batch_size = global_batch_size(run.config),
          .micro_batch_size = run.config.training.micro_batch_size,
          .dp_rank = mesh.my.dp,
          .dp_size = mesh.sizes.dp,
          .cp_rank = mesh.my.cp,
          .cp_size = mesh.sizes.cp,
          .vocab_size = run.architecture.vocab_size,
          .end_of_document = masked_document_end(run.config, data)};
}

}  // namespace

std::optional<int32_t> masked_document_end(const Config& config, const Dataset& data) {
  if (!config.dataset.document_masking) return std::nullopt;
  if (const auto end = data.end_of_document()) return end;
  throw user_error(
      "dataset.document_masking: nothing says which token ends a document of {}; set "
      "dataset.tokenizer to the one its tokens were made with, or document_masking false",
      data.name());
}

BatchLoader training_loader(const Run& run, const Mesh& mesh, int64_t steps_done) {
  BatchLoaderOptions options = loader_options(run, mesh, *run.datasets.train);
  options.origin = run.data.position - steps_done * options.global_batch_size;
  options.seed = run.data.seed;
  options.shuffle = run.data.shuffle;
  return BatchLoader(*run.datasets.train, options);
}

std::vector<TokenBatch> next_batches(const BatchLoader& loader, int64_t step, at::Device device) {
  std::vector<TokenBatch> batches;
  for (const Microbatch& m : loader.next(step)) {
    const auto on_device = [&](const std::vector<int64_t>& values) {
      return at::tensor(values, at::kLong).to(at::TensorOptions(device), /*non_blocking=*/true);
    };
    batches.push_back({m.rows, m.columns, on_device(m.input_ids), on_device(m.target_ids),
                       on_device(m.position_ids), m.document_begins});
  }
  return batches;
}

double validate(Llama& model, const Run& run, const Mesh& mesh, at::Device device) {
  const Dataset& data = *run.datasets.validation;
  const BatchLoader loader(data, loader_options(run, mesh, data));
  const int64_t whole_batches = data.num_rows() / global_batch_size(run.config);
  const int64_t batches =
      std::min(run.config.training.eval_steps, std::max<int64_t>(whole_batches, 1));
  const Schedule forwards = schedule_of_stage(run.config, mesh.my.pp, /*forward_only=*/true);
  const at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(device));
  for (int64_t i = 0; i < batches; ++i)
    loss.add_(run_forward(forwards, model, next_batches(loader, i, device), mesh));
  all_reduce(loss, mesh.world).wait();
  return loss.item<double>() /
         static_cast<double>(batches * tokens_per_step(run.config) * mesh.sizes.tp);
}

}  // namespace picotron
