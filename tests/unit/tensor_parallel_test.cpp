// Column- and row-parallel layers and the norm, each alone: forward and written backward in float64
// against vjp of the plain definition of the whole layer, on 1, 2 and 3 ranks of tp, in sizes that
// no number of ranks divides.
#include "parallel/tensor_parallel.h"

#include <ATen/core/grad_mode.h>

#include <array>

#include "dist_ranks.h"
#include "kernels/vjp.h"
#include "kernels_support.h"

namespace picotron {
namespace {

constexpr int64_t kTokens = 12;  // what tp divides, for sequence parallel

at::Tensor random(at::IntArrayRef sizes, uint64_t seed) {
  return random_tensor(sizes, at::kDouble, seed);
}

// A shard's part of a whole tensor.
at::Tensor part_of(const at::Tensor& whole, const Shard& shard) {
  return whole.narrow(shard.dim, shard.begin, shard.end - shard.begin);
}

// Whole values of every parameter by its place in the list, copied in shard by shard.
void fill(Parameters& parameters, const std::vector<at::Tensor>& whole) {
  parameters.allocate(at::kDouble);
  for (size_t i = 0; i < whole.size(); ++i) {
    Parameter& parameter = parameters.list().at(i);
    ASSERT_EQ(parameter.full_shape, whole[i].sizes().vec());
    parameter.value.copy_(part_of(whole[i], parameter.shard));
  }
}

void expect_gradients(const Parameters& parameters, const std::vector<at::Tensor>& whole) {
  for (size_t i = 0; i < whole.size(); ++i) {
    const Parameter& parameter = parameters.list().at(i);
    EXPECT_LT(distance(parameter.gradient, part_of(whole[i], parameter.shard)), kJudge)
        << parameter.name;
  }
}

// Runs `body` on each rank of a tp group of this size.
void run_tp(int ranks, const std::function<void(const Mesh&)>& body) {
  if (ranks == 1) {
    body(Mesh{});
    return;
  }
  testing::run_ranks(ranks, [&](const Rendezvous& rendezvous) {
    const at::NoGradGuard backward_is_written_out;
    const Mesh mesh = make_mesh({.tp = ranks}, rendezvous);
    body(mesh);
    barrier(mesh.world);  // nobody leaves while another still waits for it
  });
}

struct Case {
  int ranks;
  bool has_bias;
  bool sequence_parallel = false;
};

// The tokens of x between layers: all, or under sequence parallel this rank's.
at::Tensor tokens_of(const at::Tensor& x, const Mesh& mesh, bool sequence_parallel) {
  const int64_t parts = sequence_parallel ? mesh.tp.size() : 1;
  return x.chunk(parts, 0)[static_cast<size_t>(sequence_parallel ? mesh.tp.rank : 0)].contiguous();
}

class TensorParallelTest : public ::testing::TestWithParam<Case> {};

// q, k, v of 5, 3 and 4 rows: side by side on each rank lie its own rows of all three.
TEST_P(TensorParallelTest, ColumnParallelIsThePlainLayerCutByRows) {
  const auto [ranks, has_bias, cuts_tokens] = GetParam();
  const std::array<int64_t, 3> rows = {5, 3, 4};
  constexpr int64_t kIn = 7;
  std::vector<at::Tensor> whole;
  for (size_t i = 0; i < 3; ++i) whole.push_back(random({rows[i], kIn}, 1 + i));
  for (size_t i = 0; has_bias && i < 3; ++i) whole.push_back(random({rows[i]}, 4 + i));
  const at::Tensor x = random({kTokens, kIn}, 7), dy = random({kTokens, 12}, 8);

  std::vector<at::Tensor> inputs = whole;
  inputs.push_back(x);
  const bool bias = has_bias;
  const VjpResult plain = vjp(
      [bias](const std::vector<at::Tensor>& in) {
        const at::Tensor y = in.back().matmul(at::cat({in[0], in[1], in[2]}).t());
        return bias ? y + at::cat({in[3], in[4], in[5]}) : y;
      },
      inputs);
  const std::vector<at::Tensor> expected = plain.pullback(dy);

  run_tp(ranks, [&, bias, sp = cuts_tokens](const Mesh& mesh) {
    Parameters parameters;
    const auto layer = ColumnParallelLinear::declare(
        parameters, "l.", {{"q", rows[0]}, {"k", rows[1]}, {"v", rows[2]}}, kIn, bias,
        TensorParallel(mesh, sp));
    const at::Tensor my_x = tokens_of(x, mesh, sp);
    fill(parameters, whole);
    EXPECT_EQ(parameters.list()[1].name, "l.k.weight");
    EXPECT_EQ(parameters.list()[1].fan_in, kIn);
    EXPECT_EQ(layer.bias != nullptr, bias);
    // My columns of a [tokens, 12] tensor.
    const auto mine = [&](const at::Tensor& y) {
      std::vector<at::Tensor> parts;
      int64_t begin = 0;
      for (const int64_t size : rows) {
        parts.push_back(part_of(y.narrow(1, begin, size), shard_of(1, size, mesh.tp)));
        begin += size;
      }
      return at::cat(parts, 1);
    };
    Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
    gradients.begin_step(2);
    for (int microbatch = 0; microbatch < 2; ++microbatch) {
      EXPECT_LT(distance(layer.forward(my_x), mine(plain.output)), kJudge);
      EXPECT_LT(distance(layer.backward(mine(dy) / 2, my_x, gradients),
                         tokens_of(expected.back() / 2, mesh, sp)),
                kJudge);
    }
    gradients.finish();
    expect_gradients(parameters, {expected.begin(), expected.end() - 1});
  });
}

TEST_P(TensorParallelTest, RowParallelIsThePlainLayerCutByColumns) {
  const auto [ranks, has_bias, cuts_tokens] = GetParam();
  const bool bias = has_bias;
  constexpr int64_t kIn = 10, kOut = 7;
  std::vector<at::Tensor> whole = {random({kOut, kIn}, 1)};
  if (bias) whole.push_back(random({kOut}, 2));
  const at::Tensor x = random({kTokens, kIn}, 3), dy = random({kTokens, kOut}, 4);
  std::vector<at::Tensor> inputs = whole;
  inputs.push_back(x);
  const VjpResult plain = vjp(
      [bias](const std::vector<at::Tensor>& in) {
        const at::Tensor y = in.back().matmul(in[0].t());
        return bias ? y + in[1] : y;
      },
      inputs);
  const std::vector<at::Tensor> expected = plain.pullback(dy);

  run_tp(ranks, [&, bias, sp = cuts_tokens](const Mesh& mesh) {
    Parameters parameters;
    const auto layer =
        RowParallelLinear::declare(parameters, "l", kOut, kIn, bias, TensorParallel(mesh, sp));
    fill(parameters, whole);
    EXPECT_EQ(parameters.list()[0].fan_in, kIn) << "of the whole tensor, not of the shard";
    const Shard shard = shard_of(1, kIn, mesh.tp);
    const at::Tensor mine = part_of(x, shard).contiguous();
    Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
    gradients.begin_step(1);
    EXPECT_LT(distance(layer.forward(mine), tokens_of(plain.output, mesh, sp)), kJudge);
    EXPECT_LT(distance(layer.backward(tokens_of(dy, mesh, sp), mine, gradients),
                       part_of(expected.back(), shard)),
              kJudge);
    gradients.finish();
    expect_gradients(parameters, {expected.begin(), expected.end() - 1});

    at::Tensor sum = at::zeros({}, at::kDouble);
    for (size_t i = 0; i < whole.size(); ++i) sum += expected[i].square().sum();
    EXPECT_LT(distance(gradients.norm(), sum.sqrt()), kJudge) << "each element counts once";
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, TensorParallelTest,
                         ::testing::Values(Case{1, false}, Case{1, true}, Case{2, true},
                                           Case{3, false}, Case{3, true}, Case{1, true, true},
                                           Case{2, false, true}, Case{3, true, true}),
                         [](const auto& test) {
                           return std::to_string(test.param.ranks) +
                                  (test.param.has_bias ? "RanksBias" : "Ranks") +
                                  (test.param.sequence_parallel ? "SequenceParallel" : "");
                         });

// Four ranks, two key/value heads of 3 rows: neighbours hold the same one, and each gets from its
// own queries a part of that head's gradient.
TEST(TensorParallelSharedHeadTest, NeighboursHoldOneHeadAndSumItsGradient) {
  constexpr int64_t kIn = 5, kQueries = 8, kHead = 3;
  const std::vector<at::Tensor> whole = {random({kQueries, kIn}, 1), random({2 * kHead, kIn}, 2)};
  const at::Tensor x = random({kTokens, kIn}, 3);
  // What each rank's queries and its copy of a head give: dy of rank r.
  std::vector<at::Tensor> dy;
  for (uint64_t r = 0; r < 4; ++r) dy.push_back(random({kTokens, kQueries / 4 + kHead}, 10 + r));
  const VjpResult plain = vjp(
      [&](const std::vector<at::Tensor>& in) {
        at::Tensor sum = at::zeros({}, at::kDouble);
        for (int64_t r = 0; r < 4; ++r) {
          const at::Tensor w =
              at::cat({in[0].narrow(0, r * 2, 2), in[1].narrow(0, r / 2 * kHead, kHead)});
          sum = sum + (in[2].matmul(w.t()) * dy[static_cast<size_t>(r)]).sum();
        }
        return sum;
      },
      {whole[0], whole[1], x});
  const std::vector<at::Tensor> expected = plain.pullback(at::ones({}, at::kDouble));
  testing::run_ranks(4, [&](const Rendezvous& rendezvous) {
    const at::NoGradGuard backward_is_written_out;
    const Mesh mesh = make_mesh({.tp = 4}, rendezvous, {.key_value_sharing = 2});
    Parameters parameters;
    const auto layer = ColumnParallelLinear::declare(
        parameters, "l.", {{"q", kQueries}, {"k", 2 * kHead, /*key_value=*/true}}, kIn, false,
        mesh);
    fill(parameters, whole);
    EXPECT_EQ(parameters.list()[1].shard.begin, mesh.tp.rank / 2 * kHead);
    EXPECT_EQ(parameters.list()[1].counts_in_norm, mesh.tp.rank % 2 == 0);
    Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
    gradients.begin_step(1);
    const at::Tensor dx = layer.backward(dy[static_cast<size_t>(mesh.tp.rank)], x, gradients);
    EXPECT_LT(distance(dx, expected[2]), kJudge);
    gradients.finish();
    expect_gradients(parameters, {expected[0], expected[1]});
    const at::Tensor norm = (expected[0].square().sum() + expected[1].square().sum()).sqrt();
    EXPECT_LT(distance(gradients.norm(), norm), kJudge) << "each element counts once";
    barrier(mesh.world);
  });
}

TEST(TensorParallelNormTest, IsThePlainNormWithItsResiduals) {
  constexpr int64_t kHidden = 19;
  constexpr double kEps = 1e-5;
  const at::Tensor x = random({kTokens, kHidden}, 1), delta = random({kTokens, kHidden}, 2);
  const at::Tensor weight = random({kHidden}, 3);
  const at::Tensor dy = random({kTokens, kHidden}, 4), dsum = random({kTokens, kHidden}, 5);
  // One number whose gradient reaches the norm's input both through the norm and around it.
  const VjpResult plain = vjp(
      [&](const std::vector<at::Tensor>& in) {
        const at::Tensor sum = in[0] + in[1];
        const at::Tensor rstd = at::rsqrt(sum.square().mean(-1, true) + kEps);
        return (sum * rstd * in[2] * dy).sum() + (sum * dsum).sum();
      },
      {x, delta, weight});
  const std::vector<at::Tensor> expected = plain.pullback(at::ones({}, at::kDouble));

  for (const Body body : {Body::fused, Body::plain}) {
    for (const int ranks : {1, 2}) {
      run_tp(ranks, [&, body](const Mesh& mesh) {
        Parameters parameters;
        const Norm norm = Norm::declare(parameters, "norm", kHidden, kEps, body, mesh);
        fill(parameters, {weight});
        EXPECT_EQ(parameters.list()[0].name, "norm.weight");
        Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
        gradients.begin_step(2);
        const AddNormOutput out = norm.forward(x, delta);
        EXPECT_LT(distance(out.sum, x + delta), kJudge);
        EXPECT_LT(distance((out.y * dy + out.sum * dsum).sum(), plain.output), kJudge);
        const at::Tensor dx = norm.backward(dy, out, dsum, gradients);
        EXPECT_LT(distance(dx, expected[0]), kJudge);
        EXPECT_LT(distance(norm.weight->gradient, expected[2]), kJudge);

        // Without a delta, on the sum itself, and without a gradient around the norm.
        const AddNormOutput alone = norm.forward(out.sum, {});
        EXPECT_LT(distance(alone.y, out.y), kJudge);
        const at::Tensor dx_alone = norm.backward(dy, alone, {}, gradients);
        EXPECT_LT(distance(dx_alone, expected[0] - dsum), kJudge);
        EXPECT_LT(distance(norm.weight->gradient, 2 * expected[2]), kJudge) << "accumulated";
        gradients.finish();
        EXPECT_LT(distance(gradients.norm(), (2 * expected[2]).norm()), kJudge)
            << "every rank holds it, one counts it";
      });
    }
  }
}

// Each rank has its tokens; the weight's gradient is summed over tp.
TEST(TensorParallelNormTest, UnderSequenceParallelRanksShareTheTokens) {
  constexpr int64_t kHidden = 7;
  const at::Tensor x = random({kTokens, kHidden}, 1), weight = random({kHidden}, 2);
  const at::Tensor dy = random({kTokens, kHidden}, 3);
  const VjpResult plain = vjp(
      [&](const std::vector<at::Tensor>& in) {
        return in[0] * at::rsqrt(in[0].square().mean(-1, true) + 1e-5) * in[1];
      },
      {x, weight});
  const std::vector<at::Tensor> expected = plain.pullback(dy);
  run_tp(3, [&](const Mesh& mesh) {
    Parameters parameters;
    const Norm norm = Norm::declare(parameters, "norm", kHidden, 1e-5, Body::fused,
                                    TensorParallel(mesh, /*cut_tokens=*/true));
    fill(parameters, {weight});
    Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
    gradients.begin_step(1);
    const AddNormOutput out = norm.forward(tokens_of(x, mesh, true), {});
    EXPECT_LT(distance(out.y, tokens_of(plain.output, mesh, true)), kJudge);
    const at::Tensor dx = norm.backward(tokens_of(dy, mesh, true), out, {}, gradients);
    EXPECT_LT(distance(dx, tokens_of(expected[0], mesh, true)), kJudge);
    gradients.finish();
    expect_gradients(parameters, {expected[1]});
    EXPECT_LT(distance(gradients.norm(), expected[1].norm()), kJudge);
  });
}

TEST(TensorParallelShardTest, ShardsCoverASizeOnceUnevenWhereTheyMust) {
  for (const int ranks : {1, 2, 3, 5}) {
    for (const int64_t size : {1, 4, 7, 49152}) {
      int64_t end = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        Group tp{.rank = rank};
        tp.global_ranks.resize(static_cast<size_t>(ranks));
        const Shard shard = shard_of(1, size, tp);
        EXPECT_EQ(shard.dim, 1);
        EXPECT_EQ(shard.begin, end);
        end = shard.end;
        EXPECT_LE(shard.end - shard.begin, size / ranks + 1);
      }
      EXPECT_EQ(end, size);
    }
  }
}

}  // namespace
}  // namespace picotron
