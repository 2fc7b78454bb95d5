// The GPU for tests that need one: null where there is none, or no plug-in in the build's folder.
#pragma once
#include <filesystem>
#include <memory>

#include "dist/device.h"

namespace picotron {

inline std::filesystem::path build_folder() {  // of this test program: build/tests/engine_tests
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path();
}

inline std::unique_ptr<Device> gpu_or_null() {
  if (!gpu_available(build_folder())) return nullptr;
  return open_device({.use_cpu = false, .plugin_folder = build_folder()});
}

}  // namespace picotron
