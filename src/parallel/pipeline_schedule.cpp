// The lists of actions that pipeline_schedule.h describes: computation first, messages by one rule.
#include "parallel/pipeline_schedule.h"

#include <algorithm>
#include <optional>

#include "core/error.h"

namespace picotron {
namespace {

// The order in which a stage meets (microbatch, chunk): a group of `stages` microbatches goes
// through chunk 0, then through chunk 1, …, and then the next group. Every stage has the same
// order, so a microbatch is back from the end of the ring just when its next chunk is due.
//
// Megatron-LM wants whole groups. Here the last one is filled up with microbatches that do not
// exist, and then left out of the lists: a list that lacks some microbatches waits for nothing that
// the full one does not, so it cannot deadlock where that does not.
struct Order {
  int stages, chunks;
  int64_t microbatches;

  int64_t size() const {
    return (microbatches + stages - 1) / stages * stages * chunks;  // with those that do not exist
  }
  // Nothing where the microbatch does not exist.
  std::optional<Action> at(ActionKind kind, int64_t position) const {
    const int64_t of_group = int64_t{stages} * chunks;
    const int64_t microbatch = position / of_group * stages + position % stages;
    if (microbatch >= microbatches) return std::nullopt;
    const int chunk = static_cast<int>(position % of_group / stages);
    return Action{kind, microbatch, kind == ActionKind::forward ? chunk : chunks - 1 - chunk};
  }
};

Schedule all_forward(const ScheduleOptions& o) {
  const Order order{o.stages, o.chunks, o.microbatches};
  Schedule schedule;
  for (int64_t i = 0; i < order.size(); ++i) {
    if (const auto action = order.at(ActionKind::forward, i)) schedule.push_back(*action);
  }
  return schedule;
}

Schedule all_forward_all_backward(const ScheduleOptions& o) {
  Schedule schedule = all_forward(o);
  for (int64_t i = 0; i < o.microbatches; ++i) schedule.push_back({ActionKind::backward, i});
  return schedule;
}

Schedule one_forward_one_backward(const ScheduleOptions& o) {
  const int64_t ahead = std::min<int64_t>(o.stages - 1 - o.stage, o.microbatches);
  Schedule schedule;
  for (int64_t i = 0; i < o.microbatches + ahead; ++i) {
    if (i < o.microbatches) schedule.push_back({ActionKind::forward, i});
    if (i >= ahead) schedule.push_back({ActionKind::backward, i - ahead});
  }
  return schedule;
}

// 1F1B over (microbatch, chunk). Ahead are the chunks before the last of the first group, and twice
// the way to the last stage: a microbatch's forward has to get there and its backward to come back.
Schedule interleaved(const ScheduleOptions& o) {
  if (o.chunks == 1) return one_forward_one_backward(o);
  const Order order{o.stages, o.chunks, o.microbatches};
  const int64_t ahead = std::min<int64_t>(
      order.size(), int64_t{2} * (o.stages - 1 - o.stage) + int64_t{o.stages} * (o.chunks - 1));
  Schedule schedule;
  const auto append = [&](ActionKind kind, int64_t position) {
    if (const auto action = order.at(kind, position)) schedule.push_back(*action);
  };
  for (int64_t i = 0; i < order.size() + ahead; ++i) {
    if (i < order.size()) append(ActionKind::forward, i);
    if (i >= ahead) append(ActionKind::backward, i - ahead);
  }
  return schedule;
}

// A stage late in the pipeline waits at the start, one early in it at the end. So stage s keeps
// back s weight gradients, and 1F1B's waits of the end are filled with weight gradients.
Schedule zero_bubble(const ScheduleOptions& o) {
  const int64_t ahead = std::min<int64_t>(o.stages - 1 - o.stage, o.microbatches);
  Schedule schedule;
  int64_t weights = 0;
  for (int64_t i = 0; i < o.microbatches + ahead; ++i) {
    if (i < o.microbatches) schedule.push_back({ActionKind::forward, i});
    if (i < ahead) continue;
    schedule.push_back({ActionKind::backward_input, i - ahead});
    if (i - ahead >= o.stage) schedule.push_back({ActionKind::backward_weight, weights++});
  }
  while (weights < o.microbatches) schedule.push_back({ActionKind::backward_weight, weights++});
  return schedule;
}

Schedule computation_of(const ScheduleOptions& o) {
  if (o.forward_only) return all_forward(o);
  switch (o.engine) {
    case PpEngine::afab:
      return all_forward_all_backward(o);
    case PpEngine::one_f_one_b:
      return one_forward_one_backward(o);
    case PpEngine::interleaved:
      return interleaved(o);
    case PpEngine::zb_h1:
      return zero_bubble(o);
  }
  throw BrokenInvariant("a pipeline engine without a schedule");
}

}  // namespace

Schedule make_schedule(const ScheduleOptions& options) {
  check(0 <= options.stage && options.stage < options.stages, "a stage is one of the stages");
  check(options.chunks >= 1 && options.microbatches >= 0, "a schedule has chunks");
  check(options.chunks == 1 || options.engine == PpEngine::interleaved,
        "only the interleaved schedule has more than one chunk a stage");
  return add_messages(computation_of(options), options);
}

Schedule add_messages(const Schedule& computation, const ScheduleOptions& options) {
  const int last = options.virtual_stages() - 1;
  Schedule schedule;
  const auto receive_for = [&](const Action& action) {
    const int place = options.virtual_stage(action.chunk);
    if (action.kind == ActionKind::forward) {
      if (place > 0)
        schedule.push_back({ActionKind::receive_activation, action.microbatch, action.chunk});
    } else if (action.kind != ActionKind::backward_weight && place < last) {
      schedule.push_back({ActionKind::receive_gradient, action.microbatch, action.chunk});
    }
  };
  const auto send_from = [&](const Action& action) {
    const int place = options.virtual_stage(action.chunk);
    if (action.kind == ActionKind::forward) {
      if (place < last)
        schedule.push_back({ActionKind::send_activation, action.microbatch, action.chunk});
    } else if (action.kind != ActionKind::backward_weight && place > 0) {
      schedule.push_back({ActionKind::send_gradient, action.microbatch, action.chunk});
    }
  };
  if (!computation.empty()) receive_for(computation.front());
  for (size_t i = 0; i < computation.size(); ++i) {
    if (i + 1 < computation.size()) receive_for(computation[i + 1]);
    schedule.push_back(computation[i]);
    send_from(computation[i]);
  }
  return schedule;
}

bool is_message(ActionKind kind) {
  return kind >= ActionKind::receive_activation;
}

bool is_send(ActionKind kind) {
  return kind == ActionKind::send_activation || kind == ActionKind::send_gradient;
}

const char* name_of(ActionKind kind) {
  constexpr const char* names[] = {"forward",          "backward",           "backward_input",
                                   "backward_weight",  "receive_activation", "send_activation",
                                   "receive_gradient", "send_gradient"};
  return names[static_cast<size_t>(kind)];
}

std::vector<int64_t> split_layers(int64_t layers, int virtual_stages, double embedding,
                                  double head) {
  check(layers >= virtual_stages, "each virtual stage has a layer");
  std::vector<int64_t> count(static_cast<size_t>(virtual_stages), 1);
  std::vector<double> cost(count.size(), 1);
  cost.front() += embedding;
  cost.back() += head;
  // Each further layer goes where it costs least: optimal, since all layers cost the same.
  for (int64_t left = layers - virtual_stages; left > 0; --left) {
    const auto cheapest = std::min_element(cost.begin(), cost.end());
    *cheapest += 1;
    ++count[static_cast<size_t>(cheapest - cost.begin())];
  }
  return count;
}

}  // namespace picotron
