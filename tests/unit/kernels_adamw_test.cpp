// The optimizers against plain loops written here, the no-op on a scale that is not finite, and a
// sum of squares whose bits do not depend on the threads.
#include "kernels/adamw.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "kernels_support.h"

namespace picotron {
namespace {

constexpr int64_t kElements = 40007;  // several tasks, and an odd end

struct State {
  at::Tensor master, m, v, gradient, copy;
  State clone() const {
    return {master.clone(), m.clone(), v.clone(), gradient.clone(),
            copy.defined() ? copy.clone() : copy};
  }
};

State some_state(at::ScalarType dtype) {
  State state = {random_tensor({kElements}, dtype, 1),
                 at::zeros({kElements}, dtype),
                 at::zeros({kElements}, dtype),
                 random_tensor({kElements}, dtype, 2),
                 {}};
  if (dtype == at::kFloat) state.copy = state.master.to(at::kBFloat16);
  return state;
}

template <class T>
void loop_adamw(State& state, T scale, const AdamWOptions& options) {
  T* w = state.master.data_ptr<T>();
  T* m = state.m.data_ptr<T>();
  T* v = state.v.data_ptr<T>();
  const T* g = state.gradient.data_ptr<T>();
  const double step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step);
  const double correction2 = 1 - std::pow(options.beta2, step);
  for (int64_t i = 0; i < kElements; ++i) {
    const double gradient = static_cast<double>(g[i]) * static_cast<double>(scale);
    const double new_m = options.beta1 * static_cast<double>(m[i]) + (1 - options.beta1) * gradient;
    const double new_v =
        options.beta2 * static_cast<double>(v[i]) + (1 - options.beta2) * gradient * gradient;
    const double decayed =
        static_cast<double>(w[i]) * (1 - options.learning_rate * options.weight_decay);
    w[i] = static_cast<T>(decayed - options.learning_rate * (new_m / correction1) /
                                        (std::sqrt(new_v / correction2) + options.eps));
    m[i] = static_cast<T>(new_m);
    v[i] = static_cast<T>(new_v);
  }
}

template <class T>
void compare_adamw(at::ScalarType dtype, double tolerance_of_master) {
  for (const double weight_decay : {0.0, 0.1}) {
    State fused = some_state(dtype), plain = fused.clone(), loop = fused.clone();
    const at::Tensor scale = at::scalar_tensor(0.37, at::TensorOptions().dtype(dtype));
    for (int64_t step = 1; step <= 5; ++step) {
      const AdamWOptions options = {.learning_rate = 1e-2,
                                    .beta1 = 0.9,
                                    .beta2 = 0.95,
                                    .eps = 1e-8,
                                    .weight_decay = weight_decay,
                                    .step = step};
      adamw_(fused.master, fused.m, fused.v, fused.gradient, fused.copy, scale, options);
      adamw_(plain.master, plain.m, plain.v, plain.gradient, plain.copy, scale, options,
             Body::plain);
      loop_adamw<T>(loop, scale.item<T>(), options);
    }
    for (const State& state : {fused, plain}) {
      EXPECT_LT(distance(state.master, loop.master), tolerance_of_master);
      EXPECT_LT(distance(state.m, loop.m), tolerance_of_master);
      EXPECT_LT(distance(state.v, loop.v), tolerance_of_master);
      if (state.copy.defined()) {
        EXPECT_TRUE(same_bits(state.copy, state.master.to(at::kBFloat16)));
      }
    }
    EXPECT_TRUE(same_bits(fused.gradient, loop.gradient));
  }
}

TEST(AdamW, IsAPlainLoop) {
  compare_adamw<float>(at::kFloat, 5e-7);
  compare_adamw<double>(at::kDouble, 1e-14);
}

TEST(AdamW, AScaleThatIsNotFiniteChangesNothing) {
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    for (const Body body : {Body::fused, Body::plain}) {
      State state = some_state(at::kFloat);
      const State before = state.clone();
      const at::Tensor scale = at::scalar_tensor(bad, at::TensorOptions().dtype(at::kFloat));
      adamw_(state.master, state.m, state.v, state.gradient, state.copy, scale,
             {.learning_rate = 1e-2,
              .beta1 = 0.9,
              .beta2 = 0.95,
              .eps = 1e-8,
              .weight_decay = 0.1,
              .step = 1},
             body);
      sgd_(state.master, state.gradient, state.copy, scale, 1e-2, 0.1, body);
      EXPECT_TRUE(same_bits(state.master, before.master));
      EXPECT_TRUE(same_bits(state.m, before.m));
      EXPECT_TRUE(same_bits(state.v, before.v));
      EXPECT_TRUE(same_bits(state.copy, before.copy));
    }
  }
}

TEST(Sgd, IsTheFormula) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const Body body : {Body::fused, Body::plain}) {
      const State state = some_state(dtype), before = state.clone();
      sgd_(state.master, state.gradient, state.copy,
           at::scalar_tensor(0.5, at::TensorOptions().dtype(dtype)), 0.1, 0.01, body);
      const at::Tensor w = before.master.to(at::kDouble), g = before.gradient.to(at::kDouble);
      EXPECT_LT(distance(state.master, w - 0.1 * (0.5 * g + 0.01 * w)), tolerance(dtype));
      if (state.copy.defined()) {
        EXPECT_TRUE(same_bits(state.copy, state.master.to(at::kBFloat16)));
      }
    }
  }
}

TEST(AdamW, RefusesABf16CopyOfAnotherLength) {
  const State state = some_state(at::kFloat);
  EXPECT_THROW(sgd_(state.master, state.gradient, state.copy.narrow(0, 0, 5),
                    at::scalar_tensor(1.0, at::TensorOptions().dtype(at::kFloat)), 0.1, 0),
               BrokenInvariant);
}

TEST(SumOfSquares, IsExactAndHasTheSameBitsOnAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t elements : {0, 1, 65536, 300001}) {
      const at::Tensor x = random_tensor({elements}, dtype, 1);
      const double plain = sum_of_squares(x, Body::plain).item<double>();
      std::vector<double> sums;
      for (const int n : {1, 2, 3}) {
        at::set_num_threads(n);
        sums.push_back(sum_of_squares(x).item<double>());
      }
      at::set_num_threads(threads);
      EXPECT_NEAR(sums[0], plain, 1e-13 * plain);
      EXPECT_EQ(sums[0], sums[1]);
      EXPECT_EQ(sums[0], sums[2]);
    }
  }
}

}  // namespace
}  // namespace picotron
