// Which part of the score matrix a rank computes when its queries meet the keys of a rank of its
// ring (parallel/context_parallel.h). Without document masking it is one piece:
//
//     own block               causal, as if it were a short sequence
//     from rank s < r         all my queries × its first half
//     from rank s > r         my second half × all its keys
//
// With it a token sees its own document alone, and the matrix falls into squares and rectangles:
//
//     documents   a a b   b b c
//
//     chunk 0     .                  queries and keys of one chunk: a causal square per document
//                 . .                queries of a later chunk than the keys: one rectangle at most,
//                     .              of the document that runs from the one into the other (#)
//     chunk 1         #   .
//                     #   . .
//                             .
//
// No mask is ever written: each piece is a call of attention on views, and the log-sum-exp of
// pieces with the same queries merges them (Dao et al. 2022).
#pragma once
#include <cstdint>
#include <vector>

namespace picotron {

// Of each row of a microbatch the columns, counted in the whole row, at which its documents begin:
// ascending, the first is 0. Empty: documents are not masked.
using DocumentBegins = std::vector<std::vector<int64_t>>;

// Where a row's tokens lie.
struct RingPlace {
  int64_t rows = 1, tokens = 1;  // of a row on each rank: even where ranks > 1
  int rank = 0, ranks = 1;       // of cp
};

struct AttentionPiece {
  int64_t row = 0, rows = 1;
  int64_t query = 0, queries = 0;  // the first of this rank's tokens of the row, and how many
  int64_t key = 0, keys = 0;       // of the tokens of the rank where the block comes from
  bool causal = false;             // query i sees keys 0..i of the piece

  bool operator==(const AttentionPiece&) const = default;
};

// The pieces of a block that has made `hops` hops, so that it comes from rank place.rank − hops.
// Those of the own block (hops 0) begin with the causal ones, of which every query has one.
std::vector<AttentionPiece> attention_pieces(const DocumentBegins& documents,
                                             const RingPlace& place, int hops);

}  // namespace picotron
