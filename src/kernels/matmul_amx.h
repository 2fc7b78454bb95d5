// Products of bf16 matrices by the tiles of kernels/amx, for other files of kernels/: at the sizes
// of a transformer's layers two to three times as fast as oneDNN's, most of all in a step, whose
// operands are not in the cache. Everybody else uses matmul.h.
#pragma once
#include "kernels/matmul_onednn.h"

namespace picotron {

// Whether this CPU has AMX and Linux lets this process use it.
bool has_amx();

// Whether amx_product computes c = a b: bf16 on a CPU that has AMX, and large enough to fill tiles.
bool amx_computes(const at::Tensor& a, const at::Tensor& b);

// c = a b, or c += a b. a [m, k] and b [k, n] in bf16, any strides; c [m, n] with contiguous rows,
// fp32, or bf16 and not accumulated. BrokenInvariant otherwise.
void amx_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool accumulate);

}  // namespace picotron
