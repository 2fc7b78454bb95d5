// The walk over blocks; the element-wise part of a block: cpu/attention_block_kernels.cpp.
#include "kernels/attention_onednn.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/attention_heads.h"
#include "kernels/matmul_onednn.h"

namespace picotron {
namespace {

using cpu::bf16, cpu::HeadRows;

constexpr int64_t kRows = 256, kKeys = 512;  // of a block: what it needs fits a core's second cache

struct Shape {
  int64_t group, queries, keys, dim;  // group: query heads of one key/value head
  bool causal;
  float scale;

  // A power of two where there is more than one block.
  int64_t queries_of_block() const {
    const auto most = static_cast<uint64_t>(std::max<int64_t>(kRows / group, 32));
    return std::min(queries, static_cast<int64_t>(std::bit_floor(most)));
  }
  int64_t keys_of_block() const { return std::min(kKeys, keys); }
};

// One key/value head of one sequence, and the query heads that read it.
struct Part {
  HeadRows<bf16> q, dout, out, k, v;
  HeadRows<float> lse;
  HeadRows<bf16> dq, dk, dv;
};

template <class T>
struct Buffer {
  explicit Buffer(int64_t elements)
      : memory(at::empty({elements * int64_t{sizeof(T)}}, at::kByte)),
        data(static_cast<T*>(memory.data_ptr())) {}
  at::Tensor memory;  // aligned as vectors want it
  T* data;
};

// Of one thread, for all blocks of all its heads.
struct Workspace {
  explicit Workspace(const Shape& s)
      : Workspace(s, s.group * s.queries_of_block(), s.keys_of_block()) {}
  Buffer<float> scores, dp;      // [keys of a block, rows of a block]
  Buffer<bf16> p, ds;            // the same
  Buffer<bf16> q, dout, out;     // [rows of a block, dim]
  Buffer<float> lse, delta, dq;  // [rows of a block], [rows of a block], [rows of a block, dim]
  Buffer<bf16> k, v;             // [keys, dim]
  Buffer<float> dk, dv;          // [keys, dim]

 private:
  Workspace(const Shape& s, int64_t rows, int64_t keys)
      : scores(keys * rows),
        dp(keys * rows),
        p(keys * rows),
        ds(keys * rows),
        q(rows * s.dim),
        dout(rows * s.dim),
        out(rows * s.dim),
        lse(rows),
        delta(rows),
        dq(rows * s.dim),
        k(s.keys * s.dim),
        v(s.keys * s.dim),
        dk(s.keys * s.dim),
        dv(s.keys * s.dim) {}
};

// `count` rows of each head, from row `first` on, one head after the other, without gaps.
template <class T>
void gather(const HeadRows<T>& from, int64_t heads, int64_t first, int64_t count, int64_t dim,
            T* to) {
  for (int64_t head = 0; head < heads; ++head) {
    const T* row = from.data + head * from.head_stride + first * from.row_stride;
    for (int64_t i = 0; i < count; ++i, row += from.row_stride, to += dim)
      std::memcpy(to, row, static_cast<size_t>(dim) * sizeof(T));
  }
}

// The way back, rounded.
void scatter(const float* from, int64_t heads, int64_t first, int64_t count, int64_t dim,
             const HeadRows<bf16>& to) {
  for (int64_t head = 0; head < heads; ++head, from += count * dim) {
    cpu_kernels().round_rows(from, to.data + head * to.head_stride + first * to.row_stride,
                             to.row_stride, count, dim);
  }
}

PlainMatrix matrix(bf16* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, at::kBFloat16};
}
PlainMatrix matrix(float* data, int64_t rows, int64_t columns) {
  return {data, rows, columns, at::kFloat};
}

void backward(const Part& part, const Shape& s, const Workspace& w) {
  const int64_t dim = s.dim, most = s.queries_of_block();
  gather(part.k, 1, 0, s.keys, dim, w.k.data);
  gather(part.v, 1, 0, s.keys, dim, w.v.data);
  std::fill_n(w.dk.data, s.keys * dim, 0.0F);
  std::fill_n(w.dv.data, s.keys * dim, 0.0F);

  for (int64_t query = 0; query < s.queries; query += most) {
    const int64_t count = std::min(most, s.queries - query), rows = s.group * count;
    gather(part.q, s.group, query, count, dim, w.q.data);
    gather(part.dout, s.group, query, count, dim, w.dout.data);
    gather(part.out, s.group, query, count, dim, w.out.data);
    gather(part.lse, s.group, query, count, 1, w.lse.data);
    cpu_kernels().row_dots(w.dout.data, w.out.data, w.delta.data, rows, dim);
    const PlainMatrix q = matrix(w.q.data, rows, dim), dout = matrix(w.dout.data, rows, dim);
    const PlainMatrix dq = matrix(w.dq.data, rows, dim);
    const int64_t seen = s.causal ? std::min(s.keys, query + count) : s.keys;
    for (int64_t key = 0; key < seen; key += kKeys) {
      const int64_t width = std::min(kKeys, seen - key);
      const auto of_keys = [&](auto& buffer) {
        return matrix(buffer.data + key * dim, width, dim);
      };
      const PlainMatrix p = matrix(w.p.data, width, rows), ds = matrix(w.ds.data, width, rows);
      onednn_product(matrix(w.scores.data, width, rows), of_keys(w.k), q.t(), /*accumulate=*/false);
      onednn_product(matrix(w.dp.data, width, rows), of_keys(w.v), dout.t(), /*accumulate=*/false);
      cpu_kernels().attention_gradient({.scores = w.scores.data,
                                        .dp = w.dp.data,
                                        .lse = w.lse.data,
                                        .delta = w.delta.data,
                                        .p = w.p.data,
                                        .ds = w.ds.data,
                                        .keys = width,
                                        .heads = s.group,
                                        .queries = count,
                                        .first_query = s.causal ? query - key : width,
                                        .scale = s.scale});
      onednn_product(of_keys(w.dv), p, dout, /*accumulate=*/true);
      onednn_product(of_keys(w.dk), ds, q, /*accumulate=*/true);
      onednn_product(dq, ds.t(), of_keys(w.k), /*accumulate=*/key > 0);
    }
    scatter(w.dq.data, s.group, query, count, dim, part.dq);
  }
  scatter(w.dk.data, 1, 0, s.keys, dim, part.dk);
  scatter(w.dv.data, 1, 0, s.keys, dim, part.dv);
}

}  // namespace

bool attention_onednn_computes(const at::Tensor& q) {
  return q.scalar_type() == at::kBFloat16 && onednn_computes(q);
}

void attention_onednn_backward(const AttentionGradients& into, const at::Tensor& dout,
                               const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const AttentionOutput& saved, bool causal, double scale) {
  const BackwardInputs in = backward_inputs(into, dout, q, k, v, saved);
  const int64_t key_value_heads = k.size(1);
  const Shape shape = {.group = q.size(1) / key_value_heads,
                       .queries = q.size(2),
                       .keys = k.size(2),
                       .dim = q.size(3),
                       .causal = causal,
                       .scale = static_cast<float>(scale)};
  at::parallel_for(0, q.size(0) * key_value_heads, 1, [&](int64_t begin, int64_t end) {
    const Workspace workspace(shape);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / key_value_heads, head = i % key_value_heads;
      const auto queries = [&](const at::Tensor& x) {
        return head_rows<bf16>(x, row, head * shape.group);
      };
      const auto keys = [&](const at::Tensor& x) { return head_rows<bf16>(x, row, head); };
      backward({.q = queries(in.q),
                .dout = queries(in.dout),
                .out = queries(in.out),
                .k = keys(in.k),
                .v = keys(in.v),
                .lse = head_rows<float>(in.lse, row, head * shape.group),
                .dq = queries(into.dq),
                .dk = keys(into.dk),
                .dv = keys(into.dv)},
               shape, workspace);
    }
  });
}

}  // namespace picotron
