// See matmul_floor.h.
#include "kernels/matmul_floor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string_view>

#include "core/error.h"
#include "kernels/matmul_onednn.h"

namespace picotron {
namespace {

using Clock = std::chrono::steady_clock;

struct Form {
  const char* name;
  std::function<void()> run;
};

// The forms of c[m,n] = a[m,k] b[k,n], on numbers that do not matter.
std::vector<Form> forms_of(const ProductTime& p, at::ScalarType dtype) {
  const std::string_view what = p.what;
  const at::TensorOptions options(dtype);
  const auto ones = [&](int64_t rows, int64_t columns) {
    return at::ones({rows, columns}, options);
  };
  std::vector<Form> forms;
  if (what == "linear_weight_gradient") {
    const at::Tensor dy = ones(p.k, p.m), x = ones(p.k, p.n);
    const at::Tensor dw = at::zeros({p.m, p.n}, dtype == at::kDouble ? at::kDouble : at::kFloat);
    if (onednn_computes(dy))
      forms.push_back({"oneDNN", [=] { onednn_product(dw, dy.t(), x, /*accumulate=*/true); }});
    forms.push_back({"ATen", [=] { dw.add_(at::mm(dy.t(), x)); }});
    return forms;
  }
  check(what == "linear_forward" || what == "linear_input_gradient", "a product has a known kind");
  const bool forward = what == "linear_forward";
  const at::Tensor x = ones(p.m, p.k), c = ones(p.m, p.n);
  const at::Tensor w = forward ? ones(p.n, p.k) : ones(p.k, p.n);
  const at::Tensor b = forward ? w.t() : w;
  if (onednn_computes(x)) {
    forms.push_back({"oneDNN", [=] { onednn_product(c, x, b, /*accumulate=*/false); }});
    forms.push_back({"oneDNN, weight laid out before", onednn_packed_product(c, x, b)});
  }
  if (forward) {
    forms.push_back({"ATen", [=] { at::linear(x, w); }});
  } else {
    forms.push_back({"ATen", [=] { at::mm(x, w); }});
  }
  return forms;
}

double median_seconds(const std::function<void()>& run) {
  constexpr double kEnough = 0.04;
  run();  // the libraries generate their kernels
  std::vector<double> times;
  for (double spent = 0; times.size() < 3 || (spent < kEnough && times.size() < 50);) {
    const auto begin = Clock::now();
    run();
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    spent += times.back();
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

void measure(ProductTime& product, at::ScalarType dtype) {
  for (const Form& form : forms_of(product, dtype)) {
    const double seconds = median_seconds(form.run);
    if (product.seconds == 0 || seconds < product.seconds) {
      product.seconds = seconds;
      product.form = form.name;
    }
  }
}

}  // namespace

std::vector<ProductTime> measure_products(const std::vector<record::Entry>& entries,
                                          c10::ScalarType dtype) {
  std::vector<ProductTime> products;
  for (const record::Entry& entry : entries) {
    if (entry.kind != record::Kind::product) continue;
    const auto [m, n, k, none] = entry.shape;
    const auto same = [&, what = std::string_view(entry.what), m = m, n = n, k = k](const auto& p) {
      return what == p.what && p.m == m && p.n == n && p.k == k;
    };
    auto found = std::find_if(products.begin(), products.end(), same);
    if (found == products.end())
      found = products.insert(found, {.what = entry.what, .m = m, .n = n, .k = k});
    ++found->count;
    found->seconds_in_step += 1e-9 * static_cast<double>(entry.end_ns - entry.begin_ns);
  }
  for (ProductTime& product : products) measure(product, dtype);
  return products;
}

double total_seconds(const std::vector<ProductTime>& products) {
  double total = 0;
  for (const ProductTime& product : products)
    total += static_cast<double>(product.count) * product.seconds;
  return total;
}

}  // namespace picotron
