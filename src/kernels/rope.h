// Rotary position embedding, RoPE (Su et al. 2021, "RoFormer"). Element i of the first half of a
// head and element i of the second half are the two coordinates of a point, rotated by the angle
// position · inv_freq[i]:
//
//     head:  [ a0 a1 a2 … | b0 b1 b2 … ]          inv_freq[i] = 1 / theta^(2i / head_dim)
//     a' = a·cos − b·sin                          (the "half rotation" of transformers' Llama)
//     b' = b·cos + a·sin
//
// so that the product of a query and a key depends on the distance between them alone. The backward
// of a rotation is the rotation by the opposite angle. Llama 3 stretches the low frequencies to
// reach beyond the length it was trained on (RopeScaling). The tables are fp32 even when the model
// is bf16: position 4,000 rounded to bf16 is off by up to 8 radians.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>

#include "kernels/body.h"

namespace picotron {

// `rope_scaling` of a config.json with rope_type "llama3".
struct RopeScaling {
  double factor;
  double low_freq_factor;
  double high_freq_factor;
  int64_t original_max_position_embeddings;
};

struct RopeTables {
  at::Tensor cos, sin;  // [positions, head_dim / 2], fp32; fp64 for compute_dtype float64
};

// Tables for positions 0 … positions − 1, in transformers' order of rounding (inv_freq, then angle,
// then cos, each fp32), or all in fp64 when compute_dtype is float64.
RopeTables rope_tables(int64_t positions, int64_t head_dim, double theta,
                       const std::optional<RopeScaling>& scaling, at::ScalarType compute_dtype,
                       c10::Device device);

// Rotates x in place: [tokens, heads, head_dim], a view whose last dim is contiguous and whose
// other strides are free, so q and k, which lie side by side in the fused product
// [tokens, (q + 2·kv)·head_dim], are rotated by one call with heads = q + kv.
// positions: int64 [tokens], each below the tables' length. inverse: by −angle, the backward.
void apply_rope_(const at::Tensor& x, const at::Tensor& positions, const RopeTables& tables,
                 bool inverse, Body body = Body::fused);

}  // namespace picotron
