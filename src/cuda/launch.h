// What a kernel here needs of CUDA beside its own lines: to be started, to sum over its block, and
// to move 16 bytes at once. A test compiles kernels.cu for a CPU, with threads in place of CUDA's
// (tests/unit/cuda_on_cpu.h), so that what a GPU would compute is checked on every machine.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <initializer_list>

#include "cuda/kernels.h"

namespace picotron::cuda {

#ifdef __CUDACC__
// Throws where the launch itself fails; what goes wrong later is found by the next that waits.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, unsigned threads, A... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  kernel<<<grid, threads, 0, current_stream()>>>(arguments...);
  check_launch();
}

__device__ inline float shuffle(float x, int lanes) {
  return __shfl_xor_sync(0xffffffffU, x, lanes);
}
__device__ inline double shuffle(double x, int lanes) {
  return __shfl_xor_sync(0xffffffffU, x, lanes);
}
#endif

// All threads of a block get combine over their values, in a fixed order. combine is symmetric.
template <class T, class Combine>
__device__ T over_block(T value, Combine combine) {
  __shared__ T of_warp[32];
  for (int lanes = 16; lanes > 0; lanes /= 2) value = combine(value, shuffle(value, lanes));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  T total = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) total = combine(total, of_warp[warp]);
  __syncthreads();  // before of_warp is written again
  return total;
}

// N neighbouring elements.
template <class S, int N>
struct alignas(sizeof(S) * N) Pack {
  S at[N];
};

__device__ inline float widen(float x) {
  return x;
}
__device__ inline float widen(fused::bf16 x) {
  return __uint_as_float(uint32_t{x} << 16);
}
template <class S>
__device__ S narrow(float x) {
  if constexpr (sizeof(S) == sizeof(float))
    return x;
  else
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <class S, int N>
__device__ void load(const S* from, float (&to)[N]) {
  const auto pack = *reinterpret_cast<const Pack<S, N>*>(from);
  for (int k = 0; k < N; ++k) to[k] = widen(pack.at[k]);
}

// Leaves in `from` what was stored: rounded to S.
template <class S, int N>
__device__ void store(S* to, float (&from)[N]) {
  Pack<S, N> pack;
  for (int k = 0; k < N; ++k) {
    pack.at[k] = narrow<S>(from[k]);
    from[k] = widen(pack.at[k]);
  }
  *reinterpret_cast<Pack<S, N>*>(to) = pack;
}

template <int N>
struct Lanes {
  static constexpr int kCount = N;
};

// Calls f with the elements of S that a thread takes at once: as many as 16 bytes hold where rows
// of this width, in memory that begins at each of `begins`, are made of them, else 1.
template <class S, class F>
void with_lanes(int64_t width, std::initializer_list<const void*> begins, F f) {
  constexpr int kMost = 16 / sizeof(S);
  bool whole = width % kMost == 0;
  for (const void* begin : begins) whole = whole && reinterpret_cast<uintptr_t>(begin) % 16 == 0;
  if (whole)
    f(Lanes<kMost>{});
  else
    f(Lanes<1>{});
}

constexpr int64_t blocks_for(int64_t work, int64_t per_block) {
  return (work + per_block - 1) / per_block;
}

// Threads of a block that walks over `work`: whole warps, at most `most`.
inline unsigned threads_for(int64_t work, int64_t most) {
  const int64_t warps = blocks_for(work, 32);
  return static_cast<unsigned>(32 * (warps < most / 32 ? warps : most / 32));
}

}  // namespace picotron::cuda
