// How a rank looks, how ranks agree on who found what comes first, and the sentences.
#include "train/health.h"

#include <ATen/ATen.h>
#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "dist/channel.h"
#include "dist/collectives.h"
#include "train/layout.h"

namespace picotron {
namespace {

constexpr int64_t kLongestSentence = 1024;

// What one rank has found. Of all ranks' findings the one of the lowest order came first.
struct Finding {
  using Order = std::array<int64_t, 2>;
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  Order order = {kNever, kNever};
  std::string sentence;
};

// Row r: the numbers of rank r of the group, on the CPU. On the way they are on `device`, where the
// group communicates.
at::Tensor gather_rows(const std::vector<int64_t>& mine, const Group& group, at::Device device) {
  const at::Tensor all = at::zeros({group.size(), static_cast<int64_t>(mine.size())},
                                   at::TensorOptions(at::kLong).device(device));
  all[group.rank].copy_(at::tensor(mine, at::kLong));
  all_gather(all.view({-1}), group).wait();
  return all.to(at::kCPU);
}

// The first finding of all ranks, in the words of who found it, the same on every rank; "" where
// nobody has found anything.
std::string first_of(const Finding& mine, const Mesh& mesh, at::Device device) {
  const at::Tensor rows = gather_rows({mine.order.begin(), mine.order.end()}, mesh.world, device);
  std::vector<Finding::Order> orders;
  for (int rank = 0; rank < mesh.world.size(); ++rank)
    orders.push_back({rows[rank][0].item<int64_t>(), rows[rank][1].item<int64_t>()});
  const auto first = std::min_element(orders.begin(), orders.end());
  if (*first == Finding().order) return "";
  const at::Tensor text = at::zeros({kLongestSentence}, at::kByte);
  const size_t length = std::min<size_t>(mine.sentence.size(), kLongestSentence - 1);
  std::memcpy(text.data_ptr(), mine.sentence.data(), length);
  const at::Tensor sent = text.to(device);
  broadcast(sent, static_cast<int>(first - orders.begin()), mesh.world).wait();
  return static_cast<const char*>(sent.to(at::kCPU).const_data_ptr());  // up to the first zero
}

// "rank 2 (dp 1)", "ranks 0, 4 and 6"
std::string name_ranks(const std::vector<int>& ranks, const Run& run, const Mesh& mesh) {
  constexpr size_t kMost = 8;
  if (ranks.size() == 1) {
    const std::string place = place_of(ranks[0], mesh.sizes, run.config.distributed.mesh_order);
    return fmt::format("rank {}{}", ranks[0], place.empty() ? "" : " (" + place + ")");
  }
  const size_t named = std::min(ranks.size() - 1, kMost);
  const std::string rest = named + 1 == ranks.size() ? std::to_string(ranks.back())
                                                     : fmt::format("{} more", ranks.size() - named);
  return fmt::format("ranks {} and {}", fmt::join(ranks.begin(), ranks.begin() + named, ", "),
                     rest);
}

// Where a module, or a parameter of it, stands in the forward pass of the whole model, whichever
// stage holds it.
int64_t place_in_forward(std::string_view name) {
  constexpr std::array<std::string_view, 11> kOfLayer = {"input_layernorm",
                                                         "self_attn.q_proj",
                                                         "self_attn.k_proj",
                                                         "self_attn.v_proj",
                                                         "self_attn",
                                                         "self_attn.o_proj",
                                                         "post_attention_layernorm",
                                                         "mlp.gate_proj",
                                                         "mlp.up_proj",
                                                         "mlp",
                                                         "mlp.down_proj"};
  constexpr std::string_view kLayers = "model.layers.";
  for (const std::string_view ending : {".weight", ".bias"}) {
    if (name.ends_with(ending)) name.remove_suffix(ending.size());
  }
  if (name == "model.embed_tokens") return 0;
  if (name == "model.norm") return Finding::kNever - 2;
  if (!name.starts_with(kLayers)) return Finding::kNever - 1;  // lm_head
  name.remove_prefix(kLayers.size());
  int64_t layer = 0;
  std::from_chars(name.data(), name.data() + name.size(), layer);
  const auto module = std::find(kOfLayer.begin(), kOfLayer.end(), name.substr(name.find('.') + 1));
  return 1 + layer * (ssize(kOfLayer) + 1) + (module - kOfLayer.begin());
}

// "NaN", "infinity", or "" where every value is finite.
std::string_view not_finite(const at::Tensor& x) {
  if (x.isfinite().all().item<bool>()) return "";
  return x.isnan().any().item<bool>() ? "NaN" : "infinity";
}

// Evaluates the model, and looks at what each module gives.
class Inspector : public Stage {
 public:
  Inspector(Llama& model, const FaultyStep& step, const Run& run, const Mesh& mesh)
      : model_(model),
        batches_(step.batches),
        chunks_(layers_of_stage(run.config, run.architecture, mesh.my.pp)),
        summed_(mesh.tp.size() > 1 ? ", summed over tp," : ""),
        me_(name_ranks({mesh.global_rank}, run, mesh)) {
    model.set_recompute(Recompute::none);  // all is kept, and can be looked at
  }
  const Finding& finding() const { return finding_; }

  at::Tensor evaluate(int chunk, const TokenBatch& batch, const at::Tensor& x,
                      const at::Tensor& loss) override {
    microbatch_ = &batch - batches_.data();
    std::unique_ptr<Saved> saved;
    const at::Tensor y = model_.forward(chunk, batch, x, saved);
    const auto& kept = static_cast<const LlamaSaved&>(*saved);
    const int64_t first = chunks_.at(static_cast<size_t>(chunk)).begin;
    const bool has_loss = kept.final.y.defined();
    if (!x.defined()) look("model.embed_tokens", kept.layers.at(0).input.sum, summed_);
    for (size_t i = 0; i < kept.layers.size(); ++i) {
      const bool is_last = i + 1 == kept.layers.size();
      look_at_layer(first + static_cast<int64_t>(i), kept.layers[i],
                    !is_last   ? kept.layers[i + 1].input.sum
                    : has_loss ? kept.final.sum
                               : y);
    }
    if (!has_loss) return y;
    look("model.norm", y);
    const at::Tensor sum = model_.head().loss(y, batch.targets);
    look("lm_head", sum);
    loss.add_(sum);
    return {};
  }
  at::Tensor forward(int chunk, const TokenBatch& batch, const at::Tensor& x,
                     std::unique_ptr<Saved>& saved) override {
    return model_.forward(chunk, batch, x, saved);
  }
  at::Tensor backward(int chunk, const TokenBatch& batch, const at::Tensor& dy,
                      std::unique_ptr<Saved> saved, double scale, const at::Tensor& loss,
                      Gradients& gradients) override {
    return model_.backward(chunk, batch, dy, std::move(saved), scale, loss, gradients);
  }
  at::Tensor empty_input(const TokenBatch& batch) const override {
    return model_.empty_input(batch);
  }

 private:
  // `stream`: after the layer.
  void look_at_layer(int64_t index, const LayerSaved& saved, const at::Tensor& stream) {
    const std::string layer = fmt::format("model.layers.{}.", index);
    look(layer + "input_layernorm", saved.input.y);
    look_at_outputs(layer + "self_attn.", {"q_proj", "k_proj", "v_proj"}, saved.qkv);
    look(layer + "self_attn", saved.attention.out);
    look(layer + "self_attn.o_proj", saved.mid.sum, summed_);
    look(layer + "post_attention_layernorm", saved.mid.y);
    look_at_outputs(layer + "mlp.", {"gate_proj", "up_proj"}, saved.gate_up);
    look(layer + "mlp", saved.act);
    look(layer + "mlp.down_proj", stream, summed_);
  }
  // Of one product that serves several modules.
  void look_at_outputs(const std::string& prefix, const std::vector<const char*>& names,
                       const at::Tensor& x) {
    int64_t column = 0;
    for (const char* name : names) {
      const int64_t columns = rows_of(prefix + name + ".weight");
      look(prefix + name, x.narrow(1, column, columns));
      column += columns;
    }
  }
  int64_t rows_of(const std::string& weight) const {
    const auto& list = model_.parameters().list();
    const auto found = std::find_if(list.begin(), list.end(),
                                    [&](const Parameter& p) { return p.name == weight; });
    check(found != list.end(), "a layer has its weights");
    return found->value.size(0);
  }
  void look(const std::string& module, const at::Tensor& output, const char* summed = "") {
    const Finding::Order order = {microbatch_, place_in_forward(module)};
    if (order >= finding_.order) return;
    const std::string_view value = not_finite(output);
    if (value.empty()) return;
    finding_ = {order,
                fmt::format("the forward pass goes wrong first in {}, whose output{} holds {} in "
                            "microbatch {} on {}",
                            module, summed, value, microbatch_, me_)};
  }

  Llama& model_;
  const std::vector<TokenBatch>& batches_;
  const std::vector<Range> chunks_;  // layers of each
  const char* const summed_;
  const std::string me_;
  int64_t microbatch_ = 0;
  Finding finding_;
};

Finding look_at_weights(const Parameters& parameters, const std::string& me) {
  Finding finding;
  for (const Parameter& parameter : parameters.list()) {
    const Finding::Order order = {0, place_in_forward(parameter.name)};
    const std::string_view value = not_finite(parameter.value);
    if (value.empty() || order >= finding.order) continue;
    finding = {order, fmt::format("{} itself holds {} on {}", parameter.name, value, me)};
  }
  return finding;
}

// Gradients are known where they are summed, in the parts that this rank owns. Backward goes from
// the last module to the first.
Finding look_at_gradients(const Parameters& parameters, const Gradients& gradients,
                          const Mesh& mesh, const std::string& me) {
  Finding finding;
  const char* summed = mesh.dp_cp.size() > 1 ? ", summed over dp×cp," : "";
  for (const Parameter& parameter : parameters.list()) {
    const Finding::Order order = {0, -place_in_forward(parameter.name)};
    for (const Range& range : gradients.owned()) {
      const int64_t begin = std::max(range.begin, parameter.offset);
      const int64_t end = std::min(range.end, parameter.offset + parameter.numel());
      if (begin >= end || order >= finding.order) continue;
      const std::string_view value = not_finite(gradients.flat().narrow(0, begin, end - begin));
      if (value.empty()) continue;
      finding = {order, fmt::format("the forward pass is finite, and going backward the first "
                                    "gradient that is not is that of {}{} with {} on {}",
                                    parameter.name, summed, value, me)};
    }
  }
  return finding;
}

// The fault and what to do about it. Collective; the same on every rank.
std::string search(const FaultyStep& step, const Run& run, const Mesh& mesh, Llama& model,
                   Gradients& gradients) {
  constexpr const char* kSmallerSteps =
      "a lower training.learning_rate or training.grad_clip 1.0 may help";
  const at::Device device = gradients.flat().device();
  const std::string me = name_ranks({mesh.global_rank}, run, mesh);
  std::string found = first_of(look_at_weights(model.parameters(), me), mesh, device);
  if (!found.empty())
    return found + ", and did before this step; start from an older checkpoint or other weights";

  Inspector inspector(model, step, run, mesh);
  run_forward(schedule_of_stage(run.config, mesh.my.pp, /*forward_only=*/true), inspector,
              step.batches, mesh);
  found = first_of(inspector.finding(), mesh, device);
  if (!found.empty()) return fmt::format("{}; {}", found, kSmallerSteps);

  if (std::isfinite(step.metrics.loss)) {
    if (step.overwritten)
      run_schedule(schedule_of_stage(run.config, mesh.my.pp), model, step.batches,
                   1 / static_cast<double>(tokens_per_step(run.config)), gradients, mesh);
    found = first_of(look_at_gradients(model.parameters(), gradients, mesh, me), mesh, device);
    if (!found.empty()) return fmt::format("{}; {}", found, kSmallerSteps);
  }
  return "run once more, the step is finite, so a processor, its memory or the network may be at "
         "fault; start from the newest checkpoint, and logging.desync_check 1 may name the rank";
}

// A parameter's bits, and which part of the whole tensor they are.
struct Fingerprint {
  const Parameter* parameter;
  int64_t hash;
};

Fingerprint fingerprint(const Parameter& parameter) {
  const at::Tensor bits = parameter.value.to(at::kCPU);
  return {&parameter, static_cast<int64_t>(XXH3_64bits(bits.const_data_ptr(), bits.nbytes()))};
}

// What most have; without a majority, what the first has.
int64_t usual(const std::vector<int64_t>& hashes) {
  for (const int64_t hash : hashes)
    if (2 * std::count(hashes.begin(), hashes.end(), hash) > ssize(hashes)) return hash;
  return hashes.front();
}

// Compares parameters, the same list on every rank of the group, among those ranks of it that hold
// the same part of them.
Finding compare(const std::vector<Fingerprint>& mine, const Group& group, const Run& run,
                const Mesh& mesh, at::Device device) {
  constexpr int64_t kNumbers = 3;
  std::vector<int64_t> numbers;
  for (const auto& [parameter, hash] : mine)
    numbers.insert(numbers.end(), {hash, parameter->shard.begin, parameter->shard.end});
  const at::Tensor all = gather_rows(numbers, group, device);
  const auto number = [&](int rank, size_t i, int64_t which) {
    return all.const_data_ptr<int64_t>()[rank * ssize(numbers) + kNumbers * i + which];
  };
  Finding finding;
  int64_t different = 0;
  for (size_t i = 0; i < mine.size(); ++i) {
    const Parameter& parameter = *mine[i].parameter;
    std::vector<int> holders, odd, even;
    std::vector<int64_t> hashes;
    for (int rank = 0; rank < group.size(); ++rank) {
      if (number(rank, i, 1) != parameter.shard.begin || number(rank, i, 2) != parameter.shard.end)
        continue;
      holders.push_back(group.global_ranks[static_cast<size_t>(rank)]);
      hashes.push_back(number(rank, i, 0));
    }
    const int64_t expected = usual(hashes);
    for (size_t holder = 0; holder < holders.size(); ++holder)
      (hashes[holder] == expected ? even : odd).push_back(holders[holder]);
    if (odd.empty() || different++ > 0) continue;
    finding = {{0, place_in_forward(parameter.name)},
               fmt::format("{} has other bits on {} than on {}", parameter.name,
                           name_ranks(odd, run, mesh), name_ranks(even, run, mesh))};
  }
  if (different > 1)
    finding.sentence += fmt::format(", and so have {} more parameters", different - 1);
  return finding;
}

}  // namespace

bool note_loss(LossHistory& history, double loss) {
  constexpr int64_t kFirst = 20, kMemory = 50;
  constexpr double kDeviations = 6, kPart = 0.1;
  const double limit = history.mean + std::max(kDeviations * std::sqrt(history.variance),
                                               kPart * std::abs(history.mean));
  const bool is_spike = history.steps >= kFirst && loss > limit;
  const double weight = 1 / static_cast<double>(std::min(++history.steps, kMemory));
  const double difference = (is_spike ? limit : loss) - history.mean;
  history.mean += weight * difference;
  history.variance = (1 - weight) * (history.variance + weight * difference * difference);
  return is_spike;
}

bool is_finite(const StepMetrics& metrics) {
  return std::isfinite(metrics.loss) && std::isfinite(metrics.grad_norm);
}

void stop_at(const FaultyStep& step, const Run& run, const Mesh& mesh, Llama& model,
             Gradients& gradients) {
  const auto text = [](double value) {
    return std::isnan(value) ? "NaN" : fmt::format("{:.4g}", value);
  };
  const std::string fact = fmt::format("step {}: loss {} and gradient norm {}", step.metrics.step,
                                       text(step.metrics.loss), text(step.metrics.grad_norm));
  std::string found;
  try {
    found = search(step, run, mesh, model, gradients);
  } catch (const LostRank&) {
    throw;
  } catch (const std::exception& error) {
    // Out of memory, say: then at least the fact is told.
    throw run_error("{}; what went wrong first was not found: {}", fact,
                    plain_sentence(error.what()));
  }
  throw run_error("{}: {}", fact, found);
}

void check_replicas(int64_t step, const Run& run, const Mesh& mesh, const Parameters& parameters) {
  const int64_t interval = run.config.logging.desync_check;
  if (interval == 0 || step % interval != 0) return;
  const at::Device device = parameters.flat().device();
  std::vector<Fingerprint> all;
  for (const Parameter& parameter : parameters.list()) all.push_back(fingerprint(parameter));
  Finding first;
  const auto look = [&](const std::vector<Fingerprint>& list, const Group& group) {
    const Finding here = compare(list, group, run, mesh, device);
    if (here.order < first.order) first = here;
  };
  look(all, mesh.dp_cp);
  look(all, mesh.tp);
  for (const Weight& weight : parameters.weights())
    if (weight.tied != nullptr) look({all[weight.first]}, *weight.tied);
  const std::string found = first_of(first, mesh, device);
  if (found.empty()) return;
  const std::string older = step > interval
                                ? fmt::format("a checkpoint of step {} or before", step - interval)
                                : "an older checkpoint";
  throw run_error(
      "step {}: {}, so replicas have drifted apart; start from {}, and if it is the same rank "
      "again, have its machine's memory and processors tested",
      step, found, older);
}

}  // namespace picotron
