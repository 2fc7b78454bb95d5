// The fused bodies on a GPU, with the arguments of kernels/cpu; formulas and sources stand in
// kernels/*.h. Memory bounds them all, so each reads and writes every operand once, 16 bytes a
// thread where rows allow it, computes in fp32 and rounds once. Every sum has a fixed order, so a
// run has the same bits every time.
#include "cuda/kernels.h"

#include "cuda/launch.h"

namespace picotron::cuda {
namespace {

using fused::bf16;

__device__ float add(float a, float b) {
  return a + b;
}

// ---------------------------------------------------------------- RMSNorm: a block for each token

template <class S, int N>
__global__ void rms_norm_of_token(fused::NormArguments<S> a) {
  const int64_t row = blockIdx.x * a.hidden;
  float squares = 0;
  for (int64_t i = threadIdx.x * N; i < a.hidden; i += blockDim.x * N) {
    float x[N];
    load(a.x + row + i, x);
    if (a.delta != nullptr) {
      float delta[N];
      load(a.delta + row + i, delta);
      for (int k = 0; k < N; ++k) x[k] += delta[k];
      store(a.sum + row + i, x);
    }
    for (int k = 0; k < N; ++k) squares += x[k] * x[k];
  }
  const float mean = over_block(squares, add) / static_cast<float>(a.hidden);
  const float rstd = 1 / sqrtf(mean + static_cast<float>(a.eps));
  if (threadIdx.x == 0) a.rstd[blockIdx.x] = rstd;
  const S* of_norm = a.delta != nullptr ? a.sum : a.x;
  for (int64_t i = threadIdx.x * N; i < a.hidden; i += blockDim.x * N) {
    float x[N], weight[N];
    load(of_norm + row + i, x);  // what this thread has written or read above
    load(a.weight + i, weight);
    for (int k = 0; k < N; ++k) x[k] = widen(narrow<S>(x[k] * rstd)) * weight[k];
    store(a.y + row + i, x);
  }
}

template <class S, int N>
__global__ void rms_norm_dx_of_token(fused::NormBackwardArguments<S> a) {
  const int64_t row = blockIdx.x * a.hidden;
  const float rstd = a.rstd[blockIdx.x];
  float g_dot_x = 0;
  for (int64_t i = threadIdx.x * N; i < a.hidden; i += blockDim.x * N) {
    float dy[N], x[N], weight[N];
    load(a.dy + row + i, dy);
    load(a.x + row + i, x);
    load(a.weight + i, weight);
    for (int k = 0; k < N; ++k) g_dot_x += dy[k] * weight[k] * x[k];
  }
  const float g_dot_n = over_block(g_dot_x, add) * rstd;
  const float pull = g_dot_n / static_cast<float>(a.hidden) * rstd;  // of x, towards zero
  for (int64_t i = threadIdx.x * N; i < a.hidden; i += blockDim.x * N) {
    float dy[N], x[N], weight[N], around[N] = {};
    load(a.dy + row + i, dy);
    load(a.x + row + i, x);
    load(a.weight + i, weight);
    if (a.residual_gradient != nullptr) load(a.residual_gradient + row + i, around);
    for (int k = 0; k < N; ++k) x[k] = (dy[k] * weight[k] - x[k] * pull) * rstd + around[k];
    store(a.dx + row + i, x);
  }
}

// A thread for N columns of a part of the tokens.
template <class S, int N>
__global__ void rms_norm_dweight_of_part(fused::NormBackwardArguments<S> a) {
  const int64_t part = blockIdx.y;
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (column >= a.hidden) return;
  float sums[N] = {};
  for (int64_t token = a.tokens * part / a.parts; token < a.tokens * (part + 1) / a.parts;
       ++token) {
    float dy[N], x[N];
    load(a.dy + token * a.hidden + column, dy);
    load(a.x + token * a.hidden + column, x);
    for (int k = 0; k < N; ++k) sums[k] += dy[k] * x[k] * a.rstd[token];
  }
  for (int k = 0; k < N; ++k) a.sums[part * a.hidden + column + k] += sums[k];
}

template <class S>
void rms_norm(const fused::NormArguments<S>& a, int64_t, int64_t tokens) {
  with_lanes<S>(a.hidden, {a.x, a.delta, a.weight, a.sum, a.y}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    launch(rms_norm_of_token<S, N>, dim3(tokens), threads_for(a.hidden / N, 512), a);
  });
}

template <class S>
void rms_norm_backward(const fused::NormBackwardArguments<S>& a, int64_t, int64_t parts) {
  with_lanes<S>(a.hidden, {a.dy, a.x, a.weight, a.residual_gradient, a.dx}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    launch(rms_norm_dx_of_token<S, N>, dim3(a.tokens), threads_for(a.hidden / N, 512), a);
    launch(rms_norm_dweight_of_part<S, N>, dim3(blocks_for(a.hidden, 64 * N), parts), 64U, a);
  });
}

// -------------------------------------------------------------------- RoPE: a block for each token

template <class S, int N>
__global__ void rope_of_token(fused::RopeArguments<S> a) {
  const int64_t angles = a.positions[blockIdx.x] * a.half;
  const int packs = static_cast<int>(a.half / N);
  for (int j = threadIdx.x; j < a.heads * packs; j += blockDim.x) {
    const int i = j % packs * N;
    S* const head = a.x + blockIdx.x * a.token_stride + j / packs * a.head_stride;
    float first[N], second[N], turned[N];
    load(head + i, first);
    load(head + a.half + i, second);
    for (int k = 0; k < N; ++k) {
      const float cosine = a.cos[angles + i + k];
      const float sine = a.inverse ? -a.sin[angles + i + k] : a.sin[angles + i + k];
      turned[k] = first[k] * cosine - second[k] * sine;
      second[k] = second[k] * cosine + first[k] * sine;
    }
    store(head + i, turned);
    store(head + a.half + i, second);
  }
}

template <class S>
void rope(const fused::RopeArguments<S>& a, int64_t, int64_t tokens) {
  const auto step = static_cast<int64_t>(sizeof(S));  // strides count as addresses do
  const auto* const token = reinterpret_cast<const void*>(a.token_stride * step);
  const auto* const head = reinterpret_cast<const void*>(a.head_stride * step);
  with_lanes<S>(a.half, {a.x, token, head}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    launch(rope_of_token<S, N>, dim3(tokens), threads_for(a.heads * a.half / N, 256), a);
  });
}

// ------------------------------------------------------------------ SwiGLU: a thread for N columns

__device__ float sigmoid(float x) {
  return 1 / (1 + expf(-x));
}

template <class S, int N>
__global__ void swiglu_of_columns(const S* gate_up, S* y, int64_t width) {
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (i >= width) return;
  float gate[N], up[N];
  load(gate_up + blockIdx.x * 2 * width + i, gate);
  load(gate_up + blockIdx.x * 2 * width + width + i, up);
  for (int k = 0; k < N; ++k) gate[k] = gate[k] * sigmoid(gate[k]) * up[k];
  store(y + blockIdx.x * width + i, gate);
}

template <class S, int N>
__global__ void swiglu_backward_of_columns(const S* dy, const S* gate_up, S* d_gate_up,
                                           int64_t width) {
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (i >= width) return;
  const int64_t row = blockIdx.x * 2 * width;
  float d[N], gate[N], up[N];
  load(dy + blockIdx.x * width + i, d);
  load(gate_up + row + i, gate);
  load(gate_up + row + width + i, up);
  for (int k = 0; k < N; ++k) {
    const float g = gate[k], s = sigmoid(g);
    gate[k] = d[k] * up[k] * s * (1 + g * (1 - s));
    up[k] = d[k] * g * s;
  }
  store(d_gate_up + row + i, gate);
  store(d_gate_up + row + width + i, up);
}

template <class S>
void swiglu(const S* gate_up, S* y, int64_t width, int64_t, int64_t tokens) {
  with_lanes<S>(width, {gate_up, y}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    const unsigned threads = threads_for(width / N, 256);
    launch(swiglu_of_columns<S, N>, dim3(tokens, blocks_for(width, threads * N)), threads, gate_up,
           y, width);
  });
}

template <class S>
void swiglu_backward(const S* dy, const S* gate_up, S* d_gate_up, int64_t width, int64_t,
                     int64_t tokens) {
  with_lanes<S>(width, {dy, gate_up, d_gate_up}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    const unsigned threads = threads_for(width / N, 256);
    launch(swiglu_backward_of_columns<S, N>, dim3(tokens, blocks_for(width, threads * N)), threads,
           dy, gate_up, d_gate_up, width);
  });
}

// ----------------------------------------------------- cross-entropy: an online softmax of a token

// Σ exp(x − maximum) over what has been seen, and the maximum. NaN is no maximum, but in the sum.
struct Softmax {
  float maximum, sum;
};
__device__ Softmax shuffle(const Softmax& of, int lanes) {
  return {cuda::shuffle(of.maximum, lanes), cuda::shuffle(of.sum, lanes)};
}
__device__ Softmax merge(const Softmax& a, const Softmax& b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  return {maximum, a.sum * expf(a.maximum - maximum) + b.sum * expf(b.maximum - maximum)};
}

template <class S, int N>
__global__ void statistics_of_token(fused::CrossEntropyArguments<S> a) {
  constexpr float kLowest = -3.402823466e38F;
  const S* const logits = a.logits + blockIdx.x * a.columns;
  Softmax mine = {kLowest, 0};
  for (int64_t i = threadIdx.x * N; i < a.columns; i += blockDim.x * N) {
    float x[N];
    load(logits + i, x);
    Softmax pack = {kLowest, 0};
    for (int k = 0; k < N; ++k) pack.maximum = fmaxf(pack.maximum, x[k]);
    for (int k = 0; k < N; ++k) pack.sum += expf(x[k] - pack.maximum);
    mine = merge(mine, pack);
  }
  const Softmax all = over_block(mine, merge);
  if (threadIdx.x != 0) return;
  const int64_t target = a.targets[blockIdx.x] - a.vocab_begin;
  const bool here = target >= 0 && target < a.columns;
  float* const out = a.statistics + 3 * blockIdx.x;
  out[0] = all.maximum;
  out[1] = all.sum;
  out[2] = here ? widen(logits[target]) : 0;
}

template <class S, int N>
__global__ void gradient_of_columns(fused::CrossEntropyArguments<S> a) {
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * N;
  if (i >= a.columns) return;
  const int64_t target = a.targets[blockIdx.x] - a.vocab_begin;
  const float lse = a.lse[blockIdx.x];
  float x[N];
  S* const logits = a.logits + blockIdx.x * a.columns + i;
  load(logits, x);
  for (int k = 0; k < N; ++k)
    x[k] = (expf(x[k] - lse) - (i + k == target ? 1.0F : 0.0F)) * static_cast<float>(a.scale);
  store(logits, x);
}

template <class S>
void cross_entropy_statistics(const fused::CrossEntropyArguments<S>& a, int64_t, int64_t tokens) {
  with_lanes<S>(a.columns, {a.logits}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    launch(statistics_of_token<S, N>, dim3(tokens), threads_for(a.columns / N, 512), a);
  });
}

template <class S>
void cross_entropy_gradient(const fused::CrossEntropyArguments<S>& a, int64_t, int64_t tokens) {
  with_lanes<S>(a.columns, {a.logits}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    const unsigned threads = threads_for(a.columns / N, 256);
    launch(gradient_of_columns<S, N>, dim3(tokens, blocks_for(a.columns, threads * N)), threads, a);
  });
}

// ------------------------------------------------------- the optimizers: a thread for N parameters

struct Rates {  // of OptimizerArguments, in fp32
  float learning_rate, decay, m_rate, beta2, v_rate, eps, step, sqrt_correction;
};

template <int N>
__device__ void store_weights(const fused::OptimizerArguments<float>& a, int64_t i, float (&w)[N]) {
  store(a.master + i, w);
  if (a.compute_copy != nullptr) store(a.compute_copy + i, w);
}

template <int N>
__global__ void adamw_of_parameters(fused::OptimizerArguments<float> a, Rates rates, int64_t n) {
  const float scale = *a.gradient_scale;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (i >= n || !isfinite(scale)) return;
  float w[N], m[N], v[N], g[N];
  load(a.master + i, w);
  load(a.m + i, m);
  load(a.v + i, v);
  load(a.gradient + i, g);
  for (int k = 0; k < N; ++k) {
    g[k] *= scale;
    m[k] += rates.m_rate * (g[k] - m[k]);
    v[k] = v[k] * rates.beta2 + rates.v_rate * g[k] * g[k];
    w[k] =
        w[k] * rates.decay - rates.step * m[k] / (sqrtf(v[k]) / rates.sqrt_correction + rates.eps);
  }
  store(a.m + i, m);
  store(a.v + i, v);
  store_weights(a, i, w);
}

template <int N>
__global__ void sgd_of_parameters(fused::OptimizerArguments<float> a, Rates rates, int64_t n) {
  const float scale = *a.gradient_scale;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (i >= n || !isfinite(scale)) return;
  float w[N], g[N];
  load(a.master + i, w);
  load(a.gradient + i, g);
  for (int k = 0; k < N; ++k) w[k] -= rates.learning_rate * (g[k] * scale + rates.decay * w[k]);
  store_weights(a, i, w);
}

// The copy's packs are of half the bytes, so they are aligned where they would be as fp32 too.
const void* twice(const bf16* copy) {
  return reinterpret_cast<const void*>(2 * reinterpret_cast<uintptr_t>(copy));
}

void adamw(const fused::OptimizerArguments<float>& a, int64_t, int64_t n) {
  const Rates rates = {.learning_rate = static_cast<float>(a.learning_rate),
                       .decay = static_cast<float>(1 - a.learning_rate * a.weight_decay),
                       .m_rate = static_cast<float>(1 - a.beta1),
                       .beta2 = static_cast<float>(a.beta2),
                       .v_rate = static_cast<float>(1 - a.beta2),
                       .eps = static_cast<float>(a.eps),
                       .step = static_cast<float>(a.step_size),
                       .sqrt_correction = static_cast<float>(a.sqrt_bias_correction2)};
  with_lanes<float>(n, {a.master, a.m, a.v, a.gradient, twice(a.compute_copy)}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    launch(adamw_of_parameters<N>, dim3(blocks_for(n, 256 * N)), 256U, a, rates, n);
  });
}

void sgd(const fused::OptimizerArguments<float>& a, int64_t, int64_t n) {
  const Rates rates = {.learning_rate = static_cast<float>(a.learning_rate),
                       .decay = static_cast<float>(a.weight_decay)};
  with_lanes<float>(n, {a.master, a.gradient, twice(a.compute_copy)}, [&](auto lanes) {
    constexpr int N = decltype(lanes)::kCount;
    launch(sgd_of_parameters<N>, dim3(blocks_for(n, 256 * N)), 256U, a, rates, n);
  });
}

// In fp64 whatever the type: a norm over a billion elements must not lose the small ones.
template <class S>
__global__ void squares_of_block(const S* x, int64_t elements, double* sums) {
  const int64_t begin = blockIdx.x * fused::kSquaresBlock;
  const int64_t end = min(begin + fused::kSquaresBlock, elements);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double v = widen(x[i]);
    sum += v * v;
  }
  sum = over_block(sum, [](double a, double b) { return a + b; });
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <class S>
void sum_of_squares(const S* x, int64_t elements, double* sums, int64_t, int64_t blocks) {
  launch(squares_of_block<S>, dim3(blocks), 256U, x, elements, sums);
}

template <class S>
constexpr fused::TypedKernels<S> kTyped = {.rms_norm = rms_norm<S>,
                                           .rms_norm_backward = rms_norm_backward<S>,
                                           .rope = rope<S>,
                                           .swiglu = swiglu<S>,
                                           .swiglu_backward = swiglu_backward<S>,
                                           .cross_entropy_statistics = cross_entropy_statistics<S>,
                                           .cross_entropy_gradient = cross_entropy_gradient<S>,
                                           .sum_of_squares = sum_of_squares<S>};

}  // namespace

const fused::Table kernels = {.of_bf16 = kTyped<bf16>,
                              .of_float = kTyped<float>,
                              .of_double = {},
                              .optimizer_float = {.adamw = adamw, .sgd = sgd},
                              .optimizer_double = {}};

}  // namespace picotron::cuda
