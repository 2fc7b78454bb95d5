// The only loop over a schedule's actions.
#include "parallel/pipeline_parallel.h"

#include <ATen/ATen.h>

#include <deque>
#include <functional>
#include <map>
#include <utility>

#include "core/error.h"
#include "core/record.h"

namespace picotron {
namespace {

// A tensor that comes from a neighbour. Undefined where no list asks for one: at the two ends.
struct Arriving {
  at::Tensor tensor;
  Work arrival = {};
  at::Tensor take() {
    arrival.wait();
    return std::exchange(tensor, {});
  }
};

// One microbatch in one chunk of this stage, as far as it has come.
struct UnderWay {
  Arriving x, dy;
  at::Tensor y, dx;  // until they are sent
  std::unique_ptr<Saved> saved;
  std::vector<Gradients::Product> products;  // of a backward whose weight half is to come
};

// The way out of a stage in one direction. Works hold their tensors.
class Outbox {
 public:
  explicit Outbox(const Group& link) : link_(link) {}
  bool leads_to_myself() const { return link_.size() == 1; }
  void send_on(const at::Tensor& tensor) {
    check(tensor.defined(), "a send follows what computes its tensor");
    if (sends_.size() == kSendsUnderWay) {
      sends_.front().wait();
      sends_.pop_front();
    }
    sends_.push_back(send(tensor.contiguous(), /*to=*/1, link_));
  }
  void finish() {
    for (Work& work : sends_) work.wait();
  }

 private:
  const Group& link_;
  std::deque<Work> sends_;
};

using Compute = std::function<void(const Action&, const TokenBatch&, UnderWay&)>;

// Runs the list: messages here, the rest by `compute`.
void run_list(const Schedule& schedule, const Stage& stage, const std::vector<TokenBatch>& batches,
              const PipelineGroups& links, const Compute& compute) {
  std::map<std::pair<int64_t, int>, UnderWay> all;
  Outbox activations(links.activations_out), gradients(links.gradients_out);
  const auto start_receive = [&](Arriving& arriving, const TokenBatch& batch, const Group& link) {
    if (link.size() == 1) return;  // I shall put it there myself
    arriving.tensor = stage.empty_input(batch);
    arriving.arrival = receive(arriving.tensor, /*from=*/0, link);
  };
  for (const Action& action : schedule) {
    UnderWay& here = all[{action.microbatch, action.chunk}];
    const TokenBatch& batch = batches.at(static_cast<size_t>(action.microbatch));
    const record::Scope scope({.kind = record::Kind::action,
                               .what = name_of(action.kind),
                               .shape = {action.microbatch, action.chunk}});
    switch (action.kind) {
      case ActionKind::receive_activation:
        start_receive(here.x, batch, links.activations_in);
        break;
      case ActionKind::receive_gradient:
        start_receive(here.dy, batch, links.gradients_in);
        break;
      case ActionKind::send_activation: {
        const at::Tensor y = std::exchange(here.y, {});
        if (activations.leads_to_myself()) {
          all[{action.microbatch, action.chunk + 1}].x.tensor = y;
        } else {
          activations.send_on(y);
        }
        break;
      }
      case ActionKind::send_gradient: {
        const at::Tensor dx = std::exchange(here.dx, {});
        if (gradients.leads_to_myself()) {
          all[{action.microbatch, action.chunk - 1}].dy.tensor = dx;
        } else {
          gradients.send_on(dx);
        }
        break;
      }
      default:
        compute(action, batch, here);
    }
  }
  activations.finish();
  gradients.finish();
}

}  // namespace

at::Tensor run_schedule(const Schedule& schedule, Stage& stage,
                        const std::vector<TokenBatch>& batches, double scale, Gradients& gradients,
                        const Mesh& mesh) {
  const at::Tensor loss = at::zeros({}, gradients.flat().options().dtype(at::kDouble));
  gradients.begin_step(static_cast<int64_t>(batches.size()));
  run_list(schedule, stage, batches, mesh.pipeline,
           [&](const Action& action, const TokenBatch& batch, UnderWay& here) {
             switch (action.kind) {
               case ActionKind::forward:
                 here.y = stage.forward(action.chunk, batch, here.x.take(), here.saved);
                 break;
               case ActionKind::backward_weight:
                 for (const Gradients::Product& product : std::exchange(here.products, {})) {
                   const record::About about(product.weight->index);
                   gradients.accumulate(*product.weight, product.dy, product.x);
                 }
                 break;
               default:
                 check(here.saved != nullptr, "a backward comes after its forward");
                 here.y.reset();  // of the last virtual stage, which sends it to nobody
                 gradients.queue_products(action.kind == ActionKind::backward_input);
                 here.dx = stage.backward(action.chunk, batch, here.dy.take(),
                                          std::move(here.saved), scale, loss, gradients);
                 gradients.queue_products(false);
                 here.products = gradients.take_queue();
             }
           });
  gradients.finish();
  return loss * scale;
}

at::Tensor run_forward(const Schedule& schedule, Stage& stage,
                       const std::vector<TokenBatch>& batches, const Mesh& mesh) {
  check(!batches.empty(), "a validation has a batch");
  const at::Tensor loss =
      at::zeros({}, at::TensorOptions(at::kDouble).device(batches.front().ids.device()));
  run_list(schedule, stage, batches, mesh.pipeline,
           [&](const Action& action, const TokenBatch& batch, UnderWay& here) {
             here.y = stage.evaluate(action.chunk, batch, here.x.take(), loss);
           });
  return loss;
}

}  // namespace picotron
