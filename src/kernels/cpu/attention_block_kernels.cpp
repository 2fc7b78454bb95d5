// The element-wise parts of the backward whose products are oneDNN's: one look at the scores and
// their gradients, and what comes before and after it. Formulas: kernels/attention_onednn.h.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

void attention_gradient(const AttentionBlock& block) {
  const float scale = block.scale;
  for (int64_t key = 0; key < block.keys; ++key) {
    const int64_t before = key - block.first_query;
    const int64_t unseen = before < 0 ? 0 : before < block.queries ? before : block.queries;
    for (int64_t head = 0; head < block.heads; ++head) {
      const int64_t column = head * block.queries;
      const int64_t first = (key * block.heads + head) * block.queries;
      bf16* p = block.p + first;
      bf16* ds = block.ds + first;
      for (int64_t i = 0; i < unseen; ++i) p[i] = ds[i] = 0;
      for_vectors<float>(block.queries - unseen, [&](int64_t at, auto part) PICOTRON_LAMBDA {
        const int64_t i = unseen + at;
        const auto lse = load<float>(block.lse + column + i, part);
        const auto delta = load<float>(block.delta + column + i, part);
        const auto s = load<float>(block.scores + first + i, part);
        const auto dp = load<float>(block.dp + first + i, part);
        const auto probability = exponential(s * scale - lse);
        store(p + i, probability, part);
        store(ds + i, probability * (dp - delta) * scale, part);
      });
    }
  }
}

void row_dots(const bf16* a, const bf16* b, float* dots, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row, a += columns, b += columns) {
    dots[row] = sum_vectors<float>(columns, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      return load<float>(a + i, part) * load<float>(b + i, part);
    });
  }
}

void round_rows(const float* from, bf16* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row, from += columns, to += to_stride) {
    for_vectors<float>(columns, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      store(to + i, load<float>(from + i, part), part);
    });
  }
}

}  // namespace picotron::cpu::CPU_CAPABILITY
