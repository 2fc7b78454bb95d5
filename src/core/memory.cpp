// See memory.h.
#include "core/memory.h"

#include <malloc.h>

namespace picotron {

void keep_freed_memory() {
  mallopt(M_MMAP_MAX, 0);         // no block is a mapping of its own, which free() would undo
  mallopt(M_TRIM_THRESHOLD, -1);  // the heap's end is never given back
  mallopt(M_TOP_PAD, 64 << 20);   // and grows by 64 MB at a time
}

}  // namespace picotron
