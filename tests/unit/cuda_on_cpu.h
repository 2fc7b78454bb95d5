// CUDA on a CPU, slowly: enough of the language to compile src/cuda/kernels.cu as C++ and run it,
// so that a machine without a GPU can test what its kernels compute. Every CUDA thread of a block
// is a thread here, and the blocks run one after the other. Include this before kernels.cu.
//
// A pack that is not aligned is found by the compiler's check of it (tests/CMakeLists.txt). What it
// cannot show: races between blocks, speed.
#pragma once
#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "core/error.h"

#define __global__
#define __device__
#define __shared__ static

using std::isfinite;
using std::min;

struct dim3 {
  template <class X, class Y = unsigned>
  explicit dim3(X columns, Y rows = 1)
      : x(static_cast<unsigned>(columns)), y(static_cast<unsigned>(rows)) {}
  unsigned x, y;
};

namespace cuda_on_cpu {

struct Index {
  unsigned x = 0, y = 0;
};
struct Block {
  explicit Block(unsigned threads) : barrier(threads), values(threads) {}
  std::barrier<> barrier;
  std::vector<double> values;  // that threads hand each other
};
inline thread_local Block* block = nullptr;

}  // namespace cuda_on_cpu

inline thread_local cuda_on_cpu::Index threadIdx, blockIdx, blockDim;

inline void __syncthreads() {
  cuda_on_cpu::block->barrier.arrive_and_wait();
}
inline float __uint_as_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}
inline float __float2bfloat16_rn(float x) {  // stays a float, whose lower half is zeros
  uint32_t bits = std::bit_cast<uint32_t>(x);
  bits = std::isnan(x) ? 0x7fff0000U : (bits + 0x7fffU + (bits >> 16 & 1U)) & 0xffff0000U;
  return std::bit_cast<float>(bits);
}
inline uint16_t __bfloat16_as_ushort(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}

namespace picotron::cuda {

template <class T>
T shuffle_on_cpu(T x, int lanes) {
  cuda_on_cpu::Block& block = *cuda_on_cpu::block;
  block.values[threadIdx.x] = x;
  __syncthreads();
  const double other = block.values[threadIdx.x ^ static_cast<unsigned>(lanes)];
  __syncthreads();
  return static_cast<T>(other);
}
inline float shuffle(float x, int lanes) {
  return shuffle_on_cpu(x, lanes);
}
inline double shuffle(double x, int lanes) {
  return shuffle_on_cpu(x, lanes);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, unsigned threads, A... arguments) {
  check(threads % 32 == 0 && threads <= 1024 && grid.y < 65536, "CUDA takes such a grid");
  cuda_on_cpu::Block block(threads);
  std::vector<std::thread> running;
  for (unsigned thread = 0; thread < threads; ++thread) {
    running.emplace_back([&, thread] {
      cuda_on_cpu::block = &block;
      threadIdx = {.x = thread};
      blockDim = {.x = threads};
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = {.x = x, .y = y};
          kernel(arguments...);
          __syncthreads();
        }
      }
    });
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace picotron::cuda
