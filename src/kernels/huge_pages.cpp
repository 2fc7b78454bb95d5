// See huge_pages.h.
#include "kernels/huge_pages.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstdint>

namespace picotron {
namespace {

// ATen's own allocator, with a word to the system about what it allocates.
class HugePageAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr block = plain_->allocate(bytes);
    if (bytes >= kHugePage) {
      // Whole pages of the block alone; its neighbours on the first and last are not ours.
      const uintptr_t first = reinterpret_cast<uintptr_t>(block.get());
      const uintptr_t begin = (first + kPage - 1) / kPage * kPage;
      const uintptr_t end = (first + bytes) / kPage * kPage;
      // A wish: a system without huge pages refuses it, and the block is as good.
      (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    }
    return block;
  }
  c10::DeleterFnPtr raw_deleter() const override { return plain_->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    plain_->copy_data(to, from, bytes);
  }

 private:
  static constexpr size_t kPage = 4096, kHugePage = 2 << 20;
  c10::Allocator* plain_ = c10::GetDefaultCPUAllocator();
};

}  // namespace

void use_huge_pages() {
  static HugePageAllocator allocator;
  c10::SetCPUAllocator(&allocator);
}

}  // namespace picotron
