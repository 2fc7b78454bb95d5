// libpicotron_cuda.so: everything of the program that links to CUDA, loaded by dist/device.cpp only
// when a GPU is used. Two things happen when it is loaded: its libraries register ATen's CUDA
// operators, and the program finds the two functions at the end of this file.
//
// Matrix products and attention reach cuBLAS and FlashAttention through ATen's dispatcher from
// kernels/matmul.cpp and kernels/attention_cuda.cpp; the fused kernels are in kernels.cu beside
// this file, and kernels/fused_dispatch.cpp finds them through the same dispatcher.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "cuda/kernels.h"
#include "dist/plugin.h"

namespace picotron {
namespace {

class Cuda : public Device {
 public:
  explicit Cuda(c10::DeviceIndex index) : index_(index) {
    at::globalContext().lazyInitDevice(c10::kCUDA);
    c10::cuda::set_device(index_);
  }

  c10::Device torch() const override { return {c10::kCUDA, index_}; }
  std::string name() const override { return at::cuda::getDeviceProperties(index_)->name; }
  int64_t peak_memory_bytes() const override {
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return c10::cuda::CUDACachingAllocator::getDeviceStats(index_).reserved_bytes[kAll].peak;
  }
  void synchronize() const override { c10::cuda::device_synchronize(); }

  c10::intrusive_ptr<c10d::Backend> make_nccl_backend(
      const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
      std::chrono::milliseconds timeout) const override {
    // c10d's default lets a helper thread end the process with a stack trace when a peer is lost.
    // 2: abort the communicator, so that the caller's wait throws and the heartbeat says who it
    // was. c10d takes this setting from the environment alone; what the user has set stands.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", /*overwrite=*/0);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
    backend->setBoundDeviceId(torch());  // else NCCL's barrier would guess one from the rank
    return backend;
  }

 private:
  const c10::DeviceIndex index_;
};

int count_gpus() {
  int count = 0;
  switch (const cudaError_t error = c10::cuda::GetDeviceCount(&count)) {
    case cudaSuccess:
      break;
    case cudaErrorInsufficientDriver:
      throw user_error(
          "the NVIDIA driver is missing or older than CUDA {}.{} needs; update it, or "
          "set distributed.use_cpu true",
          CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    case cudaErrorNoDevice:
      break;
    default:
      throw user_error(
          "CUDA does not start (error {}); look at nvidia-smi, or set "
          "distributed.use_cpu true",
          static_cast<int>(error));
  }
  if (count == 0) {
    throw user_error(
        "CUDA sees no GPU on this machine (is CUDA_VISIBLE_DEVICES empty?); set "
        "distributed.use_cpu true");
  }
  return count;
}

int index_of_gpu(int local_rank, bool share_gpus) {
  const int count = count_gpus();
  if (local_rank < count) return local_rank;
  if (share_gpus) return local_rank % count;
  throw user_error(
      "local rank {} has no GPU of its own: this machine has {}; start fewer ranks here, or set "
      "distributed.backend \"gloo\", with which ranks may share one",
      local_rank, count);
}

// The same run gives the same bits, and bf16 products add up in fp32, on a GPU as on a CPU. ATen's
// defaults are faster by atomic additions in index_add_ and attention's backward.
void prefer_exact_results() {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setAllowBF16ReductionCuBLAS(false);
}

}  // namespace

CUstream_st* cuda::current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

void cuda::check_launch() {
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace picotron

TORCH_LIBRARY(picotron, library) {
  library.def("gpu_kernels() -> int", [] {
    return static_cast<int64_t>(reinterpret_cast<intptr_t>(&picotron::cuda::kernels));
  });
}

extern "C" {

const char* picotron_cuda_interface() {
  return picotron::plugin::kInterface;
}

picotron::Device* picotron_cuda_open(int local_rank, bool share_gpus) {
  const int index = picotron::index_of_gpu(local_rank, share_gpus);
  picotron::prefer_exact_results();
  return new picotron::Cuda(static_cast<c10::DeviceIndex>(index));
}

}  // extern "C"
