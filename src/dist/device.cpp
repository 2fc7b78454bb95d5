// The CPU as a device, the table of published peaks, and the door to the plug-in: is a driver here,
// and is libpicotron_cuda.so of this build.
#include "dist/device.h"

#include <dlfcn.h>
#include <sys/resource.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <algorithm>
#include <fstream>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "dist/plugin.h"

namespace picotron {
namespace {

class Cpu : public Device {
 public:
  c10::Device torch() const override { return c10::Device(c10::kCPU); }
  std::string name() const override {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
    }
    return "CPU";
  }
  int64_t peak_memory_bytes() const override {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
  }
  void synchronize() const override {}
  c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>&, int,
                                                      int,
                                                      std::chrono::milliseconds) const override {
    throw BrokenInvariant("NCCL was asked for on a CPU; its backend is Gloo");
  }
};

// Loading the driver's library does not start the driver, so a fork is still safe afterwards.
bool has_driver() {
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver != nullptr) dlclose(driver);
  return driver != nullptr;
}

bool sees_gpu() {
  if (!has_driver()) return false;
  std::error_code error;
  if (std::filesystem::exists("/dev/dxg", error)) return true;  // Windows' Linux
  for (const auto& entry : std::filesystem::directory_iterator("/dev", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("nvidia") && name.size() > 6 &&
        name.find_first_not_of("0123456789", 6) == std::string::npos) {
      return true;
    }
  }
  return false;
}

std::filesystem::path plugin_in(const std::filesystem::path& folder) {
  if (!folder.empty()) return folder / plugin::kFileName;
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / plugin::kFileName;
}

struct Peak {
  std::vector<std::string> words;  // each is a word of the device's name
  double teraflops;
};

// The first that matches counts, so a variant stands before its family.
const std::vector<Peak>& published_peaks() {
  static const std::vector<Peak> peaks = {{{"GB200"}, 2500},
                                          {{"B200"}, 2250},
                                          {{"GH200"}, 989.4},
                                          {{"H200", "NVL"}, 835.5},
                                          {{"H200"}, 989.4},
                                          {{"H100", "PCIe"}, 756},
                                          {{"H100", "NVL"}, 835.5},
                                          {{"H100"}, 989.4},
                                          {{"H800", "PCIe"}, 756},
                                          {{"H800"}, 989.4},
                                          {{"H20"}, 148},
                                          {{"A100"}, 312},
                                          {{"A800"}, 312},
                                          {{"A30"}, 165},
                                          {{"A40"}, 149.7},
                                          {{"A10"}, 125},
                                          {{"L40S"}, 362},
                                          {{"L40"}, 181},
                                          {{"L4"}, 121},
                                          {{"RTX", "A6000"}, 154.8},
                                          {{"RTX", "5090"}, 209.5},
                                          {{"RTX", "4090"}, 165.2},
                                          {{"RTX", "3090"}, 71},
                                          {{"V100", "PCIE"}, 112},
                                          {{"V100"}, 125}};
  return peaks;
}

}  // namespace

std::optional<double> published_bf16_peak(const std::string& device_name) {
  std::vector<std::string> words(1);
  for (const char c : device_name) {
    if (c == ' ' || c == '-') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  const auto has = [&](const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  // A part of a GPU, and chips of another size that share the family's name.
  if (has("MIG") || has("Laptop") || has("Ti") || has("D")) return std::nullopt;
  for (const Peak& peak : published_peaks()) {
    if (std::all_of(peak.words.begin(), peak.words.end(), has)) return peak.teraflops * 1e12;
  }
  return std::nullopt;
}

std::optional<double> Device::peak_bf16_flops() const {
  return published_bf16_peak(name());
}

bool gpu_available(const std::filesystem::path& plugin_folder) {
  return sees_gpu() && std::filesystem::exists(plugin_in(plugin_folder));
}

std::unique_ptr<Device> open_gpu(const std::filesystem::path& plugin, int local_rank,
                                 bool share_gpus) {
  if (!std::filesystem::exists(plugin)) {
    throw user_error("a GPU needs {}, which is not built; run ./run build --cuda, or set {}",
                     plugin.string(), "distributed.use_cpu true");
  }
  // Never closed: ATen keeps pointers to the operators that the plug-in's libraries register.
  void* const library = dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw user_error("{} cannot be loaded ({}); run ./run build --cuda again", plugin.string(),
                     dlerror());
  }
  const auto interface =
      reinterpret_cast<plugin::InterfaceFunction*>(dlsym(library, plugin::kInterfaceSymbol));
  const std::string found = interface != nullptr ? interface() : "none of ours";
  if (found != plugin::kInterface) {
    throw user_error(
        "{} does not belong to this program ({}, needed: {}); run ./run build --cuda again",
        plugin.string(), found, plugin::kInterface);
  }
  const auto open = reinterpret_cast<plugin::OpenFunction*>(dlsym(library, plugin::kOpenSymbol));
  check(open != nullptr, "a plug-in of this interface opens devices");
  return std::unique_ptr<Device>(open(local_rank, share_gpus));
}

std::unique_ptr<Device> open_device(const DeviceOptions& options) {
  const std::filesystem::path plugin = plugin_in(options.plugin_folder);
  if (!options.use_cpu.has_value()) {
    if (!sees_gpu()) return std::make_unique<Cpu>();
    if (!std::filesystem::exists(plugin)) {
      log::warn(
          fmt::format("this machine has a GPU but {} is not built, so a CPU is used; run "
                      "./run build --cuda",
                      plugin.string()));
      return std::make_unique<Cpu>();
    }
  } else if (*options.use_cpu) {
    return std::make_unique<Cpu>();
  } else if (!has_driver()) {
    throw user_error(
        "distributed.use_cpu is false but no NVIDIA driver was found (libcuda.so.1); install it, "
        "or set distributed.use_cpu true");
  }
  return open_gpu(plugin, options.local_rank, options.share_gpus);
}

BackendFactory nccl_backends(const Device& device) {
  return [&device](const BackendRequest& request) {
    return device.make_nccl_backend(request.store, request.rank, request.size, request.timeout);
  };
}

}  // namespace picotron
