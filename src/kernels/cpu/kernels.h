// What kernels/cpu holds: the fused bodies (fused_kernels.h) and the loops of attention's backward,
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

struct Kernels {
  const char* instruction_set;
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
