// Between plugin.cpp, which knows LibTorch, and kernels.cu, which knows CUDA alone.
#pragma once
#include "kernels/fused_kernels.h"

struct CUstream_st;

namespace picotron::cuda {

extern const fused::Table kernels;  // for tensors on the current GPU; no fp64

CUstream_st* current_stream();  // ATen's
void check_launch();            // throws c10::Error where the last launch failed

}  // namespace picotron::cuda
