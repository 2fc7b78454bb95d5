// Chunk against chunk, in columns of the whole row.
#include "parallel/attention_pieces.h"

#include <algorithm>

#include "core/error.h"

namespace picotron {
namespace {

// The part of a row that lies in one piece on one rank.
struct Chunk {
  int64_t begin, end;  // columns of the row
  int64_t first;       // of the rank's tokens
};

std::vector<Chunk> chunks_of(const RingPlace& place, int rank) {
  if (place.ranks == 1) return {{0, place.tokens, 0}};
  const int64_t length = place.tokens / 2;
  std::vector<Chunk> chunks;
  for (const int64_t which : {rank, 2 * place.ranks - 1 - rank})
    chunks.push_back({which * length, (which + 1) * length, length * std::ssize(chunks)});
  return chunks;
}

// Rows without a boundary inside.
AttentionPiece undivided(const RingPlace& place, int hops) {
  const int64_t tokens = place.tokens, half = tokens / 2;
  AttentionPiece piece{.rows = place.rows, .queries = tokens, .keys = tokens};
  if (hops == 0) {
    piece.causal = true;
  } else if (hops <= place.rank) {  // from a lower rank; else it went past the end
    piece.keys = half;
  } else {
    piece.query = piece.queries = half;
  }
  return piece;
}

// The documents of a row, each with its end.
struct Documents {
  const std::vector<int64_t>& begins;
  int64_t columns;

  // Of the document that holds the column.
  size_t at(int64_t column) const {
    return static_cast<size_t>(std::ranges::upper_bound(begins, column) - begins.begin()) - 1;
  }
  int64_t end(size_t document) const {
    return document + 1 < begins.size() ? begins[document + 1] : columns;
  }
};

void add_squares(const Documents& documents, const Chunk& chunk, AttentionPiece piece,
                 std::vector<AttentionPiece>& pieces) {
  for (int64_t begin = chunk.begin; begin < chunk.end;) {
    const int64_t end = std::min(chunk.end, documents.end(documents.at(begin)));
    piece.query = piece.key = chunk.first + begin - chunk.begin;
    piece.queries = piece.keys = end - begin;
    piece.causal = true;
    pieces.push_back(piece);
    begin = end;
  }
}

// `keys` lie before `queries`.
void add_rectangle(const Documents& documents, const Chunk& queries, const Chunk& keys,
                   AttentionPiece piece, std::vector<AttentionPiece>& pieces) {
  const size_t shared = documents.at(queries.begin);
  const int64_t begin = std::max(keys.begin, documents.begins[shared]);
  if (begin >= keys.end) return;
  piece.query = queries.first;
  piece.queries = std::min(queries.end, documents.end(shared)) - queries.begin;
  piece.key = keys.first + begin - keys.begin;
  piece.keys = keys.end - begin;
  pieces.push_back(piece);
}

}  // namespace

std::vector<AttentionPiece> attention_pieces(const DocumentBegins& documents,
                                             const RingPlace& place, int hops) {
  check(place.ranks == 1 || place.tokens % 2 == 0,
        "context parallel gives each rank two chunks of equal length");
  if (documents.empty()) return {undivided(place, hops)};
  check(std::ssize(documents) == place.rows, "every row's documents are known");
  const auto mine = chunks_of(place, place.rank);
  const auto theirs = chunks_of(place, (place.rank + place.ranks - hops) % place.ranks);
  std::vector<AttentionPiece> pieces, rectangles;
  for (int64_t row = 0; row < place.rows; ++row) {
    const Documents of_row{documents[static_cast<size_t>(row)], place.tokens * place.ranks};
    check(!of_row.begins.empty() && of_row.begins.front() == 0, "a row begins with a document");
    if (of_row.begins.size() == 1) {
      AttentionPiece whole = undivided(place, hops);
      whole.row = row, whole.rows = 1;
      pieces.push_back(whole);
      continue;
    }
    for (const Chunk& queries : mine) {
      for (const Chunk& keys : theirs) {
        if (keys.begin == queries.begin) add_squares(of_row, queries, {.row = row}, pieces);
        if (keys.begin < queries.begin)
          add_rectangle(of_row, queries, keys, {.row = row}, rectangles);
      }
    }
  }
  pieces.insert(pieces.end(), rectangles.begin(), rectangles.end());
  return pieces;
}

}  // namespace picotron
