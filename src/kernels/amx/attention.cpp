// See attention.h.
#include "kernels/amx/attention.h"

#include "kernels/amx/tiles.h"
#include "kernels/cpu/vec.h"

namespace picotron::amx {
namespace {

using cpu::CPU_CAPABILITY::exponential;

constexpr int64_t kBlock = 128;               // keys of a block; backward: queries too
constexpr int64_t kPanels = kBlock / kPanel;  // of a block
constexpr int64_t kStep = 2 * kTile;          // bf16 of a panel's 32 of k

constexpr auto nothing = [](int64_t) {};

// Memory handed out piece by piece; from null, it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : begin_(static_cast<char*>(memory)) {}
  template <class T>
  T* take(int64_t elements) {
    T* const piece = begin_ == nullptr ? nullptr : reinterpret_cast<T*>(begin_ + bytes_);
    bytes_ += up_to_multiple(elements * int64_t{sizeof(T)}, 64);
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

struct Sizes {
  explicit Sizes(const AttentionShape& s)
      : dim(up_to_multiple(s.dim, kPanel)),
        keys(up_to_multiple(s.keys, kPanel)),
        dim_steps(dim / 32),
        key_steps(keys / 32) {}
  int64_t dim, keys;             // whole panels
  int64_t dim_steps, key_steps;  // 32 of k each, if k is dim or keys
};

// Rows of a head as a table whose lanes are the rows, k the dims; and the other way round.
Table rows_of(const HeadRows<const bf16>& x, int64_t head, int64_t rows, int64_t dim) {
  return {x.data + head * x.head_stride, x.row_stride, /*along_k=*/true, rows, dim};
}
Table columns_of(const HeadRows<const bf16>& x, int64_t head, int64_t rows, int64_t dim) {
  return {x.data + head * x.head_stride, x.row_stride, /*along_k=*/false, dim, rows};
}

// Of 32 queries those from first_query on that see `key`.
inline __mmask32 seeing(int64_t key, const AttentionShape& s, int64_t first_query) {
  if (key >= s.keys) return 0;
  if (!s.causal || key <= first_query) return ~__mmask32{0};
  return key - first_query < 32 ? ~__mmask32{0} << (key - first_query) : 0;
}

// One value for each of 32 queries.
struct Queries {
  __m512 low, high;
};
inline Queries load(const float* from) {
  return {_mm512_load_ps(from), _mm512_load_ps(from + 16)};
}
inline __m512 select(__mmask32 seen, int half, __m512 x, __m512 otherwise) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(seen >> (16 * half)), otherwise, x);
}

// 32 dims of 32 queries [dim, query], each query times its factor, to the queries' rows.
inline void write_transposed(const float* sums, const Queries& factor, int64_t queries,
                             int64_t dims, bf16* to, int64_t stride) {
  const __mmask32 mask = first(dims);
  for (int half = 0; half < 2; ++half) {
    __m512i part[2][16];  // dims 0 to 15 and 16 to 31 of 16 queries
    for (int i = 0; i < 32; ++i) {
      const __m512 row = _mm512_load_ps(sums + i * kPanel + half * 16);
      part[i / 16][i % 16] =
          _mm512_castps_si512(_mm512_mul_ps(row, half == 0 ? factor.low : factor.high));
    }
    transpose(part[0]);
    transpose(part[1]);
    for (int64_t i = 0; i < 16 && half * 16 + i < queries; ++i) {
      _mm512_mask_storeu_epi16(
          to + (half * 16 + i) * stride, mask,
          rounded(_mm512_castsi512_ps(part[0][i]), _mm512_castsi512_ps(part[1][i])));
    }
  }
}

// e^x, and 0 where that is no normal number, as for an unseen key's −∞: to add one of those takes a
// hundred cycles.
inline __m512 probability(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87), _CMP_NLT_UQ);
  return _mm512_maskz_mov_ps(normal, exponential(x));
}

struct ForwardBuffers {
  ForwardBuffers(Arena& arena, const Sizes& size)
      : k(arena.take<bf16>(size.keys * size.dim)),
        v(arena.take<bf16>(size.keys * size.dim)),
        q(arena.take<bf16>(kPanel * size.dim)),
        p(arena.take<bf16>(kPanel * kBlock)),
        scores(arena.take<float>(kPanels * kSums)),
        out(arena.take<float>(kPanel * size.dim)) {}
  bf16 *k, *v, *q, *p;
  float *scores, *out;
};

// pᵀ of `panels` panels of keys from `key` on, in tiles of a second operand; the queries' maxima
// and sums go on. Returns what earlier sums are to be multiplied by.
Queries softmax(const AttentionShape& s, int64_t key, int64_t first_query, int64_t panels,
                float* scores, bf16* p, Queries& most, Queries& sum) {
  const __m512 scale = _mm512_set1_ps(s.scale), none = _mm512_set1_ps(-__builtin_inff());
  Queries top = most;
  for (int64_t i = 0; i < panels * kPanel; ++i) {
    const __mmask32 seen = seeing(key + i, s, first_query);
    float* row = scores + i * kPanel;
    const Queries x = load(row);
    const __m512 low = select(seen, 0, _mm512_mul_ps(x.low, scale), none);
    const __m512 high = select(seen, 1, _mm512_mul_ps(x.high, scale), none);
    _mm512_store_ps(row, low);
    _mm512_store_ps(row + 16, high);
    top = {_mm512_max_ps(top.low, low), _mm512_max_ps(top.high, high)};
  }
  const Queries before = {probability(most.low - top.low), probability(most.high - top.high)};
  sum = {sum.low * before.low, sum.high * before.high};
  const auto probabilities = [&](const float* row) {
    const Queries x = load(row);
    const __m512 low = probability(x.low - top.low), high = probability(x.high - top.high);
    sum = {sum.low + low, sum.high + high};
    return rounded(low, high);
  };
  for (int64_t i = 0; i < panels * kPanel; i += 2) {
    __m512i low, high;
    const __m512i even = probabilities(scores + i * kPanel);
    pair(even, probabilities(scores + (i + 1) * kPanel), low, high);
    bf16* to = p + i / kPanel * kStep + i % kPanel / 2 * 32;
    _mm512_store_si512(to, low);
    _mm512_store_si512(to + kTile, high);
  }
  most = top;
  return before;
}

void forward_of_queries(const AttentionForward& in, const ForwardBuffers& w, const Sizes& size,
                        int64_t head, int64_t query) {
  const AttentionShape& s = in.shape;
  const int64_t queries = smaller(kPanel, s.queries - query);
  const int64_t seen = s.causal ? smaller(s.keys, query + kPanel) : s.keys;
  pack<Side::b>(rows_of(in.q, head, s.queries, s.dim).from(query, 0), kPanel, size.dim, w.q);
  Queries most = {_mm512_set1_ps(-__builtin_inff()), _mm512_set1_ps(-__builtin_inff())};
  Queries sum = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t key = 0; key < seen; key += kBlock) {
    const int64_t panels = (smaller(kBlock, seen - key) + kPanel - 1) / kPanel;
    for (int64_t i = 0; i < panels; ++i) {
      multiply_panels<false>(w.k + (key + i * kPanel) * size.dim, w.q, size.dim_steps,
                             w.scores + i * kSums, nothing);
    }
    const Queries before = softmax(s, key, query, panels, w.scores, w.p, most, sum);
    for (int64_t dim = 0; dim < size.dim; dim += kPanel) {
      const bf16* v = w.v + dim * size.keys + key * kPanel;
      float* out = w.out + dim * kPanel;
      if (key == 0) {
        multiply_panels<false>(v, w.p, panels, out, nothing);
        continue;
      }
      for (int64_t i = 0; i < kSums; i += kPanel) {
        const Queries x = load(out + i);
        _mm512_store_ps(out + i, x.low * before.low);
        _mm512_store_ps(out + i + 16, x.high * before.high);
      }
      multiply_panels<true>(v, w.p, panels, out, nothing);
    }
  }
  const __m512 one = _mm512_set1_ps(1);
  bf16* out = in.out.data + head * in.out.head_stride + query * in.out.row_stride;
  for (int64_t dim = 0; dim < s.dim; dim += kPanel) {
    write_transposed(w.out + dim * kPanel, {one / sum.low, one / sum.high}, queries, s.dim - dim,
                     out + dim, in.out.row_stride);
  }
  alignas(64) float maxima[kPanel], sums[kPanel];
  _mm512_store_ps(maxima, most.low), _mm512_store_ps(maxima + 16, most.high);
  _mm512_store_ps(sums, sum.low), _mm512_store_ps(sums + 16, sum.high);
  float* lse = in.lse.data + head * in.lse.head_stride + query * in.lse.row_stride;
  for (int64_t i = 0; i < queries; ++i)
    lse[i * in.lse.row_stride] = maxima[i] + __builtin_logf(sums[i]);
}

struct BackwardBuffers {
  BackwardBuffers(Arena& arena, const Sizes& size)
      : k(arena.take<bf16>(size.keys * size.dim)),
        v(arena.take<bf16>(size.keys * size.dim)),
        k_columns(arena.take<bf16>(size.keys * size.dim)),
        q(arena.take<bf16>(kBlock * size.dim)),
        dout(arena.take<bf16>(kBlock * size.dim)),
        q_columns(arena.take<bf16>(kBlock * size.dim)),
        dout_columns(arena.take<bf16>(kBlock * size.dim)),
        p(arena.take<bf16>(kBlock * kBlock)),
        ds(arena.take<bf16>(kBlock * kBlock)),
        ds_pairs(arena.take<bf16>(kBlock * kBlock)),
        scores(arena.take<float>(kSums)),
        dp(arena.take<float>(kSums)),
        lse(arena.take<float>(kBlock)),
        delta(arena.take<float>(kBlock)),
        dq(arena.take<float>(kBlock * size.dim)),
        dk(arena.take<float>(size.keys * size.dim)),
        dv(arena.take<float>(size.keys * size.dim)) {}
  bf16 *k, *v, *k_columns;                    // of all keys; v and k as rows, k as columns
  bf16 *q, *dout, *q_columns, *dout_columns;  // of a block's queries
  bf16 *p, *ds;                               // [key panel, query panel], tiles of a first operand
  bf16* ds_pairs;                             // [query panel, key panel], of a second operand
  float *scores, *dp, *lse, *delta;
  float* dq;       // transposed: [dim panel, query panel], 32 x 32 each
  float *dk, *dv;  // [key panel, dim panel], 32 x 32 each
};

// p and ds of a panel of keys and one of queries.
void panel_gradient(const AttentionShape& s, int64_t key, int64_t query, const BackwardBuffers& w,
                    int64_t key_panel, int64_t query_panel) {
  const __m512 scale = _mm512_set1_ps(s.scale), zero = _mm512_setzero_ps();
  const Queries lse = load(w.lse + query_panel * kPanel);
  const Queries delta = load(w.delta + query_panel * kPanel);
  const int64_t to = (key_panel * kPanels + query_panel) * kStep;
  bf16* pairs = w.ds_pairs + (query_panel * kPanels + key_panel) * kStep;
  const auto row_of = [&](int64_t i) {
    const __mmask32 seen = seeing(key + i, s, query);
    const Queries x = load(w.scores + i * kPanel), dp = load(w.dp + i * kPanel);
    const __m512 low = select(seen, 0, probability(x.low * scale - lse.low), zero);
    const __m512 high = select(seen, 1, probability(x.high * scale - lse.high), zero);
    const __m512i ds =
        rounded(low * (dp.low - delta.low) * scale, high * (dp.high - delta.high) * scale);
    _mm512_store_si512(w.p + to + i * 32, rounded(low, high));
    _mm512_store_si512(w.ds + to + i * 32, ds);
    return ds;
  };
  for (int64_t i = 0; i < kPanel; i += 2) {
    __m512i low, high;
    const __m512i even = row_of(i);
    pair(even, row_of(i + 1), low, high);
    _mm512_store_si512(pairs + i / 2 * 32, low);
    _mm512_store_si512(pairs + i / 2 * 32 + kTile, high);
  }
}

// A block of queries of one head: their rows in tiles, and lse and delta = Σ dout ∘ out. A query
// that is not there has p = 0.
void take_queries(const AttentionBackward& in, const BackwardBuffers& w, const Sizes& size,
                  int64_t head, int64_t query, int64_t queries) {
  namespace vec = cpu::CPU_CAPABILITY;
  const AttentionShape& s = in.shape;
  pack<Side::b>(rows_of(in.q, head, s.queries, s.dim).from(query, 0), kBlock, size.dim, w.q);
  pack<Side::b>(rows_of(in.dout, head, s.queries, s.dim).from(query, 0), kBlock, size.dim, w.dout);
  pack<Side::b>(columns_of(in.q, head, s.queries, s.dim).from(0, query), size.dim, kBlock,
                w.q_columns);
  pack<Side::b>(columns_of(in.dout, head, s.queries, s.dim).from(0, query), size.dim, kBlock,
                w.dout_columns);
  const auto row = [&](const HeadRows<const bf16>& x, int64_t i) {
    return x.data + head * x.head_stride + (query + i) * x.row_stride;
  };
  for (int64_t i = 0; i < kBlock; ++i) {
    const bool there = i < queries;
    w.lse[i] = there ? in.lse.data[head * in.lse.head_stride + (query + i) * in.lse.row_stride]
                     : __builtin_inff();
    w.delta[i] = !there ? 0 : vec::sum_vectors<float>(s.dim, [&](int64_t at, auto part) {
      return vec::load<float>(row(in.dout, i) + at, part) *
             vec::load<float>(row(in.out, i) + at, part);
    });
  }
}

void backward_of_queries(const AttentionBackward& in, const BackwardBuffers& w, const Sizes& size,
                         int64_t head, int64_t query) {
  const AttentionShape& s = in.shape;
  const int64_t queries = smaller(kBlock, s.queries - query);
  const int64_t query_panels = (queries + kPanel - 1) / kPanel;
  const int64_t seen = s.causal ? smaller(s.keys, query + queries) : s.keys;
  take_queries(in, w, size, head, query, queries);
  for (int64_t key = 0; key < seen; key += kBlock) {
    const int64_t key_panels = (smaller(kBlock, seen - key) + kPanel - 1) / kPanel;
    const bool diagonal = s.causal && key == query;
    for (int64_t i = 0; i < key_panels; ++i) {
      const int64_t panel = key + i * kPanel, from = diagonal ? i : 0;
      for (int64_t j = from; j < query_panels; ++j) {
        const int64_t at = j * kPanel * size.dim;
        multiply_panels<false>(w.k + panel * size.dim, w.q + at, size.dim_steps, w.scores, nothing);
        multiply_panels<false>(w.v + panel * size.dim, w.dout + at, size.dim_steps, w.dp, nothing);
        panel_gradient(s, panel, query + j * kPanel, w, i, j);
      }
      const int64_t tiles = (i * kPanels + from) * kStep;
      for (int64_t dim = 0; dim < size.dim; dim += kPanel) {
        const int64_t column = dim * kBlock + from * kStep, sums = panel * size.dim + dim * kPanel;
        multiply_panels<true>(w.p + tiles, w.dout_columns + column, query_panels - from,
                              w.dv + sums, nothing);
        multiply_panels<true>(w.ds + tiles, w.q_columns + column, query_panels - from, w.dk + sums,
                              nothing);
      }
    }
    for (int64_t j = 0; j < query_panels; ++j) {
      const int64_t steps = diagonal ? j + 1 : key_panels;
      for (int64_t dim = 0; dim < size.dim; dim += kPanel) {
        const bf16* k = w.k_columns + dim * size.keys + key * kPanel;
        const bf16* ds = w.ds_pairs + j * kPanels * kStep;
        float* dq = w.dq + dim * kBlock + j * kSums;
        if (key == 0)
          multiply_panels<false>(k, ds, steps, dq, nothing);
        else
          multiply_panels<true>(k, ds, steps, dq, nothing);
      }
    }
  }
  const Queries one = {_mm512_set1_ps(1), _mm512_set1_ps(1)};
  bf16* dq = in.dq.data + head * in.dq.head_stride + query * in.dq.row_stride;
  for (int64_t j = 0; j < query_panels; ++j) {
    for (int64_t dim = 0; dim < s.dim; dim += kPanel) {
      write_transposed(w.dq + dim * kBlock + j * kSums, one, smaller(kPanel, queries - j * kPanel),
                       s.dim - dim, dq + j * kPanel * in.dq.row_stride + dim, in.dq.row_stride);
    }
  }
}

// Sums [key panel, dim panel] to the keys' rows.
void write_rows(const float* sums, const AttentionShape& s, const Sizes& size,
                const HeadRows<bf16>& to) {
  for (int64_t key = 0; key < s.keys; ++key) {
    const float* row = sums + key / kPanel * kPanel * size.dim + key % kPanel * kPanel;
    for (int64_t dim = 0; dim < s.dim; dim += kPanel, row += kSums) {
      _mm512_mask_storeu_epi16(to.data + key * to.row_stride + dim, first(s.dim - dim),
                               rounded(_mm512_load_ps(row), _mm512_load_ps(row + 16)));
    }
  }
}

}  // namespace

int64_t forward_workspace(const AttentionShape& shape) {
  Arena arena(nullptr);
  ForwardBuffers(arena, Sizes(shape));
  return arena.bytes();
}

int64_t backward_workspace(const AttentionShape& shape) {
  Arena arena(nullptr);
  BackwardBuffers(arena, Sizes(shape));
  return arena.bytes();
}

void attention_forward(const AttentionForward& in, void* workspace) {
  const AttentionShape& s = in.shape;
  const Sizes size(s);
  Arena arena(workspace);
  const ForwardBuffers w(arena, size);
  const Tiles tiles;
  pack<Side::a>(rows_of(in.k, 0, s.keys, s.dim), size.keys, size.dim, w.k);
  pack<Side::a>(columns_of(in.v, 0, s.keys, s.dim), size.dim, size.keys, w.v);
  for (int64_t head = 0; head < s.heads; ++head)
    for (int64_t query = 0; query < s.queries; query += kPanel)
      forward_of_queries(in, w, size, head, query);
}

void attention_backward(const AttentionBackward& in, void* workspace) {
  const AttentionShape& s = in.shape;
  const Sizes size(s);
  Arena arena(workspace);
  const BackwardBuffers w(arena, size);
  const Tiles tiles;
  pack<Side::a>(rows_of(in.k, 0, s.keys, s.dim), size.keys, size.dim, w.k);
  pack<Side::a>(rows_of(in.v, 0, s.keys, s.dim), size.keys, size.dim, w.v);
  pack<Side::a>(columns_of(in.k, 0, s.keys, s.dim), size.dim, size.keys, w.k_columns);
  for (int64_t i = 0; i < size.keys * size.dim; ++i) w.dk[i] = w.dv[i] = 0;
  for (int64_t head = 0; head < s.heads; ++head)
    for (int64_t query = 0; query < s.queries; query += kBlock)
      backward_of_queries(in, w, size, head, query);
  write_rows(w.dk, s, size, in.dk);
  write_rows(w.dv, s, size, in.dv);
}

}  // namespace picotron::amx
