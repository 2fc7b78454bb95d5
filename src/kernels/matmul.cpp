// See matmul.h.
#include "kernels/matmul.h"

#include <ATen/ATen.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "core/error.h"
#include "core/record.h"
#include "kernels/matmul_amx.h"
#include "kernels/matmul_onednn.h"

namespace picotron {
namespace {

// LibTorch ships newer oneDNN headers without exporting the functions; these must be the ones of
// the library.
static_assert(DNNL_VERSION_MAJOR == 2 || DNNL_VERSION_MAJOR == 3, "oneDNN 2 or 3");

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine = [] {
    const dnnl_version_t* library = dnnl_version();
    if (library->major != DNNL_VERSION_MAJOR || library->minor != DNNL_VERSION_MINOR) {
      throw run_error(
          "compiled with oneDNN {}.{} but running with {}.{}; rebuild, or fix the library path",
          DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, library->major, library->minor);
    }
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return engine;
}

at::Tensor without_gaps(const at::Tensor& x) {
  return x.is_contiguous() || x.t().is_contiguous() ? x : x.contiguous();
}

// A dimension of size 1 may have any stride; oneDNN's kernels want the one that leaves no gap.
PlainMatrix plain(const at::Tensor& matrix) {
  return {matrix.data_ptr(), matrix.size(0), matrix.size(1), matrix.scalar_type(),
          !matrix.is_contiguous()};
}

// A transposed matrix is one with other strides.
dnnl::memory::desc describe(const PlainMatrix& matrix) {
  const auto type =
      matrix.dtype == at::kBFloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  using Dims = dnnl::memory::dims;
  return {{matrix.rows, matrix.columns},
          type,
          matrix.columns_contiguous ? Dims{1, matrix.rows} : Dims{matrix.columns, 1}};
}

dnnl::matmul::primitive_desc describe_product(const dnnl::memory::desc& a,
                                              const dnnl::memory::desc& b,
                                              const dnnl::memory::desc& c,
                                              const dnnl::primitive_attr& attributes = {}) {
#if DNNL_VERSION_MAJOR == 2
  return {{a, b, c}, attributes, cpu_engine()};
#else
  return {cpu_engine(), a, b, c, attributes};
#endif
}

void execute(const dnnl::primitive& primitive, const std::unordered_map<int, dnnl::memory>& with) {
  dnnl::stream stream(cpu_engine());
  primitive.execute(stream, with);
  stream.wait();
}

dnnl::memory memory_of(const PlainMatrix& matrix) {
  return {describe(matrix), cpu_engine(), matrix.data};
}

// bf16 on a CPU that has no instructions for it: in fp32, which is exact but for the order of sums.
bool must_widen(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kBFloat16;
}

record::Entry entry(const char* what, int64_t m, int64_t n, int64_t k) {
  return {
      .kind = record::Kind::product, .what = what, .shape = {m, n, k}, .flops = 2.0 * m * n * k};
}

bool onednn_has(dnnl_cpu_isa_t needed) {
  static const auto isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa());
  return (isa & unsigned{needed}) == unsigned{needed};
}

void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (amx_computes(a, b))
    amx_product(c, a, b, accumulate);
  else
    onednn_product(c, a, b, accumulate);
}

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  if (!onednn_computes(a)) {
    if (!must_widen(a)) return at::mm(a, b);
    return at::mm(a.to(at::kFloat), b.to(at::kFloat)).to(a.scalar_type());
  }
  at::Tensor c = at::empty({a.size(0), b.size(1)}, a.options());
  multiply(c, a, b, /*accumulate=*/false);
  return c;
}

}  // namespace

// oneDNN is used where its AVX-512 kernels are. Its older ones ("gemm:jit": for other CPUs, and for
// matrices with gaps between their rows) fail in a process that also holds LibTorch, whose own copy
// of oneDNN sets *its* kernels up in their place: both name the function of one std::call_once
// alike.
bool onednn_computes(const at::Tensor& x) {
  if (!x.is_cpu()) return false;
  if (x.scalar_type() == at::kFloat) return onednn_has(dnnl_cpu_isa_avx512_core);
  return x.scalar_type() == at::kBFloat16 && onednn_has(dnnl_cpu_isa_avx512_core_bf16);
}

bool onednn_has_amx() {
  return onednn_has(dnnl_cpu_isa_avx512_core_amx);
}

void onednn_product(const at::Tensor& c, const at::Tensor& a_view, const at::Tensor& b_view,
                    bool accumulate) {
  const at::Tensor a = without_gaps(a_view);
  const at::Tensor b = without_gaps(b_view);
  onednn_product(plain(c), plain(a), plain(b), accumulate);
}

// oneDNN keeps a cache of the kernels it has generated.
void onednn_product(const PlainMatrix& c, const PlainMatrix& a, const PlainMatrix& b,
                    bool accumulate) {
  dnnl::primitive_attr attributes;
  if (accumulate) {
    dnnl::post_ops post;
    post.append_sum(1.0F);
    attributes.set_post_ops(post);
  }
  execute(dnnl::matmul(describe_product(describe(a), describe(b), describe(c), attributes)),
          {{DNNL_ARG_SRC, memory_of(a)},
           {DNNL_ARG_WEIGHTS, memory_of(b)},
           {DNNL_ARG_DST, memory_of(c)}});
}

std::function<void()> onednn_packed_product(const at::Tensor& c, const at::Tensor& a,
                                            const at::Tensor& b) {
  const dnnl::memory::desc free_layout({b.size(0), b.size(1)}, describe(plain(b)).data_type(),
                                       dnnl::memory::format_tag::any);
  const auto product = describe_product(describe(plain(a)), free_layout, describe(plain(c)));
  const dnnl::memory packed(product.weights_desc(), cpu_engine());
  const dnnl::memory given = memory_of(plain(b));
  execute(dnnl::reorder(given, packed), {{DNNL_ARG_FROM, given}, {DNNL_ARG_TO, packed}});
  return [c, a, packed, primitive = dnnl::matmul(product)] {
    execute(primitive, {{DNNL_ARG_SRC, memory_of(plain(a))},
                        {DNNL_ARG_WEIGHTS, packed},
                        {DNNL_ARG_DST, memory_of(plain(c))}});
  };
}

at::Tensor linear_forward(const at::Tensor& x, const at::Tensor& w, At at) {
  check(x.size(1) == w.size(1) && x.scalar_type() == w.scalar_type(),
        "linear: x [m, k], w [n, k], one dtype", at);
  const record::Scope scope(entry("linear_forward", x.size(0), w.size(0), x.size(1)), at);
  return product(x, w.t());
}

at::Tensor linear_input_gradient(const at::Tensor& dy, const at::Tensor& w, At at) {
  check(dy.size(1) == w.size(0) && dy.scalar_type() == w.scalar_type(),
        "input gradient: dy [m, n], w [n, k]", at);
  const record::Scope scope(entry("linear_input_gradient", dy.size(0), w.size(1), dy.size(1)), at);
  return product(dy, w);
}

void linear_weight_gradient(const at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x,
                            bool accumulate, At at) {
  check(dy.size(0) == x.size(0) && dw.size(0) == dy.size(1) && dw.size(1) == x.size(1) &&
            dw.is_contiguous() && dy.scalar_type() == x.scalar_type(),
        "weight gradient: dw [n, k], dy [m, n], x [m, k] of dy's dtype", at);
  const record::Scope scope(entry("linear_weight_gradient", dy.size(1), x.size(1), dy.size(0)), at);
  if (onednn_computes(dy)) {
    multiply(dw, dy.t(), x, accumulate);
    return;
  }
  auto& sum = const_cast<at::Tensor&>(dw);
  const int beta = accumulate ? 1 : 0;  // 0: what is there is not even read
  if (must_widen(dy)) {
    at::addmm_out(sum, dw, dy.t().to(at::kFloat), x.to(at::kFloat), beta);
  } else if (dy.scalar_type() == dw.scalar_type()) {
    at::addmm_out(sum, dw, dy.t(), x, beta);
  } else {
    at::addmm_out(sum, dw, dy.t(), x, dw.scalar_type(), beta);  // CUDA: bf16 in, fp32 out
  }
}

double measure_product_rate(at::ScalarType dtype) {
  constexpr int64_t kSize = 1024;
  const at::Tensor a = at::ones({kSize, kSize}, at::TensorOptions(dtype));
  const at::Tensor b = at::ones({kSize, kSize}, at::TensorOptions(dtype));
  double best = 1e30;
  double spent = 0;
  for (int i = 0; i < 20 && spent < 0.2; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    product(a, b.t());
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::min(best, seconds);
    spent += seconds;
  }
  return 2.0 * kSize * kSize * kSize / best;
}

bool cpu_has_fast_bfloat16() {
  return __builtin_cpu_supports("avx512bf16") != 0;  // every CPU with AMX has it too
}

}  // namespace picotron
