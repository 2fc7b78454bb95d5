// The device: where tensors live. Nothing in the model, the loop or the parallel layers names one;
// they make tensors on device.torch(), and ATen's dispatcher finds the operators.
//
//     picotron ── links ──▶ libtorch_cpu                            (a CPU: 0.2 s to start, 115 MB)
//        └─ dlopen, once a GPU is asked for ──▶ libpicotron_cuda.so ──▶ libtorch_cuda, NCCL, cuBLAS
//
// Loading the plug-in registers ATen's CUDA operators; from then on at::mm of two CUDA tensors
// works in code that was compiled without a word of CUDA. The plug-in answers two C calls: which
// interface it was built for, and "open the GPU of this local rank" (dist/plugin.h). Open the
// device before anything is computed: ATen looks only once whether CUDA's libraries are there.
// Read next: src/cuda/plugin.cpp, kernels/attention.cpp (one kernel, two devices).
#pragma once
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "dist/mesh.h"

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace picotron {

// One per rank. All bodies of the virtual functions of a GPU live in the plug-in.
class Device {
 public:
  Device() = default;
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  virtual c10::Device torch() const = 0;  // "cpu", "cuda:1": for at::TensorOptions
  virtual std::string name() const = 0;   // "NVIDIA H100 80GB HBM3", "AMD EPYC 9654 96-Core …"
  virtual int64_t peak_memory_bytes() const = 0;  // most that was held: by the process (a CPU), by
                                                  // the caching allocator on this GPU
  virtual void synchronize() const = 0;           // returns when all work issued so far is done
  // NCCL among `size` ranks that meet in `store`, each on a GPU of its own; `timeout` is of each
  // operation. On a CPU: BrokenInvariant (the backend there is Gloo).
  virtual c10::intrusive_ptr<c10d::Backend> make_nccl_backend(
      const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
      std::chrono::milliseconds timeout) const = 0;

  bool is_cpu() const { return torch().is_cpu(); }
  std::optional<double> peak_bf16_flops() const;  // published_bf16_peak(name())
};

// Published dense bf16 tensor-core peak in FLOP/s, by the name the driver gives (NVIDIA's data
// sheets, without sparsity; V100, which has no bf16: fp16). Null for a CPU and unknown GPUs.
std::optional<double> published_bf16_peak(const std::string& device_name);

struct DeviceOptions {
  std::optional<bool> use_cpu;  // null: a GPU where gpu_available()
  int local_rank = 0;           // rank on this machine: the index of its GPU
  bool share_gpus = false;  // backend gloo: more ranks than GPUs, local_rank modulo their number
  std::filesystem::path plugin_folder;  // empty: where the running program lies
};

// A GPU, its driver and the plug-in are here. Starts nothing, so a launcher may ask before it forks
// (CUDA does not survive a fork).
bool gpu_available(const std::filesystem::path& plugin_folder = {});

// Opens this rank's device and makes it the calling thread's current one. Throws UserError, one
// sentence each, where a GPU is asked for and there is no driver, no plug-in, a stale plug-in, no
// GPU, or none for this local rank.
std::unique_ptr<Device> open_device(const DeviceOptions& options = {});

// The second half of open_device, once a driver is known to be here: loads the plug-in and opens
// the GPU. Throws as open_device.
std::unique_ptr<Device> open_gpu(const std::filesystem::path& plugin, int local_rank,
                                 bool share_gpus);

// NCCL for every group of a mesh (Rendezvous::backend). `device` outlives the mesh.
BackendFactory nccl_backends(const Device& device);

}  // namespace picotron
