// Two tables, and tensors over mapped bytes.
#include "checkpoint/stored_types.h"

#include <ATen/ATen.h>

#include <cstring>

#include "core/error.h"

namespace picotron {

std::optional<at::ScalarType> scalar_type(StoredType type) {
  switch (type) {
    case StoredType::F64:
      return at::kDouble;
    case StoredType::F32:
      return at::kFloat;
    case StoredType::F16:
      return at::kHalf;
    case StoredType::BF16:
      return at::kBFloat16;
    default:
      return std::nullopt;
  }
}

StoredType stored_type(at::ScalarType type) {
  if (type == at::kDouble) return StoredType::F64;
  if (type == at::kFloat) return StoredType::F32;
  check(type == at::kBFloat16, "a dtype that we compute with");
  return StoredType::BF16;
}

StoredType stored_type(DType dtype) {
  if (dtype == DType::float64) return StoredType::F64;
  return dtype == DType::float32 ? StoredType::F32 : StoredType::BF16;
}

at::Tensor view_of(const StoredTensor& stored) {
  const at::ScalarType type = *scalar_type(stored.type);
  const auto address = reinterpret_cast<uintptr_t>(stored.bytes.data());
  if (address % c10::elementSize(type) == 0) {
    return at::from_blob(const_cast<std::byte*>(stored.bytes.data()), stored.shape, type);
  }
  at::Tensor copy = at::empty(stored.shape, type);
  std::memcpy(copy.data_ptr(), stored.bytes.data(), stored.bytes.size());
  return copy;
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  check(tensor.is_contiguous() && tensor.is_cpu(), "bytes lie in one piece, on the CPU");
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

}  // namespace picotron
