// Philox, the normal and uniform draws made of it, and the walk over a shard: each of its elements
// is drawn by its index in the whole tensor.
#include "model/initial_values.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <numbers>
#include <string_view>

namespace picotron {
namespace {

// FNV-1a, then mixed with the seed: parameters differ in their key, elements in their counter.
uint64_t key_of(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash ^ (seed * 0x9e3779b97f4a7c15);
}

// Two uniforms in (0, 1) of 53 bits.
struct Uniforms {
  double a, b;
};
Uniforms uniforms(uint64_t key, uint64_t counter) {
  const PhiloxBlock block = philox(key, counter);
  const auto to_unit = [](uint32_t high, uint32_t low) {
    const uint64_t bits = (uint64_t{high} << 32 | low) >> 11;
    return (static_cast<double>(bits) + 0.5) * 0x1p-53;
  };
  return {to_unit(block.x[0], block.x[1]), to_unit(block.x[2], block.x[3])};
}

// Elements 2j and 2j + 1 are the two normals that Box and Muller's transform makes of block j.
double normal(uint64_t key, int64_t i) {
  const Uniforms u = uniforms(key, static_cast<uint64_t>(i / 2));
  const double radius = std::sqrt(-2 * std::log(u.a)), angle = 2 * std::numbers::pi * u.b;
  return radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

// [outer, dim, inner] of the full tensor; the shard is a range of dim.
template <class Draw>
void fill(const Parameter& parameter, const at::Tensor& flat, const Draw& draw) {
  int64_t inner = 1;
  for (size_t d = static_cast<size_t>(parameter.shard.dim) + 1; d < parameter.full_shape.size();
       ++d) {
    inner *= parameter.full_shape[d];
  }
  const int64_t full = parameter.full_shape[static_cast<size_t>(parameter.shard.dim)];
  const int64_t here = parameter.shard.end - parameter.shard.begin;
  const at::Tensor drawn = at::empty({parameter.numel()}, at::kDouble);
  double* out = drawn.data_ptr<double>();
  at::parallel_for(0, parameter.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t local = begin; local < end; ++local) {
      const int64_t row = local / inner;
      out[local] =
          draw((row / here * full + row % here + parameter.shard.begin) * inner + local % inner);
    }
  });
  flat.narrow(0, parameter.offset, parameter.numel()).copy_(drawn);
}

}  // namespace

PhiloxBlock philox(uint64_t key, uint64_t counter, uint64_t counter_high) {
  uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                   static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)};
  uint32_t k[2] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * x[0], p1 = uint64_t{0xCD9E8D57} * x[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k[0], static_cast<uint32_t>(p1),
        static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k[1], static_cast<uint32_t>(p0)};
    for (int i = 0; i < 4; ++i) x[i] = next[i];
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return {{x[0], x[1], x[2], x[3]}};
}

void fill_initial_values(const Parameters& parameters, const at::Tensor& flat,
                         const InitialValuesOptions& options) {
  for (const Parameter& parameter : parameters.list()) {
    const uint64_t key = key_of(options.seed, parameter.name);
    const bool reference = options.kind == InitialValues::reference;
    if (parameter.role == Role::norm) {
      fill(parameter, flat, [](int64_t) { return 1.0; });
    } else if (parameter.role == Role::bias && !reference) {
      fill(parameter, flat, [](int64_t) { return 0.0; });
    } else if (!reference || parameter.role == Role::embedding) {
      const double scale = reference ? 1.0 : options.initializer_range;
      fill(parameter, flat, [&](int64_t i) { return scale * normal(key, i); });
    } else {
      // A bias has its layer's fan-in, which it does not know itself.
      const double bound = 1 / std::sqrt(static_cast<double>(parameter.fan_in));
      fill(parameter, flat,
           [&](int64_t i) { return bound * (2 * uniforms(key, static_cast<uint64_t>(i)).a - 1); });
    }
  }
}

}  // namespace picotron
