// What kernels/cpu holds: the fused bodies (fused_kernels.h) and attention,
// once per instruction set. Only declarations and plain data here: see vec.h.
#pragma once
#include "kernels/fused_kernels.h"

namespace picotron::cpu {

using fused::bf16;
using fused::CrossEntropyArguments;
using fused::NormArguments;
using fused::NormBackwardArguments;
using fused::OptimizerArguments;
using fused::RopeArguments;
using fused::Statistic;
using fused::TypedKernels;

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

// Rows of several heads: element i of one is data[head · head_stride + row · row_stride + i].
template <class T>
struct HeadRows {
  T* data;
  int64_t head_stride, row_stride;
};

inline constexpr int64_t kAttentionRows = 64;  // queries at a time

// One key/value head of a sequence, and the query heads that read it.
struct AttentionShape {
  int64_t heads, queries, keys, dim;
  int64_t keys_row, dim_row;  // keys and dim, rounded up to a multiple of 16
  bool causal;                // query i sees the keys 0..i, and there are as many of both
  double scale;
};

// Room to work in, of one thread.
template <class C>
struct AttentionBuffers {
  C *k, *v;                        // [keys, dim_row]; v: forward alone
  C *dk, *dv;                      // the same, backward alone
  C *k_transposed, *v_transposed;  // [dim, keys_row]; v_transposed: backward alone
  C *q, *dout;                     // [kAttentionRows, dim_row]
  C *p, *ds;                       // [kAttentionRows, keys_row]
  C* result;                       // the same as q
};

template <class S>
struct AttentionForward {
  AttentionShape shape;
  HeadRows<const S> q, k, v;
  HeadRows<S> out;             // written
  HeadRows<Statistic<S>> lse;  // written: one element a row
  AttentionBuffers<Statistic<S>> buffers;
};

template <class S>
struct AttentionBackward {
  AttentionShape shape;
  HeadRows<const S> q, k, v, out, dout;
  HeadRows<const Statistic<S>> lse;
  HeadRows<S> dq, dk, dv;  // written
  AttentionBuffers<Statistic<S>> buffers;
};

template <class S>
struct AttentionKernels {
  void (*forward)(const AttentionForward<S>&);
  void (*backward)(const AttentionBackward<S>&);
};

struct Kernels {
  const char* instruction_set;
  AttentionKernels<bf16> attention_bf16;
  AttentionKernels<float> attention_float;
  AttentionKernels<double> attention_double;
  void (*attention_gradient)(const AttentionBlock& block);
  // dots[row] = Σ a ∘ b over a row's columns.
  void (*row_dots)(const bf16* a, const bf16* b, float* dots, int64_t rows, int64_t columns);
  // Rounds rows without gaps to rows that begin to_stride apart.
  void (*round_rows)(const float* from, bf16* to, int64_t to_stride, int64_t rows, int64_t columns);
  fused::Table fused;
};

}  // namespace picotron::cpu

// One table per instruction set; kernels/fused_dispatch.cpp chooses.
namespace picotron::cpu::DEFAULT {
extern const Kernels kernels;
}
namespace picotron::cpu::AVX2 {
extern const Kernels kernels;
}
namespace picotron::cpu::AVX512 {
extern const Kernels kernels;
}
