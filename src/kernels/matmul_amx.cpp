// See matmul_amx.h.
#include "kernels/matmul_amx.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/error.h"
#include "kernels/amx/product.h"

namespace picotron {
namespace {

// A tile's registers are 8 KB more for Linux to save at a switch, so a process asks for them once.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, xfeature
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_a_stride(const at::Tensor& x) {
  return x.stride(0) == 1 || x.stride(1) == 1;
}

amx::Operand operand(const at::Tensor& x) {
  const bool transposed = x.stride(1) != 1;
  return {static_cast<const amx::bf16*>(x.const_data_ptr()), x.stride(transposed ? 1 : 0),
          transposed};
}

}  // namespace

bool has_amx() {
  static const bool has = onednn_has_amx() && may_use_tiles();
  return has;
}

bool amx_computes(const at::Tensor& a, const at::Tensor& b) {
  constexpr int64_t kLeast = 32;  // a tile or two along each dim
  return a.is_cpu() && a.scalar_type() == at::kBFloat16 && a.size(0) >= kLeast &&
         a.size(1) >= kLeast && b.size(1) >= kLeast && has_amx() &&
         b.scalar_type() == at::kBFloat16;
}

void amx_product(const at::Tensor& c, const at::Tensor& a_view, const at::Tensor& b_view,
                 bool accumulate) {
  check(a_view.scalar_type() == at::kBFloat16 && b_view.scalar_type() == at::kBFloat16 &&
            c.stride(1) == 1 &&
            (c.scalar_type() == at::kFloat || (c.scalar_type() == at::kBFloat16 && !accumulate)),
        "a product by AMX: bf16 operands, into fp32, or into bf16 without a sum");
  const at::Tensor a = has_a_stride(a_view) ? a_view : a_view.contiguous();
  const at::Tensor b = has_a_stride(b_view) ? b_view : b_view.contiguous();
  const amx::Product product = {.m = c.size(0),
                                .n = c.size(1),
                                .k = a.size(1),
                                .a = operand(a),
                                .b = operand(b),
                                .c = c.data_ptr(),
                                .c_stride = c.stride(0),
                                .into = c.scalar_type() == at::kBFloat16 ? amx::Into::rounded
                                        : accumulate                     ? amx::Into::added
                                                                         : amx::Into::written};
  const amx::Blocks blocks =
      amx::blocks_of(product, at::in_parallel_region() ? 1 : at::get_num_threads());
  at::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) {
    const auto bytes = [](int64_t count) { return at::empty({count}, at::kByte); };
    const at::Tensor a_tiles = bytes(2 * blocks.m * blocks.k);
    const at::Tensor b_tiles = bytes(2 * blocks.n * blocks.k);
    const at::Tensor sums = bytes(4 * blocks.m * blocks.n);
    amx::multiply(
        product, blocks,
        {static_cast<amx::bf16*>(a_tiles.data_ptr()), static_cast<amx::bf16*>(b_tiles.data_ptr()),
         static_cast<float*>(sums.data_ptr())},
        begin, end);
  });
}

}  // namespace picotron
