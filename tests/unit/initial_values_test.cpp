// Initial values: the generator against the published known answers of Random123, and that an
// element depends on seed, name and index alone: not on shards, threads or neighbours.
#include "model/initial_values.h"

#include <ATen/Parallel.h>

#include <array>
#include <cmath>

#include "kernels_support.h"

namespace picotron {
namespace {

using Words = std::array<uint32_t, 4>;

Words words(const PhiloxBlock& block) {
  return {block.x[0], block.x[1], block.x[2], block.x[3]};
}

// The file kat_vectors of Random123, lines "philox4x32 10".
TEST(InitialValuesTest, PhiloxGivesThePublishedKnownAnswers) {
  EXPECT_EQ(words(philox(0, 0)), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint64_t ones = ~uint64_t{0};
  EXPECT_EQ(words(philox(ones, ones, ones)),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox(0x299f31d0'a4093822, 0x85a308d3'243f6a88, 0x03707344'13198a2e)),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

Parameter parameter_of(const std::string& name, std::vector<int64_t> shape, Role role,
                       int64_t fan_in = 25) {
  return {
      .name = name, .full_shape = shape, .shard = {0, 0, shape[0]}, .role = role, .fan_in = fan_in};
}

// One parameter, filled: [local shape], float64.
at::Tensor filled(const Parameter& parameter, const InitialValuesOptions& options = {}) {
  Parameters parameters;
  parameters.declare({parameter});
  parameters.allocate(at::kDouble);
  fill_initial_values(parameters, parameters.flat(), options);
  return parameters.list()[0].value;
}

constexpr InitialValuesOptions kReference = {.kind = InitialValues::reference};

TEST(InitialValuesTest, AShardIsASliceOfTheWhole) {
  for (const InitialValuesOptions& options : {InitialValuesOptions{}, kReference}) {
    const Parameter whole = parameter_of("w", {17, 23}, Role::linear);
    const at::Tensor all = filled(whole, options);
    for (const Shard& shard :
         {Shard{0, 0, 6}, Shard{0, 5, 17}, Shard{1, 0, 8}, Shard{1, 7, 23}, Shard{1, 22, 23}}) {
      Parameter part = whole;
      part.shard = shard;
      EXPECT_TRUE(same_bits(filled(part, options),
                            all.narrow(shard.dim, shard.begin, shard.end - shard.begin)))
          << "dim " << shard.dim << " from " << shard.begin;
    }
    Parameter cube = parameter_of("c", {3, 5, 7}, Role::linear);
    const at::Tensor all_of_cube = filled(cube, options);
    cube.shard = {1, 1, 4};
    EXPECT_TRUE(same_bits(filled(cube, options), all_of_cube.narrow(1, 1, 3)));
  }
}

TEST(InitialValuesTest, ThreadsNeighboursAndPrecisionChangeNothing) {
  const Parameter large = parameter_of("large", {300, 301}, Role::linear);
  const at::Tensor expected = filled(large);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  EXPECT_TRUE(same_bits(filled(large), expected));
  at::set_num_threads(3);
  EXPECT_TRUE(same_bits(filled(large), expected));
  at::set_num_threads(threads);

  Parameters parameters;
  parameters.declare({parameter_of("before", {5, 3}, Role::embedding)});
  parameters.declare({parameter_of("beside", {2, 301}, Role::linear), large});
  parameters.allocate(at::kBFloat16);
  fill_initial_values(parameters, parameters.flat(), {});
  EXPECT_TRUE(same_bits(parameters.list()[2].value, expected.to(at::kBFloat16)))
      << "drawn in float64, rounded once";
  const at::Tensor master = at::zeros({parameters.flat_numel()}, at::kFloat);
  fill_initial_values(parameters, master, {});
  EXPECT_TRUE(same_bits(master.narrow(0, parameters.list()[2].offset, large.numel()),
                        expected.to(at::kFloat).view({-1})));
}

TEST(InitialValuesTest, NamesSeedsAndIndicesDiffer) {
  const at::Tensor a =
      filled(parameter_of("model.layers.0.mlp.up_proj.weight", {50, 50}, Role::linear));
  const at::Tensor b =
      filled(parameter_of("model.layers.1.mlp.up_proj.weight", {50, 50}, Role::linear));
  const at::Tensor c = filled(
      parameter_of("model.layers.0.mlp.up_proj.weight", {50, 50}, Role::linear), {.seed = 43});
  const auto correlation = [](const at::Tensor& x, const at::Tensor& y) {
    return ((x * y).mean() / (x.std() * y.std())).item<double>();
  };
  EXPECT_TRUE(same_bits(
      filled(parameter_of("model.layers.0.mlp.up_proj.weight", {50, 50}, Role::linear)), a));
  for (const at::Tensor& other : {b, c}) {
    EXPECT_FALSE((a == other).any().item<bool>());
    EXPECT_LT(std::abs(correlation(a, other)), 0.1);  // five standard deviations of 2,500 draws
  }
  const at::Tensor flat = a.view({-1});
  for (const int64_t lag : {1, 2, 50}) {
    const int64_t n = flat.numel() - lag;
    EXPECT_LT(std::abs(correlation(flat.narrow(0, 0, n), flat.narrow(0, lag, n))), 0.1);
  }
}

TEST(InitialValuesTest, NormalIsThatOfTransformers) {
  constexpr double kN = 1000.0 * 1001.0;
  for (const Role role : {Role::linear, Role::embedding}) {
    const at::Tensor x =
        filled(parameter_of("w", {1000, 1001}, role), {.initializer_range = 0.03}) / 0.03;
    EXPECT_LT(std::abs(x.mean().item<double>()), 5 / std::sqrt(kN));
    EXPECT_NEAR(x.std().item<double>(), 1, 5 / std::sqrt(2 * kN));
    EXPECT_NEAR(x.pow(4).mean().item<double>(), 3, 5 * std::sqrt(96 / kN));  // not merely spread so
    for (const auto& [bound, inside] :
         {std::pair{1.0, 0.682689}, {2.0, 0.954500}, {3.0, 0.997300}}) {
      EXPECT_NEAR((x.abs() < bound).to(at::kDouble).mean().item<double>(), inside,
                  5 * std::sqrt(inside * (1 - inside) / kN));
    }
  }
  EXPECT_TRUE((filled(parameter_of("b", {9}, Role::bias)) == 0).all().item<bool>());
  EXPECT_TRUE((filled(parameter_of("n", {9}, Role::norm)) == 1).all().item<bool>());
}

TEST(InitialValuesTest, ReferenceIsThatOfPyTorchsModules) {
  constexpr double kN = 500.0 * 400.0;
  // The layer's whole fan-in counts, whatever the shard's.
  const at::Tensor x = filled(parameter_of("w", {500, 400}, Role::linear, 400), kReference) * 20;
  EXPECT_LE(x.abs().max().item<double>(), 1);
  EXPECT_GT(x.max().item<double>(), 0.9999);
  EXPECT_LT(x.min().item<double>(), -0.9999);
  EXPECT_LT(std::abs(x.mean().item<double>()), 5 * std::sqrt(1 / 3.0 / kN));
  EXPECT_NEAR(x.square().mean().item<double>(), 1 / 3.0, 5 * std::sqrt(4 / 45.0 / kN));

  const at::Tensor bias = filled(parameter_of("b", {9}, Role::bias, 400), kReference);
  EXPECT_LE(bias.abs().max().item<double>(), 1.0 / 20);
  EXPECT_GT(bias.abs().min().item<double>(), 0);
  EXPECT_NEAR(
      filled(parameter_of("e", {500, 400}, Role::embedding), kReference).std().item<double>(), 1,
      5 / std::sqrt(2 * kN));
  EXPECT_TRUE((filled(parameter_of("n", {9}, Role::norm), kReference) == 1).all().item<bool>());
}

}  // namespace
}  // namespace picotron
