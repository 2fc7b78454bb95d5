// The only loop over a schedule's actions.
#include "parallel/pipeline_parallel.h"

#include <ATen/ATen.h>

#include <map>

#include "core/error.h"
#include "core/record.h"

namespace picotron {

at::Tensor run_schedule(const Schedule& schedule, Stage& stage,
                        const std::vector<TokenBatch>& batches, double scale,
                        Gradients& gradients) {
  std::vector<std::unique_ptr<Saved>> saved(batches.size());
  const at::Tensor loss = at::zeros({}, gradients.flat().options().dtype(at::kDouble));
  gradients.begin_step(static_cast<int64_t>(batches.size()));
  for (const Action& action : schedule) {
    const auto i = static_cast<size_t>(action.microbatch);
    const bool forward = action.kind == ActionKind::forward;
    const record::Scope scope({.kind = record::Kind::action,
                               .what = forward ? "forward" : "backward",
                               .shape = {action.microbatch, action.chunk}});
    if (forward) {
      stage.forward(action.chunk, batches[i], {}, saved[i]);
    } else {
      check(saved[i] != nullptr, "a backward comes after its forward");
      stage.backward(action.chunk, batches[i], {}, std::move(saved[i]), scale, loss, gradients);
    }
  }
  gradients.finish();
  return loss * scale;
}

}  // namespace picotron
