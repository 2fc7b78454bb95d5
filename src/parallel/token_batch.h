// What goes through a model in one piece: some sequences, or this rank's part of them.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "parallel/attention_pieces.h"

namespace picotron {

class KeyValueCache;  // model/key_value_cache.h

// One microbatch on this rank's device. tokens = rows · columns, row after row.
struct TokenBatch {
  int64_t rows = 0, columns = 0;   // sequences, and tokens of each that are here (seq / cp)
  at::Tensor ids, targets;         // int64 [tokens]
  at::Tensor positions;            // int64 [tokens], of each token in its document
  DocumentBegins documents = {};   // of each row; empty: a row is one document
  KeyValueCache* cache = nullptr;  // of the tokens before these: for generation alone
};

}  // namespace picotron
