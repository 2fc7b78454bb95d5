// What libpicotron_cuda.so exports, and how a program knows that the one it found is its own. Both
// sides compile this file; a plug-in left over from an older build answers another sentence.
#pragma once
#include <torch/headeronly/version.h>

#include "dist/device.h"

namespace picotron::plugin {

inline constexpr const char* kFileName = "libpicotron_cuda.so";

// Raise the number with every change to class Device or fused::Table (kernels/fused_kernels.h).
inline constexpr const char* kInterface = "interface 2, LibTorch " TORCH_VERSION;

// extern "C" in the plug-in. `interface` passes nothing of C++, so it may be asked of any plug-in;
// `open` returns an owned Device or throws UserError.
inline constexpr const char* kInterfaceSymbol = "picotron_cuda_interface";
inline constexpr const char* kOpenSymbol = "picotron_cuda_open";
using InterfaceFunction = const char*();
using OpenFunction = Device*(int local_rank, bool share_gpus);

}  // namespace picotron::plugin
