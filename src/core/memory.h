// The process's memory allocator. A training step frees gigabytes of activations that the next step
// wants again. Left alone, the C library gives each large block back to the system when it is
// freed, and the system zeroes every page (4 KB) anew when it is next touched.
#pragma once

namespace picotron {

// From here on, freed memory stays with this process. Called once, before anything large is
// allocated.
void keep_freed_memory();

}  // namespace picotron
