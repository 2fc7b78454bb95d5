// See product.h.
#include "kernels/amx/product.h"

#include "kernels/amx/tiles.h"

namespace picotron::amx {
namespace {

constexpr int64_t kMostK = 576;         // 36 KB of b in the first cache
constexpr int64_t kStreamed = 2 << 20;  // bytes of c from which on it passes by the caches

constexpr int64_t blocks_along(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// 32 x 32 sums, and where they go.
struct Finished {
  const float* from = nullptr;  // null: nothing is waiting
  char* to = nullptr;
  int64_t stride = 0;  // bytes
  int64_t rows = 0;
  __mmask32 columns = 0;
  bool stream = false;
};

template <Into into>
inline void write_row(const Finished& block, int64_t row) {
  const float* from = block.from + row * kPanel;
  char* to = block.to + row * block.stride;
  const auto left = static_cast<__mmask16>(block.columns);
  const auto right = static_cast<__mmask16>(block.columns >> 16);
  __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + 16);
  if constexpr (into == Into::rounded) {
    if (block.stream)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), rounded(low, high));
    else
      _mm512_mask_storeu_epi16(to, block.columns, rounded(low, high));
    return;
  }
  auto* sums = reinterpret_cast<float*>(to);
  if constexpr (into == Into::added) {
    low = _mm512_add_ps(low, _mm512_maskz_loadu_ps(left, sums));
    high = _mm512_add_ps(high, _mm512_maskz_loadu_ps(right, sums + 16));
  }
  if (block.stream) {
    _mm512_stream_ps(sums, low);
    _mm512_stream_ps(sums + 16, high);
  } else {
    _mm512_mask_storeu_ps(sums, left, low);
    _mm512_mask_storeu_ps(sums + 16, right, high);
  }
}

template <Into into>
inline void write(Finished& block) {
  for (int64_t row = 0; block.from != nullptr && row < block.rows; ++row)
    write_row<into>(block, row);
  block = {};
}

inline void prefetch(const void* line) {
  _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
}

// As multiply_panels of tiles.h; meanwhile `before` is written, all of it before `sums`, which may
// be its own; what `next` will be added to is fetched, and so are the sums that follow.
template <Into into, bool add>
inline void multiply_and_write(const bf16* a, const bf16* b, int64_t steps, float* sums,
                               const Finished& before, const Finished& next) {
  const int64_t rows_a_step = blocks_along(kPanel, steps);
  multiply_panels<add>(a, b, steps, sums, [&](int64_t step) {
    const int64_t begin = step * rows_a_step, end = smaller(kPanel, begin + rows_a_step);
    if (before.from != nullptr)
      for (int64_t i = begin; i < smaller(end, before.rows); ++i) write_row<into>(before, i);
    if (into == Into::added && next.from != nullptr) {
      for (int64_t i = begin; i < smaller(end, next.rows); ++i) {
        prefetch(next.to + i * next.stride);
        prefetch(next.to + i * next.stride + 64);
      }
    }
    if constexpr (add) {
      for (int64_t i = begin; i < end; ++i) {
        prefetch(sums + kSums + i * kPanel);
        prefetch(sums + kSums + i * kPanel + 16);
      }
    }
  });
}

template <Into into>
void multiply_blocks(const Product& p, const Blocks& blocks, const Workspace& workspace,
                     int64_t begin, int64_t end) {
  constexpr int64_t kElement = into == Into::rounded ? sizeof(bf16) : sizeof(float);
  const Table a = {p.a.data, p.a.stride, !p.a.transposed, p.m, p.k};
  const Table b = {p.b.data, p.b.stride, p.b.transposed, p.n, p.k};
  const int64_t stride = p.c_stride * kElement;
  const bool streamed =
      p.m * stride >= kStreamed && stride % 64 == 0 && reinterpret_cast<uintptr_t>(p.c) % 64 == 0;
  const bool one_part = p.k <= blocks.k;  // of k: no sums to keep
  const Tiles tiles;
  Finished waiting;
  int64_t packed_a = -1;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first_m = block / blocks.along_n * blocks.m;
    const int64_t first_n = block % blocks.along_n * blocks.n;
    const int64_t rows = smaller(blocks.m, p.m - first_m);
    const int64_t columns = smaller(blocks.n, p.n - first_n);
    for (int64_t k = 0; k < p.k; k += blocks.k) {
      const int64_t depth = smaller(blocks.k, p.k - k), steps = blocks_along(depth, 32);
      if (!one_part || packed_a != first_m)
        pack<Side::a>(a.from(first_m, k), rows, depth, workspace.a);
      packed_a = first_m;
      pack<Side::b>(b.from(first_n, k), columns, depth, workspace.b);
      float* sums = workspace.c;
      for (int64_t n = 0; n < columns; n += kPanel) {
        const bf16* panel_b = workspace.b + n * steps * 32;
        for (int64_t m = 0; m < rows; m += kPanel) {
          Finished next;
          if (k + depth == p.k) {
            next = {
                .from = sums,
                .to = static_cast<char*>(p.c) + (first_m + m) * stride + (first_n + n) * kElement,
                .stride = stride,
                .rows = smaller(kPanel, rows - m),
                .columns = first(columns - n),
                .stream = streamed && columns - n >= kPanel};
          }
          const bf16* panel_a = workspace.a + m * steps * 32;
          if (k == 0)
            multiply_and_write<into, false>(panel_a, panel_b, steps, sums, waiting, next);
          else
            multiply_and_write<into, true>(panel_a, panel_b, steps, sums, waiting, next);
          waiting = next;
          if (!one_part) sums += kSums;
        }
      }
    }
  }
  write<into>(waiting);
  _mm_sfence();  // what was written past the caches is seen before what follows
}

}  // namespace

Blocks blocks_of(const Product& p, int threads) {
  const int64_t parts = blocks_along(p.k, kMostK);
  Blocks blocks = {.m = 384, .n = 384, .k = up_to_multiple(blocks_along(p.k, parts), 32)};
  // What of a, b and the sums fits the second cache.
  if (parts == 1)
    blocks.m = 512;
  else if (p.n <= kMostK)
    blocks.m = 256, blocks.n = kMostK;
  blocks.m = smaller(blocks.m, up_to_multiple(p.m, kPanel));
  blocks.n = smaller(blocks.n, up_to_multiple(p.n, kPanel));
  // Enough for all threads, down to a size at which laying out costs as much as multiplying; and,
  // where one more cut along a dim or two does it, as many for each.
  constexpr int64_t kLeast = 128;
  const auto cut = [&](int64_t along_m, int64_t along_n) {
    Blocks cuts = blocks;
    cuts.m = up_to_multiple(blocks_along(p.m, along_m), kPanel);
    cuts.n = up_to_multiple(blocks_along(p.n, along_n), kPanel);
    cuts.along_m = blocks_along(p.m, cuts.m), cuts.along_n = blocks_along(p.n, cuts.n);
    cuts.count = cuts.along_m * cuts.along_n;
    return cuts;
  };
  blocks = cut(blocks_along(p.m, blocks.m), blocks_along(p.n, blocks.n));
  while (blocks.count < threads && (blocks.m > kLeast || blocks.n > kLeast)) {
    blocks = blocks.m > blocks.n ? cut(2 * blocks.along_m, blocks.along_n)
                                 : cut(blocks.along_m, 2 * blocks.along_n);
  }
  const bool uneven = blocks.count % threads != 0 && blocks.count < 4 * threads;
  for (int64_t more = 1; uneven && more <= 2; ++more) {
    const Blocks others[] = {cut(blocks.along_m + more, blocks.along_n),
                             cut(blocks.along_m, blocks.along_n + more)};
    for (const Blocks& other : others) {
      if (other.count % threads == 0 && (other.m >= kLeast || other.n >= kLeast)) return other;
    }
  }
  return blocks;
}

void multiply(const Product& product, const Blocks& blocks, const Workspace& workspace,
              int64_t begin, int64_t end) {
  switch (product.into) {
    case Into::rounded:
      return multiply_blocks<Into::rounded>(product, blocks, workspace, begin, end);
    case Into::written:
      return multiply_blocks<Into::written>(product, blocks, workspace, begin, end);
    case Into::added:
      return multiply_blocks<Into::added>(product, blocks, workspace, begin, end);
  }
}

}  // namespace picotron::amx
