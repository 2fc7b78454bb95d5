// RoPE: tables by hand, rotation against vjp, strided views, and its inverse.
#include "kernels/rope.h"

#include <cmath>

#include "core/error.h"
#include "kernels/vjp.h"
#include "kernels_support.h"

namespace picotron {
namespace {

constexpr RopeScaling kLlama3 = {.factor = 8,
                                 .low_freq_factor = 1,
                                 .high_freq_factor = 4,
                                 .original_max_position_embeddings = 64};

at::Tensor some_positions() {
  return at::tensor({0, 1, 2, 9, 4, 4, 30}, at::kLong);
}

TEST(Rope, TablesFollowTheFormula) {
  const RopeTables tables = rope_tables(31, 12, 10000, std::nullopt, at::kDouble, at::kCPU);
  ASSERT_EQ(tables.cos.sizes(), at::IntArrayRef({31, 6}));
  for (int64_t position : {0, 1, 30}) {
    for (int64_t i = 0; i < 6; ++i) {
      const double angle = static_cast<double>(position) / std::pow(10000.0, 2.0 * i / 12.0);
      EXPECT_NEAR(tables.cos[position][i].item<double>(), std::cos(angle), 1e-14);
      EXPECT_NEAR(tables.sin[position][i].item<double>(), std::sin(angle), 1e-14);
    }
  }
  const RopeTables bf16 = rope_tables(31, 12, 10000, std::nullopt, at::kBFloat16, at::kCPU);
  EXPECT_EQ(bf16.cos.scalar_type(), at::kFloat);
  EXPECT_LT(distance(bf16.sin, tables.sin), 1e-5);
}

TEST(Rope, Llama3KeepsHighFrequenciesAndStretchesLowOnes) {
  const RopeTables plain = rope_tables(2, 64, 500000, std::nullopt, at::kDouble, at::kCPU);
  const RopeTables scaled = rope_tables(2, 64, 500000, kLlama3, at::kDouble, at::kCPU);
  const at::Tensor angle = at::atan2(plain.sin[1], plain.cos[1]);  // at position 1: inv_freq
  const at::Tensor scaled_angle = at::atan2(scaled.sin[1], scaled.cos[1]);
  bool blended = false;
  for (int64_t i = 0; i < 32; ++i) {
    const double frequency = angle[i].item<double>();
    const double wavelength = 2 * M_PI / frequency;
    const double ratio = scaled_angle[i].item<double>() / frequency;
    if (wavelength < 16) {
      EXPECT_NEAR(ratio, 1, 1e-12);
    } else if (wavelength > 64) {
      EXPECT_NEAR(ratio, 1.0 / 8, 1e-12);
    } else {
      const double blend = (64 / wavelength - 1) / 3;
      EXPECT_NEAR(ratio, (1 - blend) / 8 + blend, 1e-12);
      blended = true;
    }
  }
  EXPECT_TRUE(blended);
}

TEST(Rope, BackwardIsTheDefinitionsGradient) {
  const at::Tensor positions = some_positions();
  for (const int64_t head_dim : {2, 18, 72}) {
    const RopeTables tables = rope_tables(31, head_dim, 10000, kLlama3, at::kDouble, at::kCPU);
    const at::Tensor x = random_tensor({7, 3, head_dim}, at::kDouble, 1);
    const at::Tensor dy = random_tensor({7, 3, head_dim}, at::kDouble, 2);
    const auto judge = vjp(
        [&](const std::vector<at::Tensor>& in) {
          const at::Tensor turned = in[0].clone();
          apply_rope_(turned, positions, tables, false, Body::plain);
          return turned;
        },
        {x});
    for (const Body body : {Body::fused, Body::plain}) {
      const at::Tensor y = x.clone(), dx = dy.clone();
      apply_rope_(y, positions, tables, false, body);
      apply_rope_(dx, positions, tables, true, body);
      EXPECT_LT(distance(y, judge.output), kJudge);
      EXPECT_LT(distance(dx, judge.pullback(dy)[0]), kJudge);
      apply_rope_(y, positions, tables, true, body);
      EXPECT_LT(distance(y, x), kJudge);
    }
  }
}

TEST(Rope, TurnsAStridedViewAndNothingBesideIt) {
  const at::Tensor positions = some_positions();
  for (const at::ScalarType dtype : kDtypes) {
    const RopeTables tables = rope_tables(31, 18, 10000, std::nullopt, dtype, at::kCPU);
    const at::Tensor qkv =
        random_tensor({7, 4 * 18}, dtype, 1);  // 2 query heads, a key and a value head
    const at::Tensor fused = qkv.clone(), plain = qkv.clone();
    const auto query_and_key = [](const at::Tensor& all) {
      return all.narrow(1, 0, 3 * 18).unflatten(1, {3, 18});
    };
    apply_rope_(query_and_key(fused), positions, tables, false);
    apply_rope_(query_and_key(plain), positions, tables, false, Body::plain);
    EXPECT_LT(distance(fused, plain), tolerance(dtype));
    EXPECT_GT(distance(fused, qkv), 0.1);
    EXPECT_TRUE(same_bits(fused.narrow(1, 54, 18), qkv.narrow(1, 54, 18)));
  }
}

TEST(Rope, RefusesAPositionBeyondItsTables) {
  const RopeTables tables = rope_tables(30, 18, 10000, std::nullopt, at::kFloat, at::kCPU);
  const at::Tensor x = random_tensor({7, 3, 18}, at::kFloat, 1);
  EXPECT_THROW(apply_rope_(x, some_positions(), tables, false), BrokenInvariant);
}

}  // namespace
}  // namespace picotron
