// oneDNN's product for other files of kernels/: matmul_floor.cpp, and attention_onednn.cpp, whose
// products are part of one entry in the record. Everybody else uses matmul.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

namespace picotron {

// Whether products of x are oneDNN's: bf16 and fp32 on a CPU that has the instructions.
bool onednn_computes(const at::Tensor& x);
// Whether this CPU has AMX: bf16 products in tiles, some eight times as fast as fp32's.
bool onednn_has_amx();

// A bf16 or fp32 matrix without gaps, for many small products: a view that costs nothing.
struct PlainMatrix {
  void* data;
  int64_t rows, columns;
  at::ScalarType dtype;
  bool columns_contiguous = false;  // a transposed matrix

  PlainMatrix t() const { return {data, columns, rows, dtype, !columns_contiguous}; }
};

// c = a b, or c += a b. a [m, k] and b [k, n] of one dtype, transposed where their strides say so;
// c [m, n] contiguous, of that dtype or fp32.
void onednn_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool accumulate);
void onednn_product(const PlainMatrix& c, const PlainMatrix& a, const PlainMatrix& b,
                    bool accumulate);

// c = a b with b copied, here and now, into the layout that oneDNN likes best. The returned
// function multiplies; it holds all it needs.
std::function<void()> onednn_packed_product(const at::Tensor& c, const at::Tensor& a,
                                            const at::Tensor& b);

}  // namespace picotron
