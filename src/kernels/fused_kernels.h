// The fused bodies as plain functions over pointers: what kernels/*.cpp call, on a CPU piece by
// piece from at::parallel_for (kernels/cpu), on a GPU once for all rows (src/cuda/kernels.cu).
// Only declarations and plain data here: see cpu/vec.h for why no inline function may be shared.
#pragma once
#include <cstdint>

namespace picotron::fused {

using bf16 = uint16_t;  // its bits

// Statistics and tables are fp32, or fp64 where the data are.
template <class S>
struct StatisticOf {
  using type = float;
};
template <>
struct StatisticOf<double> {
  using type = double;
};
template <class S>
using Statistic = typename StatisticOf<S>::type;

template <class S>
struct NormArguments {
  const S* x;
  const S* delta;  // null: a norm without addition
  const S* weight;
  S* sum;  // where delta is given
  S* y;
  Statistic<S>* rstd;
  int64_t hidden;
  double eps;
};

// The tokens are cut into parts: part p holds tokens · p / parts up to tokens · (p + 1) / parts.
template <class S>
struct NormBackwardArguments {
  const S* dy;
  const S* x;
  const Statistic<S>* rstd;
  const S* weight;
  const S* residual_gradient;  // null: none
  S* dx;
  Statistic<S>* sums;  // [parts, hidden], zeros: Σ dy·x·rstd of each part's tokens is added
  int64_t tokens, hidden, parts;
};

template <class S>
struct RopeArguments {
  S* x;
  int64_t token_stride, head_stride;  // in elements
  int64_t heads, half;                // half = head_dim / 2
  const int64_t* positions;
  const Statistic<S>* cos;
  const Statistic<S>* sin;
  bool inverse;
};

template <class S>
struct CrossEntropyArguments {
  S* logits;
  const int64_t* targets;  // of the whole vocabulary
  int64_t vocab_begin, columns;
  Statistic<S>* statistics;  // [tokens, 3]: written by the statistics
  const Statistic<S>* lse;   // [tokens]: read by the gradient
  double scale;
};

inline constexpr int64_t kSquaresBlock = 65536;  // elements of one sum of squares

template <class T>
struct OptimizerArguments {
  T* master;
  T* m;
  T* v;
  const T* gradient;
  bf16* compute_copy;       // null: none
  const T* gradient_scale;  // one number, where the data are; on a GPU not finite: nothing changes
  double learning_rate, beta1, beta2, eps, weight_decay;
  double step_size, sqrt_bias_correction2;
};

// All functions work on rows (tokens), or elements where there are no rows, [begin, end). On a GPU
// begin is 0 and end the number of all; they return before the work is done, as ATen's do.
template <class S>
struct TypedKernels {
  void (*rms_norm)(const NormArguments<S>&, int64_t begin, int64_t end);
  void (*rms_norm_backward)(const NormBackwardArguments<S>&, int64_t begin, int64_t end);  // parts
  void (*rope)(const RopeArguments<S>&, int64_t begin, int64_t end);
  void (*swiglu)(const S* gate_up, S* y, int64_t width, int64_t begin, int64_t end);
  void (*swiglu_backward)(const S* dy, const S* gate_up, S* d_gate_up, int64_t width, int64_t begin,
                          int64_t end);
  void (*cross_entropy_statistics)(const CrossEntropyArguments<S>&, int64_t begin, int64_t end);
  void (*cross_entropy_gradient)(const CrossEntropyArguments<S>&, int64_t begin, int64_t end);
  // sums[b] = Σ x² over block b's elements of x [elements]; the range is of blocks.
  void (*sum_of_squares)(const S* x, int64_t elements, double* sums, int64_t begin, int64_t end);
};
template <class T>
struct OptimizerKernels {
  void (*adamw)(const OptimizerArguments<T>&, int64_t begin, int64_t end);
  void (*sgd)(const OptimizerArguments<T>&, int64_t begin, int64_t end);
};

// One table for a CPU's instruction set, one for GPUs (without fp64: null).
struct Table {
  TypedKernels<bf16> of_bf16;
  TypedKernels<float> of_float;
  TypedKernels<double> of_double;
  OptimizerKernels<float> optimizer_float;
  OptimizerKernels<double> optimizer_double;
};

}  // namespace picotron::fused
