// Places in the flat buffers are given out in the order of declaration; allocate() makes the views.
#include "parallel/parameter.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "dist/mesh.h"

namespace picotron {
namespace {

// Every Weight starts at a multiple of 64 elements: a cache line for bf16, four for fp32.
constexpr int64_t kAlignment = 64;

std::vector<int64_t> rows_of(const Weight& weight, const std::vector<Parameter>& list) {
  std::vector<int64_t> shape = list[weight.first].local_shape();
  for (size_t i = 1; i < weight.count; ++i) shape[0] += list[weight.first + i].local_shape()[0];
  return shape;
}

}  // namespace

std::vector<int64_t> Parameter::local_shape() const {
  std::vector<int64_t> shape = full_shape;
  shape[static_cast<size_t>(shard.dim)] = shard.end - shard.begin;
  return shape;
}

int64_t Parameter::numel() const {
  int64_t product = 1;
  for (const int64_t size : local_shape()) product *= size;
  return product;
}

bool Weight::is_borrowed() const {
  return tied != nullptr && tied->rank != 0;
}

Weight* Parameters::declare(std::vector<Parameter> side_by_side) {
  check(!flat_.defined(), "parameters are declared before they are allocated");
  Weight weight{.index = weights_.size(),
                .first = list_.size(),
                .count = side_by_side.size(),
                .offset = flat_numel_};
  const size_t dims = side_by_side.at(0).full_shape.size();
  for (Parameter& parameter : side_by_side) {
    check(parameter.full_shape.size() == dims, "neighbours have equally many dims");
    parameter.offset = weight.offset + weight.numel;
    weight.numel += parameter.numel();
    list_.push_back(std::move(parameter));
  }
  flat_numel_ = (weight.offset + weight.numel + kAlignment - 1) / kAlignment * kAlignment;
  weight.end = flat_numel_;
  return &weights_.emplace_back(weight);
}

void Parameters::allocate(const at::TensorOptions& options) {
  flat_ = at::zeros({flat_numel_}, options);
  for (Weight& weight : weights_) {
    weight.value = flat_.narrow(0, weight.offset, weight.numel).view(rows_of(weight, list_));
  }
  for (Parameter& parameter : list_) {
    parameter.value =
        flat_.narrow(0, parameter.offset, parameter.numel()).view(parameter.local_shape());
  }
}

void Parameters::set_gradients(const at::Tensor& flat) {
  check(flat.numel() == flat_numel_, "the gradient buffer has the layout of the values");
  for (Weight& weight : weights_) {
    weight.gradient = flat.narrow(0, weight.offset, weight.numel).view(weight.value.sizes());
  }
  for (Parameter& parameter : list_) {
    parameter.gradient =
        flat.narrow(0, parameter.offset, parameter.numel()).view(parameter.value.sizes());
  }
}

}  // namespace picotron
