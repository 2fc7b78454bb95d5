// Every table of fused kernels that this CPU can run, against the plain bodies: a newer machine
// tests the code of the older ones, and every machine that of GPUs, whose threads are a CPU's here.
// (The other kernel tests see the widest table alone.)
#include <fmt/format.h>

#include <cmath>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/fused_dispatch.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "kernels_support.h"

// CUDA comes before what is written in it, which is compiled for a CPU in this file alone.
#include "cuda_on_cpu.h"
//
#include "cuda/kernels.cu"

namespace picotron {
namespace {

constexpr int64_t kTokens = 9;

template <class S>
struct Typed;
template <>
struct Typed<cpu::bf16> {
  static constexpr at::ScalarType dtype = at::kBFloat16;
  static const auto& of(const fused::Table& table) { return table.of_bf16; }
};
template <>
struct Typed<float> {
  static constexpr at::ScalarType dtype = at::kFloat;
  static const auto& of(const fused::Table& table) { return table.of_float; }
  static const auto& optimizer(const fused::Table& table) { return table.optimizer_float; }
};
template <>
struct Typed<double> {
  static constexpr at::ScalarType dtype = at::kDouble;
  static const auto& of(const fused::Table& table) { return table.of_double; }
  static const auto& optimizer(const fused::Table& table) { return table.optimizer_double; }
};

struct Named {
  const char* name;
  const fused::Table& table;
};

template <class S>
std::vector<Named> tables() {
  std::vector<Named> all;
  for (const cpu::Kernels* kernels : supported_cpu_kernels())
    all.push_back({kernels->instruction_set, kernels->fused});
  if constexpr (!std::is_same_v<S, double>) all.push_back({"a GPU's, on a CPU", cuda::kernels});
  return all;
}

template <class S>
S* data(const at::Tensor& x) {
  return static_cast<S*>(x.data_ptr());
}

template <class S>
class InstructionSets : public testing::Test {
 protected:
  static constexpr at::ScalarType kDtype = Typed<S>::dtype;
  static constexpr at::ScalarType kWide = std::is_same_v<S, double> ? at::kDouble : at::kFloat;
  const double close = tolerance(kDtype);
};
using StorageTypes = testing::Types<cpu::bf16, float, double>;
TYPED_TEST_SUITE(InstructionSets, StorageTypes);

TYPED_TEST(InstructionSets, RmsNorm) {
  using S = TypeParam;
  using C = cpu::Statistic<S>;
  for (const auto& [name, table] : tables<S>()) {
    SCOPED_TRACE(name);
    for (const int64_t hidden : {3, 72, 509, 4104}) {
      const at::Tensor x = random_tensor({kTokens, hidden}, this->kDtype, 1);
      const at::Tensor delta = random_tensor({kTokens, hidden}, this->kDtype, 2);
      const at::Tensor weight = random_tensor({hidden}, this->kDtype, 3);
      const at::Tensor dy = random_tensor({kTokens, hidden}, this->kDtype, 4);
      const at::Tensor sum = at::empty_like(x), y = at::empty_like(x), dx = at::empty_like(x);
      const at::Tensor rstd = at::empty({kTokens}, this->kWide);
      Typed<S>::of(table).rms_norm({.x = data<S>(x),
                                    .delta = data<S>(delta),
                                    .weight = data<S>(weight),
                                    .sum = data<S>(sum),
                                    .y = data<S>(y),
                                    .rstd = data<C>(rstd),
                                    .hidden = hidden,
                                    .eps = 1e-5},
                                   0, kTokens);
      const AddNormOutput plain = add_rms_norm(x, delta, weight, 1e-5, Body::plain);
      EXPECT_TRUE(same_bits(sum, plain.sum));
      EXPECT_LT(distance(y, plain.y), this->close);
      EXPECT_LT(distance(rstd, plain.rstd), 1e-6);
      constexpr int64_t parts = 2;
      const at::Tensor dweight = at::zeros({parts, hidden}, this->kWide);
      const at::Tensor plain_dweight = at::zeros({hidden}, this->kWide);
      Typed<S>::of(table).rms_norm_backward({.dy = data<S>(dy),
                                             .x = data<S>(sum),
                                             .rstd = data<C>(rstd),
                                             .weight = data<S>(weight),
                                             .residual_gradient = data<S>(delta),
                                             .dx = data<S>(dx),
                                             .sums = data<C>(dweight),
                                             .tokens = kTokens,
                                             .hidden = hidden,
                                             .parts = parts},
                                            0, parts);
      EXPECT_LT(distance(dx, rms_norm_backward(dy, plain.sum, plain.rstd, weight, delta,
                                               plain_dweight, Body::plain)),
                this->close);
      EXPECT_LT(distance(dweight.sum(0), plain_dweight), 1e-6);
    }
  }
}

TYPED_TEST(InstructionSets, Rope) {
  using S = TypeParam;
  using C = cpu::Statistic<S>;
  const at::Tensor positions = at::arange(30, 30 - kTokens, -1, at::kLong);
  for (const auto& [name, table] : tables<S>()) {
    SCOPED_TRACE(name);
    for (const int64_t half : {19, 64}) {
      const RopeTables angles =
          rope_tables(40, 2 * half, 1e4, std::nullopt, this->kDtype, at::kCPU);
      for (const bool inverse : {false, true}) {
        const at::Tensor all = random_tensor({kTokens, 4, 2 * half}, this->kDtype, 1);
        const at::Tensor before = all.clone();
        const at::Tensor x = all.narrow(1, 0, 3), plain = x.clone();
        Typed<S>::of(table).rope({.x = data<S>(x),
                                  .token_stride = x.stride(0),
                                  .head_stride = x.stride(1),
                                  .heads = 3,
                                  .half = half,
                                  .positions = positions.data_ptr<int64_t>(),
                                  .cos = data<C>(angles.cos),
                                  .sin = data<C>(angles.sin),
                                  .inverse = inverse},
                                 0, kTokens);
        apply_rope_(plain, positions, angles, inverse, Body::plain);
        EXPECT_LT(distance(x, plain), this->close);
        EXPECT_TRUE(same_bits(all.select(1, 3), before.select(1, 3)));
      }
    }
  }
}

TYPED_TEST(InstructionSets, SwiGlu) {
  using S = TypeParam;
  for (const auto& [name, table] : tables<S>()) {
    SCOPED_TRACE(name);
    for (const int64_t width : {3, 36, 509, 2312}) {
      const at::Tensor gate_up = random_tensor({kTokens, 2 * width}, this->kDtype, 1);
      const at::Tensor y = random_tensor({kTokens, width}, this->kDtype, 2), dy = y.clone();
      const at::Tensor d_gate_up = at::empty_like(gate_up);
      Typed<S>::of(table).swiglu(data<S>(gate_up), data<S>(y), width, 0, kTokens);
      Typed<S>::of(table).swiglu_backward(data<S>(dy), data<S>(gate_up), data<S>(d_gate_up), width,
                                          0, kTokens);
      EXPECT_LT(distance(y, swiglu(gate_up, Body::plain)), this->close);
      EXPECT_LT(distance(d_gate_up, swiglu_backward(dy, gate_up, Body::plain)), this->close);
    }
  }
}

TYPED_TEST(InstructionSets, CrossEntropy) {
  using S = TypeParam;
  using C = cpu::Statistic<S>;
  const at::Tensor targets = at::arange(kTokens, at::kLong);
  for (const auto& [name, table] : tables<S>()) {
    SCOPED_TRACE(name);
    for (const int64_t columns : {3, 509, 4096, 4099}) {
      const at::Tensor logits = random_tensor({kTokens, columns}, this->kDtype, 1);
      const at::Tensor before = logits.clone();
      const at::Tensor statistics = at::empty({kTokens, 3}, this->kWide);
      cpu::CrossEntropyArguments<S> arguments = {.logits = data<S>(logits),
                                                 .targets = targets.data_ptr<int64_t>(),
                                                 .vocab_begin = 2,
                                                 .columns = columns,
                                                 .statistics = data<C>(statistics),
                                                 .lse = nullptr,
                                                 .scale = 0.5};
      Typed<S>::of(table).cross_entropy_statistics(arguments, 0, kTokens);
      EXPECT_LT(distance(statistics, cross_entropy_statistics(before, targets, 2, Body::plain)),
                1e-6);
      const at::Tensor lse = statistics.select(1, 0) + statistics.select(1, 1).log();
      arguments.lse = data<C>(lse);
      Typed<S>::of(table).cross_entropy_gradient(arguments, 0, kTokens);
      cross_entropy_gradient_(before, targets, 2, lse, 0.5, Body::plain);
      EXPECT_LT(distance(logits, before), this->close);
    }
  }
}

TYPED_TEST(InstructionSets, SumOfSquares) {
  using S = TypeParam;
  const at::Tensor x = random_tensor({fused::kSquaresBlock + 10007}, this->kDtype, 1);
  for (const auto& [name, table] : tables<S>()) {
    SCOPED_TRACE(name);
    const at::Tensor sums = at::empty({2}, at::kDouble);
    Typed<S>::of(table).sum_of_squares(data<S>(x), x.numel(), data<double>(sums), 0, 2);
    const double sum = sums.sum().template item<double>();
    const double plain = sum_of_squares(x, Body::plain).template item<double>();
    EXPECT_NEAR(sum, plain, 1e-13 * plain);
  }
}

// Three keys that the block's first query sees, and those beyond; a row per key, two heads.
TEST(AttentionKernels, GradientOfABlock) {
  constexpr int64_t keys = 21, heads = 2, queries = 19, columns = heads * queries;
  const at::Tensor s = random_tensor({keys, columns}, at::kFloat, 1);
  const at::Tensor dp = random_tensor({keys, columns}, at::kFloat, 2);
  const at::Tensor lse = random_tensor({columns}, at::kFloat, 3);
  const at::Tensor delta = random_tensor({columns}, at::kFloat, 4);
  for (const cpu::Kernels* kernels : supported_cpu_kernels()) {
    SCOPED_TRACE(kernels->instruction_set);
    for (const int64_t first_query : {int64_t{2}, int64_t{-1}, keys}) {
      const at::Tensor p = at::full({keys, columns}, 7, at::kBFloat16), ds = p.clone();
      kernels->attention_gradient({.scores = data<float>(s),
                                   .dp = data<float>(dp),
                                   .lse = data<float>(lse),
                                   .delta = data<float>(delta),
                                   .p = data<cpu::bf16>(p),
                                   .ds = data<cpu::bf16>(ds),
                                   .keys = keys,
                                   .heads = heads,
                                   .queries = queries,
                                   .first_query = first_query,
                                   .scale = 0.3F});
      const at::Tensor last_key = at::arange(queries) + first_query;
      const at::Tensor seen =
          (at::arange(keys).unsqueeze(1) <= last_key.repeat({heads})).to(at::kDouble);
      const at::Tensor want = (s.to(at::kDouble) * 0.3 - lse).exp() * seen;
      EXPECT_LT(distance(p, want), tolerance(at::kBFloat16));
      EXPECT_LT(distance(ds, want * (dp - delta) * 0.3), tolerance(at::kBFloat16));
    }
  }
}

TEST(AttentionKernels, RowDotsAndRoundRows) {
  constexpr int64_t rows = 5;
  for (const cpu::Kernels* kernels : supported_cpu_kernels()) {
    SCOPED_TRACE(kernels->instruction_set);
    for (const int64_t columns : {1, 24, 64, 131}) {
      const at::Tensor a = random_tensor({rows, columns}, at::kBFloat16, 1);
      const at::Tensor b = random_tensor({rows, columns}, at::kBFloat16, 2);
      const at::Tensor dots = at::empty({rows}, at::kFloat);
      kernels->row_dots(data<cpu::bf16>(a), data<cpu::bf16>(b), data<float>(dots), rows, columns);
      EXPECT_LT(distance(dots, (a.to(at::kDouble) * b.to(at::kDouble)).sum(1)), 1e-5);

      const at::Tensor wide = random_tensor({rows, columns}, at::kFloat, 3);
      const at::Tensor narrow = at::full({rows, columns + 3}, 7, at::kBFloat16);
      kernels->round_rows(data<float>(wide), data<cpu::bf16>(narrow), columns + 3, rows, columns);
      EXPECT_TRUE(same_bits(narrow.slice(1, 0, columns), wide.to(at::kBFloat16)));
      EXPECT_TRUE((narrow.slice(1, columns) == 7).all().item<bool>());
    }
  }
}

TYPED_TEST(InstructionSets, Optimizers) {
  using T = TypeParam;
  if constexpr (!std::is_same_v<T, cpu::bf16>) {
    // An odd length; one of whole vectors; the same where none of them is aligned, as ZeRO-1 cuts.
    for (const auto& [n, first] :
         std::vector<std::pair<int64_t, int64_t>>{{1003, 0}, {1004, 0}, {1004, 1}}) {
      for (const auto& [name, table] : tables<T>()) {
        SCOPED_TRACE(fmt::format("{}, {} from {}", name, n, first));
        const auto dtype = this->kDtype;
        const auto slice = [&](uint64_t seed) {
          return random_tensor({n + first}, dtype, seed).narrow(0, first, n);
        };
        const at::Tensor master = slice(1), plain_master = master.clone();
        const at::Tensor m = slice(2), plain_m = m.clone();
        const at::Tensor v = slice(3).square_(), plain_v = v.clone();
        const at::Tensor gradient = slice(4);
        const bool has_copy = dtype == at::kFloat;
        const at::Tensor copy = has_copy ? slice(1).to(at::kBFloat16) : at::Tensor();
        const AdamWOptions options = kThirdUpdate;
        const at::Tensor scale = at::scalar_tensor(0.5, at::TensorOptions().dtype(dtype));
        const cpu::OptimizerArguments<T> arguments = {
            .master = data<T>(master),
            .m = data<T>(m),
            .v = data<T>(v),
            .gradient = data<T>(gradient),
            .compute_copy = has_copy ? data<cpu::bf16>(copy) : nullptr,
            .gradient_scale = data<T>(scale),
            .learning_rate = options.learning_rate,
            .beta1 = options.beta1,
            .beta2 = options.beta2,
            .eps = options.eps,
            .weight_decay = options.weight_decay,
            .step_size = options.learning_rate / (1 - std::pow(options.beta1, 3)),
            .sqrt_bias_correction2 = std::sqrt(1 - std::pow(options.beta2, 3))};
        Typed<T>::optimizer(table).adamw(arguments, 0, n);
        adamw_(plain_master, plain_m, plain_v, gradient, {}, scale, options, Body::plain);
        EXPECT_LT(distance(master, plain_master), this->close);
        EXPECT_LT(distance(m, plain_m), this->close);
        EXPECT_LT(distance(v, plain_v), this->close);
        if (has_copy) {
          EXPECT_TRUE(same_bits(copy, master.to(at::kBFloat16)));
        }
        Typed<T>::optimizer(table).sgd(arguments, 0, n);
        sgd_(plain_master, gradient, {}, scale, 1e-2, 0.1, Body::plain);
        EXPECT_LT(distance(master, plain_master), this->close);
      }
    }
  }
}

}  // namespace
}  // namespace picotron
