// The fused CPU bodies as plain functions over pointers and ranges of rows: what kernels/*.cpp call
// from at::parallel_for, and the table through which the instruction set is chosen once, at start.
// Only declarations and plain data here: see vec.h for why no inline function may be shared.
#pragma once
#include <cstdint>

namespace picotron::cpu {

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

template <class S>
struct NormBackwardArguments {
  const S* dy;
  const S* x;
  const Statistic<S>* rstd;
  const S* weight;
  const S* residual_gradient;  // null: none
  S* dx;
  int64_t hidden;
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

// A block of scores: a row for each key, in which lie `queries` neighbouring queries once for each
// of several heads.
struct AttentionBlock {
  const float* scores;  // k qᵀ [keys, heads · queries]
  const float* dp;      // v doutᵀ [keys, heads · queries]
  const float* lse;     // [heads · queries]
  const float* delta;   // rowsum(dout ∘ out) [heads · queries]
  bf16* p;              // written: [keys, heads · queries]
  bf16* ds;
  int64_t keys, heads, queries;
  int64_t first_query;  // query i sees the keys up to first_query + i of the block
  float scale;
};

template <class T>
struct OptimizerArguments {
  T* master;
  T* m;
  T* v;
  const T* gradient;
  bf16* compute_copy;  // null: none
  T gradient_scale;
  double learning_rate, beta1, beta2, eps, weight_decay;
  double step_size, sqrt_bias_correction2;
};

// All functions work on rows (tokens), or elements where there are no rows, [begin, end).
template <class S>
struct TypedKernels {
  void (*rms_norm)(const NormArguments<S>&, int64_t begin, int64_t end);
  // Adds Σ dy·x·rstd over its rows to weight_gradient [hidden].
  void (*rms_norm_backward)(const NormBackwardArguments<S>&, Statistic<S>* weight_gradient,
                            int64_t begin, int64_t end);
  void (*rope)(const RopeArguments<S>&, int64_t begin, int64_t end);
  void (*swiglu)(const S* gate_up, S* y, int64_t width, int64_t begin, int64_t end);
  void (*swiglu_backward)(const S* dy, const S* gate_up, S* d_gate_up, int64_t width, int64_t begin,
                          int64_t end);
  void (*cross_entropy_statistics)(const CrossEntropyArguments<S>&, int64_t begin, int64_t end);
  void (*cross_entropy_gradient)(const CrossEntropyArguments<S>&, int64_t begin, int64_t end);
  double (*sum_of_squares)(const S* x, int64_t begin, int64_t end);
};
template <class T>
struct OptimizerKernels {
  void (*adamw)(const OptimizerArguments<T>&, int64_t begin, int64_t end);
  void (*sgd)(const OptimizerArguments<T>&, int64_t begin, int64_t end);
};

struct Kernels {
  const char* instruction_set;
  void (*attention_gradient)(const AttentionBlock& block);
  // dots[row] = Σ a ∘ b over a row's columns.
  void (*row_dots)(const bf16* a, const bf16* b, float* dots, int64_t rows, int64_t columns);
  // Rounds rows without gaps to rows that begin to_stride apart.
  void (*round_rows)(const float* from, bf16* to, int64_t to_stride, int64_t rows, int64_t columns);
  TypedKernels<bf16> of_bf16;
  TypedKernels<float> of_float;
  TypedKernels<double> of_double;
  OptimizerKernels<float> optimizer_float;
  OptimizerKernels<double> optimizer_double;
};

}  // namespace picotron::cpu

// One table per instruction set; kernels/cpu_dispatch.cpp chooses.
namespace picotron::cpu::DEFAULT {
extern const Kernels kernels;
}
namespace picotron::cpu::AVX2 {
extern const Kernels kernels;
}
namespace picotron::cpu::AVX512 {
extern const Kernels kernels;
}
