// c = a b and c += a b on a CPU with AMX: a's and b's blocks are laid out in tiles (tiles.h) in a
// core's second cache and multiplied there, 32 x 32 of c at a time.
//
//     for a block of c              shared out among the threads
//       for a block of k            at most 576, so that a panel of b stays in the first cache
//         pack a's and b's blocks
//         for a panel of b, 32 columns
//           for a panel of a, 32 rows: 32 x 32 of c, in four tiles
//
// The unit is seldom what one waits for. What counts:
// - Of the two panels one comes from the second cache, by a load that leaves the first cache to the
//   other (tileloaddt1).
// - A finished 32 x 32 is rounded or added where it belongs while the next one is multiplied, and
//   what it is added to is fetched meanwhile: a few rows a step. A burst of stores would keep the
//   loads waiting.
// - A large c is written past the caches (non-temporal stores): a step's activations and gradients
//   are far larger than they are. An ordinary store reads the line first, and leaves a line behind
//   that must be written before its place can be used.
//
// A sum over k runs in one order whatever the number of threads: the same bits.
// Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.
#pragma once
#include <cstdint>

namespace picotron::amx {

using bf16 = uint16_t;  // its bits

// Element (i, j) is data[i · stride + j], or data[j · stride + i] of a transposed one.
struct Operand {
  const bf16* data;
  int64_t stride;
  bool transposed;
};

enum class Into { rounded, written, added };  // to bf16; fp32; fp32, to what is there

struct Product {
  int64_t m, n, k;
  Operand a, b;      // [m, k], [k, n]
  void* c;           // [m, n]
  int64_t c_stride;  // elements
  Into into;
};

// How a product is cut. The blocks of c are numbered from 0 to count() - 1.
struct Blocks {
  int64_t m, n, k;  // sizes, multiples of 32
  int64_t along_m, along_n, count;
};
Blocks blocks_of(const Product& product, int threads);

// Of one thread, aligned to 64 bytes.
struct Workspace {
  bf16* a;   // blocks.m · blocks.k
  bf16* b;   // blocks.n · blocks.k
  float* c;  // blocks.m · blocks.n
};

// Computes the blocks begin to end - 1 of c on the calling thread.
void multiply(const Product& product, const Blocks& blocks, const Workspace& workspace,
              int64_t begin, int64_t end);

}  // namespace picotron::amx
