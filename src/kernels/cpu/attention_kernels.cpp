// The element-wise part of attention's backward, one look at the scores and their gradients.
// Formulas: kernels/attention_cpu.h.
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vec.h"

namespace picotron::cpu::CPU_CAPABILITY {

void attention_gradient(const AttentionBlock& block) {
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t sees = block.first_seen + (row % block.queries);
    const int64_t seen = sees < 0 ? 0 : sees < block.keys ? sees : block.keys;
    const float* s = block.scores + row * block.keys;
    const float* dp = block.dp + row * block.keys;
    bf16* p = block.p + row * block.keys;
    bf16* ds = block.ds + row * block.keys;
    const float lse = block.lse[row], delta = block.delta[row], scale = block.scale;
    for_vectors<float>(seen, [&](int64_t i, auto part) PICOTRON_LAMBDA {
      const auto probability = exponential(load<float>(s + i, part) * scale - lse);
      store(p + i, probability, part);
      store(ds + i, probability * (load<float>(dp + i, part) - delta) * scale, part);
    });
    for (int64_t i = seen; i < block.keys; ++i) p[i] = ds[i] = 0;
  }
}

}  // namespace picotron::cpu::CPU_CAPABILITY
