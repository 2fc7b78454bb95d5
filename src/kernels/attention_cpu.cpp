// The walk over blocks; the element-wise part of a block: cpu/attention_kernels.cpp.
#include "kernels/attention_cpu.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>

#include "kernels/cpu_dispatch.h"
#include "kernels/matmul_onednn.h"

namespace picotron {
namespace {

constexpr int64_t kRows = 256, kKeys = 512;  // of a block: what it needs fits a core's second cache

// The part of one key/value head: q, dout and out [group, queries, dim], lse [group, queries],
// k and v [keys, dim].
struct Part {
  at::Tensor q, dout, out, lse, k, v;
};

at::Tensor rows_of(const at::Tensor& heads, int64_t first, int64_t count) {
  return heads.narrow(1, first, count).reshape({heads.size(0) * count, -1}).contiguous();
}

// The first elements of a buffer as a [rows, columns] matrix.
at::Tensor matrix(const at::Tensor& buffer, int64_t rows, int64_t columns) {
  return buffer.narrow(0, 0, rows * columns).view({rows, columns});
}

void backward(const Part& in, bool causal, double scale, const AttentionGradients& into) {
  const int64_t group = in.q.size(0), queries = in.q.size(1), dim = in.q.size(2);
  const int64_t keys = in.k.size(0);
  const at::TensorOptions narrow = in.q.options(), wide = narrow.dtype(at::kFloat);
  const auto most = static_cast<int64_t>(std::bit_ceil(
      static_cast<uint64_t>(std::max<int64_t>(kRows / group, 32))));  // queries of a block
  const int64_t area = group * std::min(most, queries) * std::min(kKeys, keys);
  const at::Tensor s = at::empty({area}, wide), dp = at::empty({area}, wide);
  const at::Tensor p = at::empty({area}, narrow), ds = at::empty({area}, narrow);
  const at::Tensor k = in.k.contiguous(), v = in.v.contiguous();
  const at::Tensor dk = at::zeros({keys, dim}, wide), dv = at::zeros({keys, dim}, wide);

  for (int64_t query = 0; query < queries; query += most) {
    const int64_t count = std::min(most, queries - query), rows = group * count;
    const at::Tensor q = rows_of(in.q, query, count), dout = rows_of(in.dout, query, count);
    const at::Tensor lse = rows_of(in.lse.unsqueeze(2), query, count);
    const at::Tensor delta = (dout.to(at::kFloat) * rows_of(in.out, query, count)).sum(1);
    const at::Tensor dq = at::empty({rows, dim}, wide);
    const int64_t seen = causal ? std::min(keys, query + count) : keys;
    for (int64_t key = 0; key < seen; key += kKeys) {
      const int64_t width = std::min(kKeys, seen - key);
      const at::Tensor k_block = k.narrow(0, key, width), v_block = v.narrow(0, key, width);
      const at::Tensor p_block = matrix(p, rows, width), ds_block = matrix(ds, rows, width);
      onednn_product(matrix(s, rows, width), q, k_block.t(), /*accumulate=*/false);
      onednn_product(matrix(dp, rows, width), dout, v_block.t(), /*accumulate=*/false);
      cpu_kernels().attention_gradient({.scores = s.data_ptr<float>(),
                                        .dp = dp.data_ptr<float>(),
                                        .lse = lse.data_ptr<float>(),
                                        .delta = delta.data_ptr<float>(),
                                        .p = static_cast<cpu::bf16*>(p.data_ptr()),
                                        .ds = static_cast<cpu::bf16*>(ds.data_ptr()),
                                        .rows = rows,
                                        .keys = width,
                                        .queries = count,
                                        .first_seen = causal ? query - key + 1 : width,
                                        .scale = static_cast<float>(scale)});
      onednn_product(dv.narrow(0, key, width), p_block.t(), dout, /*accumulate=*/true);
      onednn_product(dk.narrow(0, key, width), ds_block.t(), q, /*accumulate=*/true);
      onednn_product(dq, ds_block, k_block, /*accumulate=*/key > 0);
    }
    into.dq.narrow(1, query, count).copy_(dq.view({group, count, dim}));
  }
  into.dk.copy_(dk);
  into.dv.copy_(dv);
}

// [batch, heads, seq, head_dim], in memory [batch, seq, heads, head_dim].
at::Tensor empty_like_rows(const at::Tensor& x) {
  return at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
}

}  // namespace

bool attention_cpu_computes(const at::Tensor& q) {
  return q.scalar_type() == at::kBFloat16 && onednn_computes(q);
}

AttentionGradients attention_cpu_backward(const at::Tensor& dout, const at::Tensor& q,
                                          const at::Tensor& k, const at::Tensor& v,
                                          const AttentionOutput& saved, bool causal, double scale) {
  const int64_t key_value_heads = k.size(1), group = q.size(1) / key_value_heads;
  const AttentionGradients all = {empty_like_rows(q), empty_like_rows(k), empty_like_rows(v)};
  at::parallel_for(0, q.size(0) * key_value_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / key_value_heads, head = i % key_value_heads;
      const auto queries = [&](const at::Tensor& x) {
        return x.select(0, row).narrow(0, head * group, group);
      };
      const auto keys = [&](const at::Tensor& x) { return x.select(0, row).select(0, head); };
      backward(
          {queries(q), queries(dout), queries(saved.out), queries(saved.lse), keys(k), keys(v)},
          causal, scale, {queries(all.dq), keys(all.dk), keys(all.dv)});
    }
  });
  return all;
}

}  // namespace picotron
