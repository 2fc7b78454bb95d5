// Initial values: element i of a parameter is a function of (seed, its Hugging Face name, i) alone.
//
// Not of the rank, the layout, the number of threads or the device: so every layout starts from the
// same model, and its loss curve can be compared (one curve). Element i is drawn by a counter-based
// generator, Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
// keyed by seed and name, in float64, and then rounded:
//
//                  linear weights    biases           embedding      norms    as
//     normal       N(0, range)       0                N(0, range)    1        transformers
//     reference    U(±1/√fan_in)     U(±1/√fan_in)    N(0, 1)        1        PyTorch's modules
//
// range is the model's initializer_range, fan_in that of the whole tensor, not of a shard.
#pragma once
#include <cstdint>

#include "parallel/parameter.h"

namespace picotron {

enum class InitialValues : uint8_t { normal, reference };

struct InitialValuesOptions {
  InitialValues kind = InitialValues::normal;
  double initializer_range = 0.02;
  uint64_t seed = 42;
};

// Fills `flat`, a buffer of the layout of parameters.flat(), with every parameter's local part. It
// may be of a wider dtype than the values: master weights start from what bf16 then rounds.
void fill_initial_values(const Parameters& parameters, const at::Tensor& flat,
                         const InitialValuesOptions& options);

// The generator itself: 128 random bits for a key and a counter, of which half is enough here.
struct PhiloxBlock {
  uint32_t x[4];
};
PhiloxBlock philox(uint64_t key, uint64_t counter, uint64_t counter_high = 0);

}  // namespace picotron
