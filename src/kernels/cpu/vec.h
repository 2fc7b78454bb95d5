// Vectors as wide as the instruction set this file is compiled for, in GCC's and Clang's vector
// extension, so that a kernel is written once: `a * b + c` is 4, 8 or 16 products.
//
//   bf16 is the upper half of a float:  [s eeeeeeee mmmmmmm | 0000000000000000]
//     load:             shift left by 16
//     to nearest even:  add 0x7fff + (the lowest bit that stays), shift right by 16
//
// The rule of this folder: it is compiled three times, and the linker keeps one copy of an inline
// function that all three share. Were that the AVX-512 copy, an older CPU would die of it. So
// everything lives in a namespace named after the instruction set, and no header is included whose
// inline functions the compiler might not inline (immintrin.h's it must).
#pragma once
#include <cstdint>
#include <cstring>
#if defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

#include "kernels/cpu/kernels.h"

namespace picotron::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T, int N>
using VectorN = typename VectorOf<T, N>::type;

template <class C>
constexpr int kLanes = kVectorBytes / int{sizeof(C)};
template <class C>
using Vector = VectorN<C, kLanes<C>>;

#define PICOTRON_INLINE inline __attribute__((always_inline))
#define PICOTRON_LAMBDA __attribute__((always_inline))

template <class To, class From>
PICOTRON_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// How many of a vector's lanes are in the array: all of them, or, at its end, the first `count`.
struct Full {};
struct Partial {
  int64_t count;
};

template <class T, int N>
PICOTRON_INLINE VectorN<T, N> load_raw(const T* from, Full) {
  VectorN<T, N> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class T, int N>
PICOTRON_INLINE VectorN<T, N> load_raw(const T* from, Partial part) {
  VectorN<T, N> v{};
  std::memcpy(&v, from, static_cast<size_t>(part.count) * sizeof(T));
  return v;
}
template <class T, class V>
PICOTRON_INLINE void store_raw(T* to, const V& v, Full) {
  std::memcpy(to, &v, sizeof(v));
}
template <class T, class V>
PICOTRON_INLINE void store_raw(T* to, const V& v, Partial part) {
  std::memcpy(to, &v, static_cast<size_t>(part.count) * sizeof(T));
}

// The same values in a wider type; what is narrower than float is bf16.
template <class V, class Raw>
PICOTRON_INLINE V widened(const Raw& raw) {
  if constexpr (sizeof(raw[0]) == sizeof(bf16)) {
    constexpr int n = int{sizeof(Raw) / sizeof(bf16)};
    const auto wide = __builtin_convertvector(raw, VectorN<uint32_t, n>) << 16;
    return __builtin_convertvector((bits_as<VectorN<float, n>>(wide)), V);
  } else {
    return __builtin_convertvector(raw, V);
  }
}

// Reads kLanes<C> values of storage type S, widened to C; lanes beyond the array's end are 0.
template <class C, class S, class Part>
PICOTRON_INLINE Vector<C> load(const S* from, Part part) {
  constexpr int n = kLanes<C>;
  const VectorN<S, n> raw = load_raw<S, n>(from, part);
  return widened<Vector<C>>(raw);
}

// The bf16 nearest to each float, ties to even; what is not a number stays so.
template <int N>
PICOTRON_INLINE VectorN<bf16, N> to_bf16(const VectorN<float, N>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (N == kLanes<float>) {
    return bits_as<VectorN<bf16, N>>(_mm512_cvtneps_pbh(v));
  }
#endif
  using Bits = VectorN<uint32_t, N>;
  const Bits bits = bits_as<Bits>(v);
  const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits quiet = Bits{} + 0x7fc0;
  return __builtin_convertvector(v == v ? nearest : quiet, VectorN<bf16, N>);
}

// Rounds v to storage type S, stores it, and returns what a load would now read.
template <class S, class V, class Part>
PICOTRON_INLINE V store(S* to, const V& v, Part part) {
  if constexpr (sizeof(S) == sizeof(bf16)) {
    const auto raw = to_bf16<int(sizeof(V) / sizeof(float))>(v);
    store_raw(to, raw, part);
    return widened<V>(raw);
  } else {
    store_raw(to, v, part);
    return v;
  }
}

// v as it would be after a store and a load.
template <class S, class V>
PICOTRON_INLINE V rounded(const V& v) {
  if constexpr (sizeof(S) == sizeof(bf16)) {
    return widened<V>(to_bf16<int(sizeof(V) / sizeof(float))>(v));
  } else {
    return v;
  }
}

template <class V, class C>
PICOTRON_INLINE V all(C value) {
  return V{} + value;
}

// Calls body(i, part) for each vector of an array of n elements.
template <class C, class F>
PICOTRON_INLINE void for_vectors(int64_t n, F body) {
  constexpr int64_t lanes = kLanes<C>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, Full{});
  if (i < n) body(i, Partial{n - i});
}

template <class C>
PICOTRON_INLINE C sum_lanes(const Vector<C>& v) {
  C lane[kLanes<C>];
  std::memcpy(lane, &v, sizeof(v));
  for (int width = kLanes<C> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}
template <class C>
PICOTRON_INLINE C max_lanes(const Vector<C>& v) {
  C most = v[0];
  for (int i = 1; i < kLanes<C>; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Σ of term(i, part) over an array. Four sums side by side: one alone would wait for each addition
// to end.
template <class C, class F>
PICOTRON_INLINE C sum_vectors(int64_t n, F term) {
  constexpr int64_t lanes = kLanes<C>;
  Vector<C> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int k = 0; k < 4; ++k) sum[k] += term(i + k * lanes, Full{});
  }
  for (; i + lanes <= n; i += lanes) sum[0] += term(i, Full{});
  if (i < n) sum[1] += term(i, Partial{n - i});
  return sum_lanes<C>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

PICOTRON_INLINE float square_root(float x) {
  return __builtin_sqrtf(x);
}
PICOTRON_INLINE double square_root(double x) {
  return __builtin_sqrt(x);
}
template <class V>
PICOTRON_INLINE V square_root(V v) {
  constexpr int n = int(sizeof(V) / sizeof(v[0]));
  for (int i = 0; i < n; ++i) v[i] = square_root(v[i]);
  return v;
}

PICOTRON_INLINE double exponential(double x) {
  return __builtin_exp(x);
}

// p · 2^n. Where the instruction set has no such instruction: by the exponent bits, in two halves,
// so that results below 2^−126 come out right.
PICOTRON_INLINE Vector<float> scaled_by_power(const Vector<float>& p, const Vector<float>& n) {
#if defined(CPU_CAPABILITY_AVX512)
  // The form with a mask: GCC 12 warns of the plain one's undefined operand, which nothing reads.
  return _mm512_maskz_scalef_ps(0xffff, p, n);
#else
  using I = Vector<int32_t>;
  const I exponent = __builtin_convertvector(n, I);
  const I half = exponent >> 1;
  return p * bits_as<Vector<float>>((half + 127) << 23) *
         bits_as<Vector<float>>((exponent - half + 127) << 23);
#endif
}

// e^x for fp32: x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by a polynomial, 2^n by the exponent.
// Relative error about 1e-7 (a test bounds it).
PICOTRON_INLINE Vector<float> exponential(Vector<float> x) {
  using F = Vector<float>;
  x = x > 89.0f ? all<F>(89.0f) : x;  // a comparison with NaN is false, so NaN passes through
  x = x < -104.0f ? all<F>(-104.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5·2^23: adding it rounds to the nearest integer
  const F n = (x * 1.44269504f + kRound) - kRound;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = all<F>(1.9875691500e-4f);  // minimax coefficients of Cephes' expf (Moshier)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r + 1.0f) * r + 1.0f;
  return scaled_by_power(p, n);
}
PICOTRON_INLINE Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exponential(x[i]);
  return x;
}

}  // namespace picotron::cpu::CPU_CAPABILITY
