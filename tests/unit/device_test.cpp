// Opening a device: a CPU always, a GPU or one clear sentence.
#include "dist/device.h"

#include <ATen/ATen.h>
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>

#include "core/error.h"
#include "dist/plugin.h"
#include "gpu.h"

namespace picotron {
namespace {

std::string sentence_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_sentence(const std::string& sentence, const std::string& part) {
  EXPECT_NE(sentence.find(part), std::string::npos) << sentence;
  EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
}

bool has_driver() {
  return dlopen("libcuda.so.1", RTLD_LAZY) != nullptr;
}

class Folder {
 public:
  Folder() : path_(std::filesystem::path(testing::TempDir()) / "picotron_device_test") {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::filesystem::path plugin() const { return path_ / plugin::kFileName; }

 private:
  std::filesystem::path path_;
};

int64_t resident_bytes() {
  int64_t total = 0, resident = 0;  // pages
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(Device, OpensACpu) {
  const auto device = open_device({.use_cpu = true});
  EXPECT_TRUE(device->is_cpu());
  EXPECT_FALSE(device->name().empty());
  EXPECT_FALSE(device->peak_bf16_flops().has_value());
  const int64_t before = device->peak_memory_bytes();
  EXPECT_GT(before, int64_t{10} << 20);  // LibTorch alone is more
  // Tests before this one may have left the peak far above what is in use now.
  const int64_t room = std::max<int64_t>(before - resident_bytes(), 0);
  const at::Tensor ones = at::ones({room + (int64_t{64} << 20)}, at::TensorOptions(at::kByte));
  EXPECT_GE(device->peak_memory_bytes(), before + (int64_t{32} << 20));
  device->synchronize();
  EXPECT_THROW(device->make_nccl_backend({}, 0, 1, std::chrono::seconds(1)), BrokenInvariant);
}

TEST(Device, IsACpuWhereNothingIsAskedForAndThereIsNoGpu) {
  if (gpu_available(build_folder())) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_TRUE(open_device({.plugin_folder = build_folder()})->is_cpu());
}

TEST(Device, NeedsADriverForAGpu) {
  if (has_driver()) GTEST_SKIP() << "this machine has an NVIDIA driver";
  expect_sentence(sentence_of([] { open_device({.use_cpu = false}); }),
                  "use_cpu is false but no NVIDIA driver was found");
}

TEST(Device, NeedsAPluginOfItsOwn) {
  const Folder folder;
  const auto open = [&] { open_gpu(folder.plugin(), 0, false); };
  expect_sentence(sentence_of(open), "not built; run ./run build --cuda");
  std::ofstream(folder.plugin()) << "not a library";
  expect_sentence(sentence_of(open), "cannot be loaded");

  Dl_info libc{};  // any library that is not ours
  ASSERT_NE(dladdr(reinterpret_cast<const void*>(&std::fputs), &libc), 0);
  std::filesystem::remove(folder.plugin());
  std::filesystem::create_symlink(std::filesystem::canonical(libc.dli_fname), folder.plugin());
  expect_sentence(sentence_of(open), "does not belong to this program");
}

// On a machine without a driver this shows that the plug-in loads, with all of CUDA's libraries,
// and that its own errors arrive.
TEST(Device, LoadsThePlugin) {
  const std::filesystem::path plugin = build_folder() / plugin::kFileName;
  if (!std::filesystem::exists(plugin)) GTEST_SKIP() << "not run: the CUDA plug-in is not built";
  if (has_driver()) GTEST_SKIP() << "this machine has an NVIDIA driver";
  expect_sentence(sentence_of([&] { open_gpu(plugin, 0, false); }), "set distributed.use_cpu true");
}

TEST(Device, IsAGpu) {
  const auto device = gpu_or_null();
  if (device == nullptr) GTEST_SKIP() << "not run: no GPU here, or no CUDA plug-in";
  const at::TensorOptions options(device->torch());
  EXPECT_EQ(at::ones({3}, options).sum().item<float>(), 3.0F);
  EXPECT_GT(device->peak_memory_bytes(), 0);
  device->synchronize();
  expect_sentence(sentence_of([] { open_gpu(build_folder() / plugin::kFileName, 1000, false); }),
                  "local rank 1000 has no GPU of its own");
  EXPECT_FALSE(open_gpu(build_folder() / plugin::kFileName, 1000, true)->is_cpu());
}

TEST(Device, KnowsPublishedPeaks) {
  const auto teraflops = [](const std::string& name) {
    return published_bf16_peak(name).value_or(0) / 1e12;
  };
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA H100 80GB HBM3"), 989.4);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA H100 PCIe"), 756);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA H100 NVL"), 835.5);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA H200"), 989.4);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA GH200 480GB"), 989.4);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA A100-SXM4-80GB"), 312);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA A10"), 125);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA L40S"), 362);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA L4"), 121);
  EXPECT_DOUBLE_EQ(teraflops("NVIDIA GeForce RTX 4090"), 165.2);
  EXPECT_DOUBLE_EQ(teraflops("Tesla V100-SXM2-16GB"), 125);
  for (const char* unknown :
       {"AMD EPYC 9654 96-Core Processor", "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", ""}) {
    EXPECT_FALSE(published_bf16_peak(unknown).has_value()) << unknown;
  }
}

}  // namespace
}  // namespace picotron
