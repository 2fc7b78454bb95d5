// How well a model predicts a data set: the mean loss over every row of it, once, in any layout.
//
//     loss            −(1/n) Σ ln p(token | the tokens of its row before it)      nats per token
//     perplexity      e^loss
//     bits per byte   n · loss / (ln 2 · bytes of text that the n tokens spell)
//
// A loss per token hangs on the tokenizer; bits per byte compares models with different ones. Rows
// are cut over dp in contiguous parts, of which one may be longer than another: a forward has no
// collective over dp, so each slice goes through its part alone, and one sum ends it.
#pragma once
#include <cstdint>

#include "dist/mesh.h"
#include "model/llama.h"
#include "train/run.h"

namespace picotron {

struct Evaluation {
  int64_t rows = 0, tokens = 0;
  int64_t bytes = 0;  // of text; 0 where the data set has no tokenizer
  double loss = 0;    // mean, nats per token
  double perplexity() const;
  double bits_per_byte() const;  // 0 where bytes is 0
};

// Collective: every rank, each with its part of the model. Of run.datasets.validation.
Evaluation evaluate(Llama& model, const Run& run, const Mesh& mesh, at::Device device);

}  // namespace picotron
