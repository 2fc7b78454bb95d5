// The dtypes of files and those of tensors, one for the other.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "checkpoint/safetensors.h"
#include "core/config.h"

namespace picotron {

// Those that we compute with; nothing for the others.
std::optional<at::ScalarType> scalar_type(StoredType type);
StoredType stored_type(at::ScalarType type);
StoredType stored_type(DType dtype);

// A tensor over the mapped bytes, valid as long as they are mapped. The format allows data that is
// not aligned to its elements; such a tensor is copied.
at::Tensor view_of(const StoredTensor& stored);

// A tensor's bytes. It is contiguous and on the CPU.
std::span<const std::byte> bytes_of(const at::Tensor& tensor);

}  // namespace picotron
