// AMX: a CPU's matrix unit. Eight registers, the tiles, each 16 rows of 64 bytes; one instruction,
// _tile_dpbf16ps, multiplies two of them and adds to a third:
//
//     A  16 rows of m, 32 bf16 of k      C[m][n] += Σ A[m][k] B[k][n], in fp32, what is below
//     B  16 rows, each two k of 16 n,    2^−126 taken for zero: 16 x 16 x 32 in 16 cycles
//        side by side: k0 k1, k0 k1, …
//     C  16 rows of m, 16 fp32 of n
//
// What is multiplied is therefore first laid out in tiles, `pack` below, once for many products of
// them. Every matrix is a table of lanes (A's rows, B's columns) and of k, over which is summed:
//
//                                   a lane's k are neighbours      its lanes are neighbours
//     A, a tile's row is a lane     copy                           pair two k, transpose the pairs
//     B, a tile's row is two k      transpose the pairs            pair two k
//
// The rule of kernels/cpu/vec.h holds here too: no inline function that other files might share.
// Reference: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter on AMX.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace picotron::amx {

using bf16 = uint16_t;  // its bits

namespace {  // NOLINT: each file of this folder has its own, compiled for AMX

constexpr int64_t kPanel = 32;  // lanes: two tiles, so that four sums read each tile twice
constexpr int64_t kTile = 512;  // bf16 of a tile

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t up_to_multiple(int64_t x, int64_t of) {
  return (x + of - 1) / of * of;
}

struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileConfig kWholeTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// All tiles whole while it lives; what another library had configured on this thread comes back.
class Tiles {
 public:
  Tiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(kWholeTiles));
  }
  ~Tiles() {
    if (before_.palette == 0)
      _tile_release();
    else
      asm volatile("ldtilecfg %0" ::"m"(before_));
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  TileConfig before_;
};

// 16 x 16 pairs.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int half = 0; half < 16; half += 8) {
    for (int i = half; i < half + 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    }
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// Element i of the one row beside element i of the other: those of the lanes 0 to 15, 16 to 31.
inline void pair(__m512i even, __m512i odd, __m512i& low, __m512i& high) {
  const __m512i counting =
      _mm512_set_epi32(0x002f000f, 0x002e000e, 0x002d000d, 0x002c000c, 0x002b000b, 0x002a000a,
                       0x00290009, 0x00280008, 0x00270007, 0x00260006, 0x00250005, 0x00240004,
                       0x00230003, 0x00220002, 0x00210001, 0x00200000);
  low = _mm512_permutex2var_epi16(even, counting, odd);
  high = _mm512_permutex2var_epi16(even, _mm512_add_epi16(counting, _mm512_set1_epi16(16)), odd);
}

// Of 32 elements the first `count`.
inline __mmask32 first(int64_t count) {
  return count >= 32 ? ~__mmask32{0} : count <= 0 ? 0 : (__mmask32{1} << count) - 1;
}

// A table of lanes and k in memory, of which `lanes` and `depth` are left from here on.
struct Table {
  const bf16* data;
  int64_t stride;  // between a lane and the next, or between a k and the next
  bool along_k;    // a lane's k are neighbours
  int64_t lanes, depth;

  Table from(int64_t lane, int64_t k) const {
    return {data + (along_k ? lane * stride + k : k * stride + lane), stride, along_k, lanes - lane,
            depth - k};
  }
};

enum class Side { a, b };

// Two tiles: the table's first 32 lanes and 32 k. What is not there is zero.
template <Side side>
inline void pack_tiles(const Table& from, bf16* to) {
  const __mmask32 row_mask = first(from.along_k ? from.depth : from.lanes);
  const int64_t rows = from.along_k ? from.lanes : from.depth;
  const auto row = [&](int64_t i) {
    return _mm512_maskz_loadu_epi16(i < rows ? row_mask : 0, from.data + i * from.stride);
  };
  __m512i tiles[2][16];
  if (from.along_k) {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 16; ++i) tiles[half][i] = row(half * 16 + i);
  } else {
    for (int i = 0; i < 16; ++i) pair(row(2 * i), row(2 * i + 1), tiles[0][i], tiles[1][i]);
  }
  for (int half = 0; half < 2; ++half) {
    if (from.along_k == (side == Side::b)) transpose(tiles[half]);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(to + half * kTile + i * 32, tiles[half][i]);
  }
}

// `lanes` x `depth` of a table, in panels of 32 lanes; in a panel, for each 32 of k, two tiles.
template <Side side>
inline void pack(const Table& from, int64_t lanes, int64_t depth, bf16* to) {
  const int64_t panel = kPanel * up_to_multiple(depth, 32);
  const auto tiles = [&](int64_t lane, int64_t k) {
    Table part = from.from(lane, k);
    part.lanes = smaller(part.lanes, lanes - lane), part.depth = smaller(part.depth, depth - k);
    pack_tiles<side>(part, to + lane / kPanel * panel + k * kPanel);
  };
  if (from.along_k) {
    for (int64_t lane = 0; lane < lanes; lane += kPanel)
      for (int64_t k = 0; k < depth; k += 32) tiles(lane, k);
  } else {
    for (int64_t k = 0; k < depth; k += 32)
      for (int64_t lane = 0; lane < lanes; lane += kPanel) tiles(lane, k);
  }
}

// Sums of a panel of a with one of b: 32 rows of 32 fp32.
constexpr int64_t kSums = kPanel * kPanel;

// sums = (or, with add, sums +=) a panel of a times a panel of b, `steps` times 32 of k;
// meanwhile(step) is called in each. a comes past the first cache, which is left to b.
template <bool add, class F>
inline void multiply_panels(const bf16* a, const bf16* b, int64_t steps, float* sums, F meanwhile) {
  // GCC's tile loads do not say that they read memory: what was stored before must be there.
  asm volatile("" ::: "memory");
  constexpr int64_t kRow = kPanel * int64_t{sizeof(float)};
  float *top = sums, *bottom = sums + 16 * kPanel;
  if constexpr (add) {
    _tile_stream_loadd(0, top, kRow);
    _tile_stream_loadd(1, top + 16, kRow);
    _tile_stream_loadd(2, bottom, kRow);
    _tile_stream_loadd(3, bottom + 16, kRow);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, a += 2 * kTile, b += 2 * kTile) {
    _tile_stream_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTile, 64);
    _tile_stream_loadd(5, a + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    meanwhile(step);
  }
  _tile_stored(0, top, kRow);
  _tile_stored(1, top + 16, kRow);
  _tile_stored(2, bottom, kRow);
  _tile_stored(3, bottom + 16, kRow);
}

// 32 fp32 as bf16, to nearest even.
inline __m512i rounded(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

}  // namespace
}  // namespace picotron::amx
