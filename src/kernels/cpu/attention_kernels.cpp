// Attention in vectors, forward and backward; the formulas are in kernels/attention.h, the walk
// over sequences and heads in kernels/attention_cpu.cpp. A head's products are so small that a call
// of a library costs as much as the product, so they are written here:
//
//     kᵀ  [dim, keys]                s = q kᵀ       a row of vectors along the keys, four rows at
//     four rows of q ─► four of s    out = p v      a time: one load of kᵀ serves four queries
//
// Under a causal mask four rows meet the keys that their last one sees, and no more. The backward
// takes kAttentionRows queries at a time: what lies between its products stays in the cache.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

constexpr int64_t kRows = 4;                         // of one pass over b
constexpr int kWidest = kVectorBytes == 64 ? 4 : 2;  // vectors of a row that registers hold

PICOTRON_INLINE int64_t at_most(int64_t most, int64_t n) {
  return n < most ? n : most;
}
PICOTRON_INLINE int64_t whole_vectors(int64_t elements, int64_t lanes) {
  return (elements + lanes - 1) / lanes * lanes;
}

// to[r] (+)= Σ_t a[r · a_row + t · a_column] b[t]: rows of `columns` elements, whole vectors.
template <class C>
struct Product {
  const C* a;
  int64_t a_row, a_column;
  const C* b;
  int64_t b_row, terms, columns;
  C* to;
  int64_t to_row;
  bool add = false;
};

template <int R, int W, class C>
PICOTRON_INLINE void multiply_tile(const Product<C>& x, const C* a, C* to, int64_t column) {
  Vector<C> sum[R][W] = {};
  const C* b = x.b + column;
  for (int64_t term = 0; term < x.terms; ++term, a += x.a_column, b += x.b_row) {
    Vector<C> row[W];
    for (int w = 0; w < W; ++w) row[w] = load<C>(b + w * kLanes<C>, Full{});
    for (int r = 0; r < R; ++r) {
      const C factor = a[r * x.a_row];
      for (int w = 0; w < W; ++w) sum[r][w] += factor * row[w];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) {
      C* place = to + r * x.to_row + column + w * kLanes<C>;
      if (x.add) sum[r][w] += load<C>(place, Full{});
      store(place, sum[r][w], Full{});
    }
  }
}

template <int R, class C>
void multiply_rows(const Product<C>& x, const C* a, C* to) {
  int64_t column = 0;
  for (; column + kWidest * kLanes<C> <= x.columns; column += kWidest * kLanes<C>)
    multiply_tile<R, kWidest>(x, a, to, column);
  for (; column < x.columns; column += kLanes<C>) multiply_tile<R, 1>(x, a, to, column);
}

template <class C>
void multiply(int64_t rows, const Product<C>& x) {
  if (rows == kRows) return multiply_rows<kRows>(x, x.a, x.to);
  for (int64_t r = 0; r < rows; ++r) multiply_rows<1>(x, x.a + r * x.a_row, x.to + r * x.to_row);
}

// Rows of one head, widened; the lanes beyond dim are 0.
template <class S, class C>
void widen(const HeadRows<S>& from, int64_t head, int64_t first, int64_t rows, int64_t dim, C* to,
           int64_t to_row) {
  const S* row = from.data + head * from.head_stride + first * from.row_stride;
  for (int64_t r = 0; r < rows; ++r, row += from.row_stride, to += to_row) {
    for_vectors<C>(dim, [&](int64_t i, auto part)
                            PICOTRON_LAMBDA { store(to + i, load<C>(row + i, part), Full{}); });
  }
}

// The way back: times `scale`, rounded.
template <class S, class C>
void narrow(const C* from, int64_t from_row, C scale, int64_t dim, const HeadRows<S>& to,
            int64_t head, int64_t first, int64_t rows) {
  S* row = to.data + head * to.head_stride + first * to.row_stride;
  for (int64_t r = 0; r < rows; ++r, from += from_row, row += to.row_stride) {
    for_vectors<C>(dim, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      store(row + i, load<C>(from + i, Full{}) * scale, part);
    });
  }
}

// [keys, dim] to [dim, keys], whose rows end in zeros up to a whole vector.
template <class C>
void transpose(const C* from, int64_t from_row, int64_t keys, int64_t dim, C* to, int64_t to_row) {
  const int64_t columns = whole_vectors(keys, kLanes<C>);
  for (int64_t i = 0; i < dim; ++i, to += to_row) {
    for (int64_t key = 0; key < keys; ++key) to[key] = from[key * from_row + i];
    for (int64_t key = keys; key < columns; ++key) to[key] = 0;
  }
}

// v where the row's element, one of a vector from `first` on, lies below `seen`; else `other`.
template <class C>
PICOTRON_INLINE Vector<C> where_seen(const Vector<C>& v, int64_t first, int64_t seen, C other) {
  C lanes[kLanes<C>];
  for (int i = 0; i < kLanes<C>; ++i) lanes[i] = static_cast<C>(i);
  return load<C>(lanes, Full{}) < static_cast<C>(seen - first) ? v : all<Vector<C>>(other);
}

// to [rows, keys] = a [rows, dim] b, for the keys that fill `columns`; b transposed [dim, keys].
template <class C>
PICOTRON_INLINE void scores_of(const AttentionShape& s, int64_t rows, const C* a, const C* b,
                               int64_t columns, C* to) {
  multiply<C>(rows, {.a = a,
                     .a_row = s.dim_row,
                     .a_column = 1,
                     .b = b,
                     .b_row = s.keys_row,
                     .terms = s.dim,
                     .columns = columns,
                     .to = to,
                     .to_row = s.keys_row});
}

// to [rows, dim] = p [rows, keys] b [keys, dim] over the first `seen` keys.
template <class C>
PICOTRON_INLINE void sum_over_keys(const AttentionShape& s, int64_t rows, const C* p, const C* b,
                                   int64_t seen, C* to) {
  multiply<C>(rows, {.a = p,
                     .a_row = s.keys_row,
                     .a_column = 1,
                     .b = b,
                     .b_row = s.dim_row,
                     .terms = seen,
                     .columns = whole_vectors(s.dim, kLanes<C>),
                     .to = to,
                     .to_row = s.dim_row});
}

// to [rows, dim] += pᵀ b: a few keys of p [queries, keys], b [queries, dim].
template <class C>
PICOTRON_INLINE void add_over_queries(const AttentionShape& s, int64_t rows, const C* p, const C* b,
                                      int64_t queries, C* to) {
  multiply<C>(rows, {.a = p,
                     .a_row = 1,
                     .a_column = s.keys_row,
                     .b = b,
                     .b_row = s.dim_row,
                     .terms = queries,
                     .columns = whole_vectors(s.dim, kLanes<C>),
                     .to = to,
                     .to_row = s.dim_row,
                     .add = true});
}

// A row of scores becomes exp(s · scale − greatest); returns the sum and the greatest.
template <class C>
PICOTRON_INLINE C softmax_row(C* s, int64_t seen, int64_t columns, C scale, C& greatest) {
  constexpr int64_t lanes = kLanes<C>;
  const C nothing = -static_cast<C>(__builtin_inff());
  auto most = all<Vector<C>>(nothing);
  for (int64_t i = 0; i < seen; i += lanes) {
    const auto v = where_seen<C>(load<C>(s + i, Full{}) * scale, i, seen, nothing);
    most = v > most ? v : most;
  }
  greatest = max_lanes<C>(most);
  Vector<C> sum = {};
  for (int64_t i = 0; i < columns; i += lanes) {
    const auto p = exponential(load<C>(s + i, Full{}) * scale - greatest);
    sum += store(s + i, where_seen<C>(p, i, seen, 0), Full{});
  }
  return sum_lanes<C>(sum);
}

PICOTRON_INLINE float logarithm(float x) {
  return __builtin_logf(x);
}
PICOTRON_INLINE double logarithm(double x) {
  return __builtin_log(x);
}

// How many keys a query sees.
PICOTRON_INLINE int64_t keys_seen(const AttentionShape& s, int64_t row) {
  return s.causal ? row + 1 : s.keys;
}

template <class S>
void attention_forward(const AttentionForward<S>& x) {
  using C = Statistic<S>;
  const AttentionShape& s = x.shape;
  const AttentionBuffers<C>& b = x.buffers;
  const C scale = static_cast<C>(s.scale);
  widen(x.k, 0, 0, s.keys, s.dim, b.k, s.dim_row);
  transpose(b.k, s.dim_row, s.keys, s.dim, b.k_transposed, s.keys_row);
  widen(x.v, 0, 0, s.keys, s.dim, b.v, s.dim_row);
  for (int64_t head = 0; head < s.heads; ++head) {
    for (int64_t first = 0; first < s.queries; first += kRows) {
      const int64_t rows = at_most(kRows, s.queries - first);
      const int64_t seen = keys_seen(s, first + rows - 1);
      const int64_t columns = whole_vectors(seen, kLanes<C>);
      widen(x.q, head, first, rows, s.dim, b.q, s.dim_row);
      scores_of<C>(s, rows, b.q, b.k_transposed, columns, b.p);
      C sums[kRows];
      for (int64_t r = 0; r < rows; ++r) {
        C greatest;
        sums[r] =
            softmax_row<C>(b.p + r * s.keys_row, keys_seen(s, first + r), columns, scale, greatest);
        x.lse.data[head * x.lse.head_stride + (first + r) * x.lse.row_stride] =
            greatest + logarithm(sums[r]);
      }
      sum_over_keys<C>(s, rows, b.p, b.v, seen, b.result);
      for (int64_t r = 0; r < rows; ++r) {
        narrow(b.result + r * s.dim_row, s.dim_row, C{1} / sums[r], s.dim, x.out, head, first + r,
               1);
      }
    }
  }
}

// p and ds of a row, from its scores and dp, which lie where they go.
template <class C>
PICOTRON_INLINE void gradient_row(C* p, C* ds, int64_t seen, int64_t columns, C lse, C delta,
                                  C scale) {
  for (int64_t i = 0; i < columns; i += kLanes<C>) {
    const auto probability =
        where_seen<C>(exponential(load<C>(p + i, Full{}) * scale - lse), i, seen, 0);
    const auto dp = load<C>(ds + i, Full{});
    store(p + i, probability, Full{});
    store(ds + i, where_seen<C>(probability * (dp - delta) * scale, i, seen, 0), Full{});
  }
}

// The queries [first, first + count) of one head: their dq, and what they add to dk and dv.
template <class S>
void backward_of_queries(const AttentionBackward<S>& x, int64_t head, int64_t first,
                         int64_t count) {
  using C = Statistic<S>;
  const AttentionShape& s = x.shape;
  const AttentionBuffers<C>& b = x.buffers;
  widen(x.q, head, first, count, s.dim, b.q, s.dim_row);
  widen(x.dout, head, first, count, s.dim, b.dout, s.dim_row);
  const C* lse = x.lse.data + head * x.lse.head_stride + first * x.lse.row_stride;
  const S* out = x.out.data + head * x.out.head_stride + first * x.out.row_stride;
  for (int64_t row = 0; row < count; row += kRows) {
    const int64_t rows = at_most(kRows, count - row);
    const int64_t seen = keys_seen(s, first + row + rows - 1);
    const int64_t columns = whole_vectors(seen, kLanes<C>);
    C* p = b.p + row * s.keys_row;
    C* ds = b.ds + row * s.keys_row;
    scores_of<C>(s, rows, b.q + row * s.dim_row, b.k_transposed, columns, p);
    scores_of<C>(s, rows, b.dout + row * s.dim_row, b.v_transposed, columns, ds);
    for (int64_t r = 0; r < rows; ++r) {
      const C* dout_row = b.dout + (row + r) * s.dim_row;
      const S* out_row = out + (row + r) * x.out.row_stride;
      const C delta = sum_vectors<C>(s.dim, [&](int64_t i, auto part) PICOTRON_LAMBDA {
        return load<C>(dout_row + i, part) * load<C>(out_row + i, part);
      });
      gradient_row<C>(p + r * s.keys_row, ds + r * s.keys_row, keys_seen(s, first + row + r),
                      columns, lse[(row + r) * x.lse.row_stride], delta, static_cast<C>(s.scale));
    }
    sum_over_keys<C>(s, rows, ds, b.k, seen, b.result);
    narrow(b.result, s.dim_row, C{1}, s.dim, x.dq, head, first + row, rows);
  }
  const int64_t seen = keys_seen(s, first + count - 1);
  for (int64_t key = 0; key < seen; key += kRows) {
    // Four rows of p and ds end in zeros where the last one's keys do, so four keys begin together.
    const int64_t unseen = s.causal && key > first ? key - first : 0;
    const int64_t rows = at_most(kRows, seen - key), scores = unseen * s.keys_row + key;
    const int64_t queries = unseen * s.dim_row;
    add_over_queries<C>(s, rows, b.p + scores, b.dout + queries, count - unseen,
                        b.dv + key * s.dim_row);
    add_over_queries<C>(s, rows, b.ds + scores, b.q + queries, count - unseen,
                        b.dk + key * s.dim_row);
  }
}

template <class S>
void attention_backward(const AttentionBackward<S>& x) {
  using C = Statistic<S>;
  const AttentionShape& s = x.shape;
  const AttentionBuffers<C>& b = x.buffers;
  widen(x.v, 0, 0, s.keys, s.dim, b.k, s.dim_row);
  transpose(b.k, s.dim_row, s.keys, s.dim, b.v_transposed, s.keys_row);
  widen(x.k, 0, 0, s.keys, s.dim, b.k, s.dim_row);
  transpose(b.k, s.dim_row, s.keys, s.dim, b.k_transposed, s.keys_row);
  for (int64_t i = 0; i < s.keys * s.dim_row; ++i) b.dk[i] = b.dv[i] = 0;
  for (int64_t head = 0; head < s.heads; ++head) {
    for (int64_t first = 0; first < s.queries; first += kAttentionRows)
      backward_of_queries(x, head, first, at_most(kAttentionRows, s.queries - first));
  }
  narrow(b.dk, s.dim_row, C{1}, s.dim, x.dk, 0, 0, s.keys);
  narrow(b.dv, s.dim_row, C{1}, s.dim, x.dv, 0, 0, s.keys);
}

template void attention_forward(const AttentionForward<bf16>&);
template void attention_forward(const AttentionForward<float>&);
template void attention_forward(const AttentionForward<double>&);
template void attention_backward(const AttentionBackward<bf16>&);
template void attention_backward(const AttentionBackward<float>&);
template void attention_backward(const AttentionBackward<double>&);

}  // namespace picotron::cpu::CPU_CAPABILITY
