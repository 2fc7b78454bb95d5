// The whole Llama, forward and written-out backward, in float64 against the same model in plain
// ATen operators (llama_support.h), differentiated by vjp: each parameter's gradient, in odd sizes.
#include "model/llama.h"

#include <ATen/core/grad_mode.h>

#include "core/error.h"
#include "dist/collectives.h"
#include "dist_ranks.h"
#include "kernels/vjp.h"
#include "llama_support.h"

namespace picotron {
namespace {

struct Case {
  std::string name;
  LlamaConfig config;
  Body body = Body::fused;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const std::string& name, const auto& change, Body body = Body::fused) {
    LlamaConfig config = tiny_llama();
    change(config);
    all.push_back({name, config, body});
  };
  add("OneKeyValueHead", [](LlamaConfig&) {});
  add(
      "PlainBody", [](LlamaConfig&) {}, Body::plain);
  add("GroupedHeads", [](LlamaConfig& c) { c.num_attention_heads = 4, c.num_key_value_heads = 2; });
  add("AllKeyValueHeads", [](LlamaConfig& c) { c.num_key_value_heads = 3; });
  add("TiedEmbedding", [](LlamaConfig& c) { c.tie_word_embeddings = true; });
  add("AttentionBias", [](LlamaConfig& c) { c.attention_bias = true; });
  add("MlpBias", [](LlamaConfig& c) { c.mlp_bias = true; });
  add("WideHeads", [](LlamaConfig& c) { c.head_dim = 18, c.num_hidden_layers = 1; });
  add("Llama3Rope", [](LlamaConfig& c) {
    c.head_dim = 16;
    c.rope_scaling = RopeScaling{8.0, 1.0, 4.0, 32};
  });
  add(
      "EverythingAtOncePlain",
      [](LlamaConfig& c) {
        c.num_hidden_layers = 3, c.num_attention_heads = 4, c.num_key_value_heads = 2;
        c.tie_word_embeddings = c.attention_bias = c.mlp_bias = true;
      },
      Body::plain);
  return all;
}

// Three microbatches that are not alike.
std::vector<TokenBatch> three_batches() {
  return {random_batch(3, 5, 13, 100), random_batch(1, 11, 13, 200), random_batch(2, 1, 13, 300)};
}
constexpr double kScale = 1.0 / 28;  // tokens of the three

struct Trained {
  Mesh mesh;
  Llama model;
  Gradients gradients;

  explicit Trained(const Case& c, const GradientsOptions& options = {})
      : model(c.config, mesh, {at::kDouble, /*max_positions=*/40, c.body}),
        gradients((fill_random(model.parameters(), 1), model.parameters()), mesh.dp_cp, mesh.world,
                  options) {}
};

plain::Named named(const Parameters& parameters, const std::vector<at::Tensor>& values) {
  plain::Named result;
  for (size_t i = 0; i < values.size(); ++i) result[parameters.list()[i].name] = values[i];
  return result;
}

std::vector<at::Tensor> values_of(const Parameters& parameters) {
  std::vector<at::Tensor> values;
  for (const Parameter& parameter : parameters.list()) values.push_back(parameter.value);
  return values;
}

// The plain model's scaled loss over all batches, and its gradients by autograd.
VjpResult judge(const LlamaConfig& config, const Parameters& parameters,
                const std::vector<TokenBatch>& batches) {
  return vjp(
      [&](const std::vector<at::Tensor>& values) {
        const plain::Named p = named(parameters, values);
        at::Tensor sum = at::zeros({}, at::kDouble);
        for (const TokenBatch& batch : batches)
          sum = sum + plain::loss(plain::logits(config, p, batch), batch.targets);
        return sum * kScale;
      },
      values_of(parameters));
}

class LlamaTest : public ::testing::TestWithParam<Case> {
 protected:
  const at::NoGradGuard backward_is_written_out;
};

TEST_P(LlamaTest, LossAndEveryGradientAreThoseOfThePlainModel) {
  Trained t(GetParam());
  const std::vector<TokenBatch> batches = three_batches();
  const VjpResult expected = judge(GetParam().config, t.model.parameters(), batches);
  const std::vector<at::Tensor> gradients = expected.pullback(at::ones({}, at::kDouble));

  for (const Schedule& schedule : {make_schedule({.microbatches = 3}),
                                   make_schedule({.engine = PpEngine::afab, .microbatches = 3})}) {
    const at::Tensor loss = run_schedule(schedule, t.model, batches, kScale, t.gradients, {});
    EXPECT_LT(distance(loss, expected.output), kJudge);
    for (size_t i = 0; i < gradients.size(); ++i) {
      const Parameter& parameter = t.model.parameters().list()[i];
      EXPECT_GT(gradients[i].abs().max().item<double>(), 1e-6) << parameter.name;
      EXPECT_LT(distance(parameter.gradient, gradients[i]), kJudge) << parameter.name;
    }
  }
}

TEST_P(LlamaTest, LogitsAndValidationLossAreThoseOfThePlainModel) {
  Trained t(GetParam());
  const plain::Named p = named(t.model.parameters(), values_of(t.model.parameters()));
  const std::vector<TokenBatch> batches = three_batches();
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (const TokenBatch& batch : batches) {
    const at::Tensor expected = plain::logits(GetParam().config, p, batch);
    EXPECT_LT(distance(t.model.head().logits(t.model.normed_states(batch)), expected), kJudge);
    const at::Tensor loss = at::zeros({}, at::kDouble);
    t.model.evaluate(0, batch, {}, loss);
    EXPECT_LT(distance(loss, plain::loss(expected, batch.targets)), kJudge);
    sum += loss;
  }
  const at::Tensor trained =
      run_schedule(make_schedule({.microbatches = 3}), t.model, batches, kScale, t.gradients, {});
  EXPECT_TRUE(same_bits(trained, sum * kScale)) << "evaluate() and training give one loss";
}

TEST_P(LlamaTest, ParametersAreThoseOfTheCheckpoint) {
  const LlamaConfig& c = GetParam().config;
  const Trained t(GetParam());
  int64_t numel = 0;
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const Parameter& parameter : t.model.parameters().list()) {
    EXPECT_TRUE(shapes.emplace(parameter.name, parameter.full_shape).second) << parameter.name;
    numel += parameter.numel();
  }
  EXPECT_EQ(numel, count_parameters(c));
  using Shape = std::vector<int64_t>;
  const std::string layer = "model.layers.0.";
  const int64_t q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  EXPECT_EQ(shapes.at("model.embed_tokens.weight"), (Shape{13, 10}));
  EXPECT_EQ(shapes.at(layer + "self_attn.q_proj.weight"), (Shape{q, 10}));
  EXPECT_EQ(shapes.at(layer + "self_attn.v_proj.weight"), (Shape{kv, 10}));
  EXPECT_EQ(shapes.at(layer + "self_attn.o_proj.weight"), (Shape{10, q}));
  EXPECT_EQ(shapes.at(layer + "mlp.up_proj.weight"), (Shape{7, 10}));
  EXPECT_EQ(shapes.at(layer + "mlp.down_proj.weight"), (Shape{10, 7}));
  EXPECT_EQ(shapes.contains("lm_head.weight"), !c.tie_word_embeddings);
  EXPECT_EQ(shapes.contains(layer + "self_attn.o_proj.bias"), c.attention_bias);
  EXPECT_EQ(shapes.contains(layer + "mlp.down_proj.bias"), c.mlp_bias);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LlamaTest, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

// What follows needs one shape: tied, so that one Weight has two contributions, and with biases.
Case tied_with_biases() {
  Case c{"", tiny_llama()};
  c.config.tie_word_embeddings = c.config.attention_bias = c.config.mlp_bias = true;
  return c;
}

TEST(LlamaTrainingTest, TheSameStepTwiceGivesTheSameBits) {
  Trained t(tied_with_biases());
  const std::vector<TokenBatch> batches = three_batches();
  const Schedule schedule = make_schedule({.microbatches = 3});
  const at::Tensor first_loss = run_schedule(schedule, t.model, batches, kScale, t.gradients, {});
  const at::Tensor first = t.gradients.flat().clone();
  const at::Tensor second_loss = run_schedule(schedule, t.model, batches, kScale, t.gradients, {});
  EXPECT_TRUE(same_bits(first_loss, second_loss));
  EXPECT_TRUE(same_bits(first, t.gradients.flat())) << "gradients start from zero at every step";
}

TEST(LlamaTrainingTest, ProductsQueuedAndDrainedLaterGiveTheSameGradients) {
  Trained direct(tied_with_biases()), queued(tied_with_biases(), {.bucket_numel = 100});
  const std::vector<TokenBatch> batches = three_batches();
  run_schedule(make_schedule({.microbatches = 3}), direct.model, batches, kScale, direct.gradients,
               {});

  Gradients& gradients = queued.gradients;
  const at::Tensor loss = at::zeros({}, at::kDouble);
  gradients.begin_step(3);
  std::vector<std::vector<Gradients::Product>> queues;
  for (const TokenBatch& batch : batches) {
    std::unique_ptr<Saved> saved;
    queued.model.forward(0, batch, {}, saved);
    gradients.queue_products(true);
    queued.model.backward(0, batch, {}, std::move(saved), kScale, loss, gradients);
    gradients.queue_products(false);
    queues.push_back(gradients.take_queue());
    EXPECT_EQ(queues.back().size(), 4u * 2) << "qkv, o, gate and up, down of two layers";
    EXPECT_TRUE(gradients.take_queue().empty()) << "taken once";
  }
  const Weight* down = queues[0][0].weight;
  EXPECT_EQ(down->gradient.abs().max().item<double>(), 0) << "nothing was multiplied yet";
  for (const auto& queue : queues) {
    for (const Gradients::Product& product : queue)
      gradients.accumulate(*product.weight, product.dy, product.x);
  }
  gradients.finish();
  EXPECT_TRUE(same_bits(gradients.flat(), direct.gradients.flat()));
}

// Rows of several documents, and the same documents each in a row of its own.
TEST(LlamaTrainingTest, MaskedDocumentsAreAsIfEachWereReadAlone) {
  const at::NoGradGuard backward_is_written_out;
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    Case c{"", tiny_llama()};
    c.config.num_attention_heads = 4, c.config.num_key_value_heads = 2;
    Trained packed(c), alone(c);
    packed.model.set_recompute(recompute);
    TokenBatch rows = random_batch(3, 11, 13, 100);
    rows.documents = {{0, 1, 5}, {0}, {0, 10}};
    std::vector<TokenBatch> documents;
    std::vector<at::Tensor> positions;
    for (int64_t row = 0; row < 3; ++row) {
      const auto& begins = rows.documents[static_cast<size_t>(row)];
      for (size_t i = 0; i < begins.size(); ++i) {
        const int64_t length = (i + 1 < begins.size() ? begins[i + 1] : 11) - begins[i];
        const auto cut = [&](const at::Tensor& x) {
          return x.narrow(0, row * 11 + begins[i], length);
        };
        positions.push_back(at::arange(length, at::kLong));
        documents.push_back({.rows = 1,
                             .columns = length,
                             .ids = cut(rows.ids),
                             .targets = cut(rows.targets),
                             .positions = positions.back()});
      }
    }
    rows.positions = at::cat(positions);
    const auto run = [](Trained& t, const std::vector<TokenBatch>& batches) {
      return run_schedule(make_schedule({.microbatches = std::ssize(batches)}), t.model, batches,
                          1.0 / 33, t.gradients, {});
    };
    const at::Tensor loss = run(packed, {rows});
    EXPECT_LT(distance(loss, run(alone, documents)), kJudge);
    const auto& gradients = packed.model.parameters().list();
    for (size_t i = 0; i < gradients.size(); ++i) {
      const at::Tensor& want = alone.model.parameters().list()[i].gradient;
      EXPECT_LT(distance(gradients[i].gradient, want), kJudge) << gradients[i].name;
    }
    rows.documents = {};
    Trained unmasked(c);
    EXPECT_GT(distance(loss, run(unmasked, {rows})), 1e-3);
  }
}

TEST(LlamaTrainingTest, AnUndrainedQueueIsFound) {
  Trained t(tied_with_biases());
  Schedule without_weights;
  for (int64_t i = 0; i < 3; ++i) {
    without_weights.push_back({ActionKind::forward, i});
    without_weights.push_back({ActionKind::backward_input, i});
  }
  EXPECT_THROW(run_schedule(without_weights, t.model, three_batches(), kScale, t.gradients, {}),
               BrokenInvariant);
}

TEST(LlamaTrainingTest, LowerPrecisionsStayNearFloat64) {
  const Case c = tied_with_biases();
  Trained exact(c);
  const std::vector<TokenBatch> batches = three_batches();
  const Schedule schedule = make_schedule({.microbatches = 3});
  for (const auto& [dtype, allowed] :
       {std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 6e-2}}) {
    Mesh mesh;
    Llama model(c.config, mesh, {dtype, 40, Body::fused});
    fill_random(model.parameters(), 1);
    model.parameters().flat().mul_(0.25);  // closer to a model's first values
    exact.model.parameters().flat().copy_(model.parameters().flat());
    Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world, {});
    EXPECT_EQ(gradients.flat().scalar_type(), at::kFloat) << "gradients are summed in fp32";
    const at::Tensor loss = run_schedule(schedule, model, batches, kScale, gradients, {});
    const at::Tensor expected =
        run_schedule(schedule, exact.model, batches, kScale, exact.gradients, {});
    EXPECT_LT(distance(loss, expected), allowed);
    EXPECT_LT(distance(gradients.flat(), exact.gradients.flat()), allowed);
  }
}

// Inner 7 and vocabulary 13 do not divide by two: the ranks' shards are uneven.
TEST(LlamaTrainingTest, TwoTensorParallelRanksHaveThePartsOfOnesGradients) {
  Case c = tied_with_biases();
  c.config.num_attention_heads = 4, c.config.num_key_value_heads = 2;
  const std::vector<TokenBatch> batches = three_batches();
  const Schedule schedule = make_schedule({.microbatches = 3});
  Trained one(c);
  const at::Tensor loss = run_schedule(schedule, one.model, batches, kScale, one.gradients, {});
  const at::Tensor norm = one.gradients.norm();
  testing::run_ranks(2, [&](const Rendezvous& rendezvous) {
    const at::NoGradGuard backward_is_written_out;
    const Mesh mesh = make_mesh({.tp = 2}, rendezvous);
    Llama model(c.config, mesh, {at::kDouble, 40, c.body});
    const auto part_of = [](const at::Tensor& whole, const Shard& shard) {
      return whole.narrow(shard.dim, shard.begin, shard.end - shard.begin);
    };
    const std::vector<Parameter>& whole = one.model.parameters().list();
    for (size_t i = 0; i < whole.size(); ++i) {
      Parameter& parameter = model.parameters().list()[i];
      parameter.value.copy_(part_of(whole[i].value, parameter.shard));
    }
    Gradients gradients(model.parameters(), mesh.dp_cp, mesh.world, {});
    EXPECT_LT(distance(run_schedule(schedule, model, batches, kScale, gradients, {}), loss),
              kJudge);
    for (size_t i = 0; i < whole.size(); ++i) {
      const Parameter& parameter = model.parameters().list()[i];
      EXPECT_LT(distance(parameter.gradient, part_of(whole[i].gradient, parameter.shard)), kJudge)
          << parameter.name;
    }
    EXPECT_LT(distance(gradients.norm(), norm), kJudge) << "each element counts once";
    barrier(mesh.world);
  });
}

TEST(LlamaTrainingTest, TensorParallelSizesThatDoNotFitAreRefused) {
  Mesh mesh;
  mesh.tp.global_ranks = {0, 1};
  EXPECT_THROW(Llama(tiny_llama(), mesh, {at::kDouble, 8}), BrokenInvariant) << "heads in two";
}

}  // namespace
}  // namespace picotron
