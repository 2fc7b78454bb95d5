// Who says what: the record has shapes and places, the model its weights, the mesh its groups.
#include "train/explain.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "dist/launch.h"
#include "train/layout.h"
#include "train/train.h"

namespace picotron {
namespace {

using record::Axis;
using record::Entry;
using record::Kind;

constexpr size_t kEntries = 16384;  // of one step and one rank

// A dim of a tensor: how much of it is on this rank.
struct Size {
  int64_t here = 0, whole = 0;
  std::string text() const {
    return here == whole ? fmt::format("{}", here) : fmt::format("{} of {}", here, whole);
  }
};

struct WeightFacts {
  std::string names;  // "q_proj, k_proj, v_proj"
  std::string layer;  // "layer 3"; "" outside of the layers
  bool is_norm = false;
  Size rows, columns;
};

// What the record does not know, of one rank. Taken while model and mesh live.
struct Facts {
  int global_rank = 0;
  AxisSizes sizes;
  std::string mesh_order;
  std::map<std::pair<Axis, int>, std::vector<int>> groups;  // by axis and number of ranks
  std::vector<WeightFacts> weights;
  int64_t heads = 0, tokens = 0, columns = 0;  // of the whole model; of a microbatch on this rank
};

// The newest entry's sequence at the borders between the phases.
struct Borders {
  uint64_t begin = 0, backward = 0, update = 0;
};

// "model.layers.3.self_attn.q_proj.weight" → "q_proj", "layer 3".
std::string short_name(const std::string& name) {
  const std::string module = name.substr(0, name.rfind('.'));
  return module.substr(module.rfind('.') + 1);
}

std::string layer_name(const std::string& name) {
  constexpr std::string_view prefix = "model.layers.";
  if (!name.starts_with(prefix)) return "";
  return "layer " + name.substr(prefix.size(), name.find('.', prefix.size()) - prefix.size());
}

WeightFacts facts_of(const Weight& weight, const std::vector<Parameter>& list) {
  WeightFacts facts{.names = "",
                    .layer = layer_name(list[weight.first].name),
                    .is_norm = list[weight.first].role == Role::norm};
  for (size_t i = weight.first; i < weight.first + weight.count; ++i) {
    const Parameter& parameter = list[i];
    facts.names += (facts.names.empty() ? "" : ", ") + short_name(parameter.name);
    facts.rows.here += parameter.local_shape().front();
    facts.rows.whole += parameter.full_shape.front();
    facts.columns = {parameter.local_shape().back(), parameter.full_shape.back()};
  }
  return facts;
}

Facts facts_of(const StepView& view, const Config& config) {
  const Mesh& mesh = view.mesh;
  const Training& training = config.training;
  const int64_t columns = training.seq_length / mesh.sizes.cp;
  Facts facts{.global_rank = mesh.global_rank,
              .sizes = mesh.sizes,
              .mesh_order = config.distributed.mesh_order,
              .groups = {},
              .weights = {},
              .heads = view.model.config().num_attention_heads,
              .tokens = training.micro_batch_size * columns,
              .columns = columns};
  for (const Group* group : {&mesh.tp, &mesh.key_value, &mesh.cp, &mesh.dp_cp, &mesh.world})
    facts.groups[{group->axis, group->size()}] = group->global_ranks;
  const Parameters& parameters = view.model.parameters();
  for (const Weight& weight : parameters.weights())
    facts.weights.push_back(facts_of(weight, parameters.list()));
  return facts;
}

std::string place(int global_rank, const Facts& facts) {
  return place_of(global_rank, facts.sizes, facts.mesh_order);
}

// A rank as a message names it: "rank 4 (dp 0, pp 1)".
std::string named(int global_rank, const Facts& facts) {
  return fmt::format("rank {} ({})", global_rank, place(global_rank, facts));
}

std::string shape_of(const Entry& entry) {
  std::string text;
  for (const int64_t size : entry.shape) {
    if (size == 0) break;
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return "[" + text + "]";
}

std::string product_text(const Entry& entry, const WeightFacts& weight, const Facts& facts) {
  const auto tokens = [&](int64_t size) {
    return Size{size, size == facts.tokens ? size * facts.sizes.cp : size}.text();
  };
  const std::string rows = weight.rows.text(), columns = weight.columns.text();
  const std::string_view what = entry.what;
  // A sum over a dim that is cut leaves a summand on each rank.
  const auto partial = [](const Size& summed) {
    return summed.here == summed.whole ? "" : " partial(tp)";
  };
  if (what == "linear_forward")
    return fmt::format("x [{0}, {2}] · W[{1}, {2}]ᵀ → y [{0}, {1}]{3}", tokens(entry.shape[0]),
                       rows, columns, partial(weight.columns));
  if (what == "linear_input_gradient")
    return fmt::format("dy [{0}, {1}] · W[{1}, {2}] → dx [{0}, {2}]{3}", tokens(entry.shape[0]),
                       rows, columns, partial(weight.rows));
  const bool replicas = facts.sizes.dp * facts.sizes.cp > 1;
  return fmt::format("dy [{0}, {1}]ᵀ · x [{0}, {2}] → dW [{1}, {2}]{3}", tokens(entry.shape[2]),
                     rows, columns, replicas ? " partial(dp_cp)" : "");
}

std::string collective_text(const Entry& entry, const Facts& facts) {
  const std::string_view what = entry.what;
  const std::string axis = record::name_of(entry.axis), shape = shape_of(entry);
  const std::string change = what == "all_reduce" ? fmt::format("{} partial({}) → sum", shape, axis)
                             : what == "reduce_scatter"
                                 ? fmt::format("{} partial({}) → sum of my part", shape, axis)
                                 : fmt::format("my part → {}", shape);
  const auto& group = facts.groups.at({entry.axis, entry.ranks});
  return fmt::format("{}   over {} {{{}}}, {} bytes sent", change, axis, fmt::join(group, ", "),
                     entry.bytes);
}

std::string text_of(const Entry& entry, const WeightFacts* weight, const Facts& facts) {
  const std::string_view what = entry.what;
  switch (entry.kind) {
    case Kind::product:
      check(weight != nullptr, "every product of a step is of a layer that names its weight");
      return product_text(entry, *weight, facts);
    case Kind::attention:
      return fmt::format("q [{} rows, {} heads, {} tokens, {}]", entry.shape[0],
                         Size{entry.shape[1], facts.heads}.text(),
                         Size{entry.shape[2], facts.columns * facts.sizes.cp}.text(),
                         entry.shape[3]);
    case Kind::collective:
      return collective_text(entry, facts);
    case Kind::send_receive:
      if (what == "send")
        return fmt::format("{} → {}, {} bytes sent", shape_of(entry), named(entry.peer, facts),
                           entry.bytes);
      return fmt::format("{} ← {}", shape_of(entry), named(entry.peer, facts));
    case Kind::optimizer:
      return fmt::format("{} elements that I own", entry.shape[0]);
    default:
      return "";
  }
}

// A weight outside of the layers: what of the model it is, in this action.
std::string part_of(const WeightFacts& weight, const Event& event, bool layers_are_done) {
  if (!weight.layer.empty()) return weight.layer;
  if (weight.is_norm) return "last norm";
  const bool backward = event.action.starts_with("backward");
  return backward && !layers_are_done ? "head and loss" : "embedding";
}

bool names_no_weight(const Event& event) {
  const Entry& entry = event.entry;
  return entry.kind == Kind::attention ||
         (entry.kind == Kind::send_receive && entry.axis == Axis::cp);
}

// Attention and its ring know no weight. They stand between q, k, v and o: forward before the
// product of o, backward after it.
void give_attention_its_layer(std::vector<Event>& events) {
  for (size_t begin = 0; begin < events.size(); ++begin) {
    if (!names_no_weight(events[begin])) continue;
    size_t end = begin;
    bool backward = false;
    for (; end < events.size() && names_no_weight(events[end]); ++end)
      backward = backward || std::string_view(events[end].entry.what) == "attention_backward";
    const std::string& layer = events.at(backward ? begin - 1 : end).part;
    for (size_t i = begin; i < end; ++i) events[i].part = layer;
    begin = end;
  }
}

Phase phase_of(const Entry& entry, const Borders& borders) {
  if (entry.sequence <= borders.backward) return Phase::schedule;
  if (entry.sequence > borders.update) return Phase::reading;
  return entry.axis == Axis::world ? Phase::clip : Phase::update;
}

RankStory story_of(const std::vector<Entry>& entries, const Borders& borders, const Facts& facts) {
  check(!entries.empty() && entries.front().sequence <= borders.begin + 1,
        "the record holds a whole step");
  RankStory story{facts.global_rank, place(facts.global_rank, facts), {}};
  Event now;  // the action that goes on
  bool layers_are_done = false;
  for (const Entry& entry : entries) {
    if (entry.sequence <= borders.begin) continue;
    if (entry.kind == Kind::action) {
      now.action = entry.what;
      now.microbatch = entry.shape[0], now.chunk = entry.shape[1];
      layers_are_done = false;
    }
    if (now.action.empty()) continue;  // what comes before a first step
    Event event = now;
    event.entry = entry;
    event.phase = phase_of(entry, borders);
    if (event.phase != Phase::schedule) event.action = "";
    const WeightFacts* weight =
        entry.about < 0 ? nullptr : &facts.weights.at(static_cast<size_t>(entry.about));
    if (weight != nullptr) {
      event.weight = weight->names;
      event.part = part_of(*weight, event, layers_are_done);
      layers_are_done = layers_are_done || !weight->layer.empty();
    }
    event.text = text_of(entry, weight, facts);
    story.events.push_back(std::move(event));
  }
  give_attention_its_layer(story.events);
  return story;
}

// Tells one rank's step once it has been read.
TrainObserver storyteller(const Config& config, int64_t step, record::Recorder& recorder,
                          RankStory& story) {
  struct Notes {
    Borders borders;
    Facts facts;
  };
  const auto notes = std::make_shared<Notes>();
  const auto now = [&recorder] { return recorder.newest().sequence; };
  return {.after_backward =
              [=](const StepView& view) {
                if (view.step == step) notes->borders.backward = now();
              },
          .after_update =
              [=, &config](const StepView& view) {
                if (view.step != step) return;
                notes->borders.update = now();
                notes->facts = facts_of(view, config);
              },
          .after_reading =
              [=, &recorder, &story](const StepMetrics& metrics) {
                if (metrics.step == step - 1) notes->borders.begin = now();
                if (metrics.step == step)
                  story = story_of(recorder.entries(), notes->borders, notes->facts);
              }};
}

// "src/parallel/tensor_parallel.cpp:82", however the compiler was called.
std::string location(const Entry& entry) {
  const std::string_view file = entry.file;
  const size_t src = file.rfind("src/");
  return fmt::format("{}:{}", src == std::string_view::npos ? file : file.substr(src), entry.line);
}

std::string heading(const Event& event) {
  switch (event.phase) {
    case Phase::schedule: {
      std::string action = event.action;
      std::replace(action.begin(), action.end(), '_', ' ');
      return fmt::format("{} · microbatch {}, chunk {}", action, event.microbatch, event.chunk);
    }
    case Phase::clip:
      return "norm of the gradient, and the factor that clips it";
    case Phase::update:
      return "update of what I own, and everybody's new values";
    case Phase::reading:
      return "loss, stop flags and bytes, summed over the world";
  }
  throw BrokenInvariant("every phase is handled");
}

// "Sent: tp 4608, dp_cp 31000 bytes."
std::string summary(const std::vector<Event>& events) {
  record::Bytes bytes{};
  for (const Event& event : events)
    bytes[static_cast<size_t>(event.entry.axis)] += event.entry.bytes;
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == 0) continue;
    text += fmt::format("{} {} {}", text.empty() ? "" : ",", record::name_of(static_cast<Axis>(i)),
                        bytes[i]);
  }
  return text.empty() ? "Nothing was sent." : fmt::format("Sent in this step:{} bytes.", text);
}

}  // namespace

std::vector<RankStory> explain_step(const ShrunkRun& shrunk, int64_t step) {
  Run run = rehearse(shrunk);
  run.config.training.total_train_steps = step;
  std::vector<RankStory> stories(static_cast<size_t>(world_size(run.config)));
  const int code =
      launch({.world_size = static_cast<int>(stories.size()),
              .ranks = Ranks::threads,
              .threads_per_rank = 1,
              .argv = {},
              .ends_at_once = true},
             [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
               record::Recorder recorder(rendezvous.global_rank, kEntries);
               const record::Attach attached(&recorder);
               const auto device = open_device({.use_cpu = true, .local_rank = local_rank});
               RankStory& story = stories[static_cast<size_t>(rendezvous.global_rank)];
               train(run, rendezvous, *device, storyteller(run.config, step, recorder, story));
               return 0;
             });
  if (code != 0) throw run_error("a rank of the small model failed");
  return stories;
}

std::vector<std::string> tell(const RankStory& story) {
  std::vector<std::string> lines;
  std::string above, part;
  for (const Event& event : story.events) {
    const bool is_action = event.entry.kind == Kind::action;
    if (is_action || heading(event) != above) {
      above = heading(event);
      part = "";
      lines.emplace_back();
      lines.push_back(is_action ? fmt::format("{}   {}", above, location(event.entry)) : above);
    }
    if (is_action) continue;
    if (event.part != part && !event.part.empty()) lines.push_back("  " + event.part);
    part = event.part;
    const std::string what = event.entry.kind == Kind::product ? "product" : event.entry.what;
    const std::string text = fmt::format("    {:<18}  {:<22}  {}", what, event.weight, event.text);
    lines.push_back(fmt::format("{:<116}  {}", text, location(event.entry)));
  }
  lines.emplace_back();
  lines.push_back(summary(story.events));
  return lines;
}

}  // namespace picotron
