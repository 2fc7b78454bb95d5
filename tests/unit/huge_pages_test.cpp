// use_huge_pages(): a large tensor lies in pages of 2 MB, where this system gives them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "kernels/huge_pages.h"

namespace picotron {
namespace {

// Bytes of this process in huge pages; -1 where the system does not say.
int64_t bytes_in_huge_pages() {
  std::ifstream file("/proc/self/smaps_rollup");
  for (std::string word; file >> word;) {
    int64_t kilobytes = 0;
    if (word == "AnonHugePages:" && file >> kilobytes) return kilobytes * 1024;
  }
  return -1;
}

TEST(HugePages, HoldALargeTensorAndItsNumbers) {
  std::string modes;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"), modes);
  const int64_t before = bytes_in_huge_pages();
  use_huge_pages();
  constexpr int64_t kElements = 16 << 20;
  const at::Tensor x = at::arange(kElements, at::kFloat);  // 64 MB
  EXPECT_EQ(x[kElements - 1].item<float>(), static_cast<float>(kElements - 1));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(x.data_ptr()) % 64, 0U);
  if (modes.find("[madvise]") == std::string::npos || before < 0)
    GTEST_SKIP() << "transparent huge pages are not on request here: '" << modes << "'";
  EXPECT_GE(bytes_in_huge_pages() - before, 2 << 20);
}

}  // namespace
}  // namespace picotron
