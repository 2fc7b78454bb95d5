// Every kernel here exists twice. The *plain* body is its definition in a few ATen operators: the
// reader's first stop, the tests' judge, and what `kernels.fused: false` runs. The *fused* body is
// one pass over memory: for a CPU (bf16, fp32, fp64) in kernels/cpu, compiled once per instruction
// set, for a GPU (bf16, fp32) in src/cuda/kernels.cu. On a machine whose matrix products are fast,
// the time of these operators is the time their bytes take.
#pragma once

namespace picotron {

// What a caller asks for. `fused` is a wish: on another device or dtype the plain body runs.
enum class Body { fused, plain };

}  // namespace picotron
