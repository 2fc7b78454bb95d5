// The product floor: how long a step's matrix products take when each is run alone, at its shape,
// in the fastest form that the libraries on this machine offer. No step that makes these products
// by a library can be quicker, so floor / step time says what the rest of a step costs. Our own
// products for AMX (amx/product.h) are quicker than the libraries', and not part of the floor.
//
//     forward, input gradient   oneDNN as kernels/matmul calls it, or would without AMX; with the
//                               weight laid out beforehand as oneDNN likes it best; ATen
//                               (at::linear, at::mm)
//     weight gradient           oneDNN, adding into fp32 by itself; ATen's product, then a sum
//
// Read next: matmul.h, train/step_bench.h.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "core/record.h"

namespace picotron {

// One kind of product of a step: c[m,n] = a[m,k] b[k,n], `count` times.
struct ProductTime {
  const char* what = "";  // as in the record: "linear_forward", …
  int64_t m = 0, n = 0, k = 0;
  int64_t count = 0;
  const char* form = "";       // the fastest one
  double seconds = 0;          // of one such product in that form: the median of several
  double seconds_in_step = 0;  // of all `count` in the step: where it lost against the floor
  double flops() const { return 2.0 * static_cast<double>(m * n * k); }
};

// The products among `entries` (the record of one step), each kind once, with the time it takes
// alone on the calling thread's number of threads, on a CPU.
std::vector<ProductTime> measure_products(const std::vector<record::Entry>& entries,
                                          c10::ScalarType dtype);

// Σ count · seconds.
double total_seconds(const std::vector<ProductTime>& products);

}  // namespace picotron
