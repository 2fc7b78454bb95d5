// How fast the fused kernels move memory, beside a copy of the same machine: for SmolLM-135M's
// shapes (2,048 tokens, hidden 576, intermediate 1,536, 9 + 3 heads of 64, vocabulary 49,152 in
// chunks of 256 tokens), bf16. bytes_per_second counts what a kernel must read and write, once.
// Buffers are cycled through, so that a kernel finds its input in memory (or the last cache), not
// where its own last call has left it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <benchmark/benchmark.h>

#include <cstring>

#include "core/memory.h"
#include "kernels/adamw.h"
#include "kernels/attention_amx.h"
#include "kernels/attention_cpu.h"
#include "kernels/attention_onednn.h"
#include "kernels/cross_entropy.h"
#include "kernels/huge_pages.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace picotron {
namespace {

constexpr int64_t kTokens = 2048, kHidden = 576, kIntermediate = 1536, kVocabulary = 49152;
constexpr int64_t kChunk = 256, kHeads = 12, kHeadDim = 64, kParameters = 40'000'000;
constexpr size_t kBuffers = 24;

at::Tensor random_bf16(at::IntArrayRef sizes) {
  return at::randn(sizes).to(at::kBFloat16);
}

std::vector<at::Tensor> buffers(at::IntArrayRef sizes, size_t count = kBuffers) {
  std::vector<at::Tensor> all(count);
  for (at::Tensor& one : all) one = random_bf16(sizes);
  return all;
}

// Runs body(i) with i cycling through the buffers; `bytes`: read and written per call.
template <class F>
void measure(benchmark::State& state, double bytes, size_t count, F body) {
  const at::NoGradGuard no_grad;
  size_t i = 0;
  for (auto _ : state) body(i++ % count);
  state.SetBytesProcessed(static_cast<int64_t>(bytes * static_cast<double>(state.iterations())));
}

Body body_of(const benchmark::State& state) {
  return state.range(0) == 0 ? Body::fused : Body::plain;
}

void copy(benchmark::State& state) {
  const auto from = buffers({kTokens, 2 * kIntermediate}),
             to = buffers({kTokens, 2 * kIntermediate});
  const int64_t bytes = from[0].numel() * 2;
  measure(state, 2.0 * static_cast<double>(bytes), kBuffers, [&](size_t i) {
    at::parallel_for(0, bytes, 65536, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(to[i].data_ptr()) + begin,
                  static_cast<char*>(from[i].data_ptr()) + begin, static_cast<size_t>(end - begin));
    });
  });
}

void norm_forward(benchmark::State& state) {
  const auto x = buffers({kTokens, kHidden}), delta = buffers({kTokens, kHidden});
  const at::Tensor weight = random_bf16({kHidden});
  measure(state, 4.0 * 2 * kTokens * kHidden, kBuffers, [&](size_t i) {
    benchmark::DoNotOptimize(add_rms_norm(x[i], delta[i], weight, 1e-5, body_of(state)));
  });
}

void norm_backward(benchmark::State& state) {
  const auto x = buffers({kTokens, kHidden}), dy = buffers({kTokens, kHidden}),
             around = buffers({kTokens, kHidden});
  const at::Tensor weight = random_bf16({kHidden}), dweight = at::zeros({kHidden});
  const at::Tensor rstd = rms_norm(x[0], weight, 1e-5).rstd;
  measure(state, 4.0 * 2 * kTokens * kHidden, kBuffers, [&](size_t i) {
    benchmark::DoNotOptimize(
        rms_norm_backward(dy[i], x[i], rstd, weight, around[i], dweight, body_of(state)));
  });
}

void rope(benchmark::State& state) {
  const auto qkv = buffers({kTokens, (kHeads + 3) * kHeadDim});
  const RopeTables tables =
      rope_tables(kTokens, kHeadDim, 1e4, std::nullopt, at::kBFloat16, at::kCPU);
  const at::Tensor positions = at::arange(kTokens, at::kLong);
  measure(state, 2.0 * 2 * kTokens * kHeads * kHeadDim, kBuffers, [&](size_t i) {
    apply_rope_(qkv[i].narrow(1, 0, kHeads * kHeadDim).unflatten(1, {kHeads, kHeadDim}), positions,
                tables, false, body_of(state));
  });
}

void swiglu_forward(benchmark::State& state) {
  const auto gate_up = buffers({kTokens, 2 * kIntermediate});
  measure(state, 3.0 * 2 * kTokens * kIntermediate, kBuffers,
          [&](size_t i) { benchmark::DoNotOptimize(swiglu(gate_up[i], body_of(state))); });
}

void swiglu_backward_pass(benchmark::State& state) {
  const auto gate_up = buffers({kTokens, 2 * kIntermediate}),
             dy = buffers({kTokens, kIntermediate});
  measure(state, 5.0 * 2 * kTokens * kIntermediate, kBuffers, [&](size_t i) {
    benchmark::DoNotOptimize(swiglu_backward(dy[i], gate_up[i], body_of(state)));
  });
}

void cross_entropy_forward(benchmark::State& state) {
  const auto logits = buffers({kChunk, kVocabulary}, 8);
  const at::Tensor targets = at::randint(kVocabulary, {kChunk}, at::kLong);
  measure(state, 2.0 * kChunk * kVocabulary, 8, [&](size_t i) {
    benchmark::DoNotOptimize(cross_entropy_statistics(logits[i], targets, 0, body_of(state)));
  });
}

void cross_entropy_backward(benchmark::State& state) {
  const auto logits = buffers({kChunk, kVocabulary}, 8);
  const at::Tensor targets = at::randint(kVocabulary, {kChunk}, at::kLong);
  const at::Tensor lse = at::full({kChunk}, 11.0f);
  measure(state, 2.0 * 2 * kChunk * kVocabulary, 8, [&](size_t i) {
    cross_entropy_gradient_(logits[i], targets, 0, lse, 1, body_of(state));
  });
}

void adamw(benchmark::State& state) {
  const at::Tensor master = at::randn({kParameters}), gradient = at::randn({kParameters});
  const at::Tensor m = at::zeros({kParameters}), v = at::zeros({kParameters});
  const at::Tensor compute_copy = master.to(at::kBFloat16), scale = at::scalar_tensor(0.5f);
  const AdamWOptions options = {.learning_rate = 1e-3,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .weight_decay = 0.1,
                                .step = 10};
  measure(state, 30.0 * kParameters, 1, [&](size_t) {
    adamw_(master, m, v, gradient, compute_copy, scale, options, body_of(state));
  });
}

void norm_of_gradients(benchmark::State& state) {
  const at::Tensor x = at::randn({kParameters});
  measure(state, 4.0 * kParameters, 1,
          [&](size_t) { benchmark::DoNotOptimize(sum_of_squares(x, body_of(state))); });
}

// Attention of sequences of state.range(0) tokens, 9 heads on 3 of key/value, about kTokens in all:
// our loops over vectors; others: ATen's, and, for a bf16 backward, oneDNN's products; or our loops
// over AMX's tiles.
enum By { vectors, others, tiles };
struct Attended {
  explicit Attended(benchmark::State& state)
      : rows(state.range(0)),
        by(static_cast<By>(state.range(1))),
        dtype(state.range(2) != 0 ? at::kFloat : at::kBFloat16) {
    if (by == tiles && !attention_amx_computes(q)) state.SkipWithError("no AMX, or not bf16");
  }
  at::Tensor heads(int64_t count) const {
    return at::randn({kTokens / rows, rows, count, kHeadDim}).to(dtype).transpose(1, 2);
  }
  int64_t rows;
  By by;
  at::ScalarType dtype;
  at::Tensor q = heads(9), k = heads(3), v = heads(3), dout = heads(9);
};

constexpr double kScale = 0.125;

AttentionOutput attention_of(const Attended& x, bool causal = true) {
  if (x.by == vectors) return attention_cpu(x.q, x.k, x.v, causal, kScale);
  if (x.by == tiles) return attention_amx(x.q, x.k, x.v, causal, kScale);
  auto [out, lse] =
      at::_scaled_dot_product_flash_attention_for_cpu(x.q, x.k, x.v, 0, causal, {}, kScale);
  return {out.transpose(1, 2).contiguous().transpose(1, 2), lse};
}

void attention_forward(benchmark::State& state) {
  const at::NoGradGuard no_grad;
  const Attended x(state);
  for (auto _ : state) benchmark::DoNotOptimize(attention_of(x));
}

// As text is generated: the last query of each sequence.
void attention_of_one_query(benchmark::State& state) {
  const at::NoGradGuard no_grad;
  Attended x(state);
  x.q = x.q.slice(2, x.rows - 1);
  for (auto _ : state) benchmark::DoNotOptimize(attention_of(x, /*causal=*/false));
}

void attention_backward_pass(benchmark::State& state) {
  const at::NoGradGuard no_grad;
  const Attended x(state);
  const AttentionOutput saved = attention_of(x);
  const AttentionGradients into = {at::empty_like(x.q), at::empty_like(x.k), at::empty_like(x.v)};
  for (auto _ : state) {
    if (x.by == vectors)
      attention_cpu_backward(into, x.dout, x.q, x.k, x.v, saved, true, kScale);
    else if (x.by == tiles)
      attention_amx_backward(into, x.dout, x.q, x.k, x.v, saved, true, kScale);
    else if (attention_onednn_computes(x.q))
      attention_onednn_backward(into, x.dout, x.q, x.k, x.v, saved, true, kScale);
    else
      benchmark::DoNotOptimize(at::_scaled_dot_product_flash_attention_for_cpu_backward(
          x.dout, x.q, x.k, x.v, saved.out, saved.lse, 0, true, {}, kScale));
  }
}

BENCHMARK(copy)->UseRealTime();
#define PICOTRON_ATTENTION(name)                                                       \
  BENCHMARK(name)                                                                      \
      ->ArgNames({"seq", "by", "fp32"})                                                \
      ->ArgsProduct({{32, 64, 128, 256, 512, 2048}, {vectors, others, tiles}, {0, 1}}) \
      ->UseRealTime()
PICOTRON_ATTENTION(attention_forward);
PICOTRON_ATTENTION(attention_of_one_query);
PICOTRON_ATTENTION(attention_backward_pass);
#define PICOTRON_BENCHMARK(name) BENCHMARK(name)->ArgName("plain")->Arg(0)->Arg(1)->UseRealTime()
PICOTRON_BENCHMARK(norm_forward);
PICOTRON_BENCHMARK(norm_backward);
PICOTRON_BENCHMARK(rope);
PICOTRON_BENCHMARK(swiglu_forward);
PICOTRON_BENCHMARK(swiglu_backward_pass);
PICOTRON_BENCHMARK(cross_entropy_forward);
PICOTRON_BENCHMARK(cross_entropy_backward);
PICOTRON_BENCHMARK(adamw);
PICOTRON_BENCHMARK(norm_of_gradients);

}  // namespace
}  // namespace picotron

// Memory as a training run has it.
int main(int argc, char** argv) {
  picotron::keep_freed_memory();
  picotron::use_huge_pages();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
