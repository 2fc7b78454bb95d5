// Formulas and sources: rope.h; fused loops: cpu/rope_kernels.cpp.
// Here: the plain definitions, and the way from tensors to pointers and threads.
#include "kernels/rope.h"

#include <ATen/ATen.h>

#include <numbers>

#include "kernels/fused_call.h"

namespace picotron {
namespace {

// Llama 3: wavelengths beyond the old context's low-frequency bound are stretched by `factor`,
// those below its high-frequency bound kept, and what lies between is a blend of both.
at::Tensor scaled(const at::Tensor& inv_freq, const RopeScaling& scaling) {
  const double length = static_cast<double>(scaling.original_max_position_embeddings);
  const double low_wavelength = length / scaling.low_freq_factor;
  const double high_wavelength = length / scaling.high_freq_factor;
  const at::Tensor wavelength = 2 * std::numbers::pi / inv_freq;
  const at::Tensor stretched =
      at::where(wavelength > low_wavelength, inv_freq / scaling.factor, inv_freq);
  const at::Tensor blend = (length / wavelength - scaling.low_freq_factor) /
                           (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor blended = (1 - blend) * stretched / scaling.factor + blend * stretched;
  const at::Tensor between =
      (wavelength >= high_wavelength).logical_and(wavelength <= low_wavelength);
  return at::where(between, blended, stretched);
}

void plain_apply_rope_(const at::Tensor& x, const at::Tensor& positions, const RopeTables& tables,
                       bool inverse) {
  const int64_t half = x.size(-1) / 2;
  const at::ScalarType wide = tables.cos.scalar_type();
  const at::Tensor cosine = tables.cos.index_select(0, positions).unsqueeze(1);
  at::Tensor sine = tables.sin.index_select(0, positions).unsqueeze(1);
  if (inverse) sine = -sine;
  const at::Tensor a = x.narrow(-1, 0, half).to(wide);
  const at::Tensor b = x.narrow(-1, half, half).to(wide);
  x.copy_(at::cat({a * cosine - b * sine, b * cosine + a * sine}, -1));
}

}  // namespace

RopeTables rope_tables(int64_t positions, int64_t head_dim, double theta,
                       const std::optional<RopeScaling>& scaling, at::ScalarType compute_dtype,
                       c10::Device device) {
  // On the CPU whatever the device, so that every device turns by the same angles.
  const auto options =
      at::TensorOptions().dtype(compute_dtype == at::kDouble ? at::kDouble : at::kFloat);
  const at::Tensor exponent = at::arange(0, head_dim, 2, options) / head_dim;
  at::Tensor inv_freq = 1 / at::pow(at::Scalar(theta), exponent);
  if (scaling) inv_freq = scaled(inv_freq, *scaling);
  const at::Tensor angle = at::arange(positions, options).unsqueeze(1) * inv_freq;
  return {angle.cos().to(device), angle.sin().to(device)};
}

void apply_rope_(const at::Tensor& x, const at::Tensor& positions, const RopeTables& tables,
                 bool inverse, Body body) {
  if (!runs_fused(body, {x})) return plain_apply_rope_(x, positions, tables, inverse);
  const int64_t half = x.size(2) / 2;
  check(
      x.dim() == 3 && x.stride(2) == 1 && x.size(2) == 2 * half && tables.cos.size(1) == half,
      "RoPE takes [tokens, heads, head_dim] with a contiguous last dim and tables of its head_dim");
  check(tables.cos.scalar_type() == statistic_dtype(x) && tables.cos.is_contiguous() &&
            tables.sin.scalar_type() == statistic_dtype(x) && tables.sin.is_contiguous(),
        "RoPE's tables are contiguous and fp32 (fp64 where x is)");
  check(positions.scalar_type() == at::kLong && positions.is_contiguous() &&
            positions.numel() == x.size(0),
        "RoPE takes one int64 position per token");
  const int64_t* position = positions.data_ptr<int64_t>();
  const int64_t length = tables.cos.size(0);
  const auto in_tables = [&](int64_t p) { return p >= 0 && p < length; };
  check(!x.is_cpu() || std::all_of(position, position + x.size(0), in_tables),
        "every position lies within RoPE's tables");
  with_storage_type(x, [&](auto storage) {
    using S = decltype(storage);
    const fused::RopeArguments<S> arguments = {.x = data_as<S>(x),
                                               .token_stride = x.stride(0),
                                               .head_stride = x.stride(1),
                                               .heads = x.size(1),
                                               .half = half,
                                               .positions = position,
                                               .cos = data_as<fused::Statistic<S>>(tables.cos),
                                               .sin = data_as<fused::Statistic<S>>(tables.sin),
                                               .inverse = inverse};
    const auto kernel = typed_kernels<S>(x).rope;
    for_rows(x, x.size(0), rows_per_task(x.size(1) * x.size(2)),
             [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
  });
}

}  // namespace picotron
