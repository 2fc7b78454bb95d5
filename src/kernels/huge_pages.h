// Pages of 2 MB for large tensors on a CPU. A step walks gigabytes of weights, gradients and
// activations; in pages of 4 KB the processor looks up the address of each of a million of them,
// in pages of 2 MB of a few thousand. /sys/kernel/mm/transparent_hugepage/enabled says what Linux
// does: with madvise it gives them to whoever asks (madvise(2), MADV_HUGEPAGE), with always to
// everybody. LibTorch asks by itself if THP_MEM_ALLOC_ENABLE=1 is in the environment it starts in.
#pragma once

namespace picotron {

// From here on ATen asks for them, for each CPU tensor of 2 MB or more; where Linux has none to
// give nothing changes. Called once, before anything large is allocated.
void use_huge_pages();

}  // namespace picotron
