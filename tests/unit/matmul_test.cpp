// Every product of kernels/matmul against the same product in float64: odd and tiny shapes,
// operands that are views, sums over several microbatches; and the same bits whatever the number of
// threads.
#include "kernels/matmul.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/record.h"
#include "gpu.h"
#include "kernels/matmul_amx.h"

namespace picotron {
namespace {

struct Shape {
  int64_t m, n, k;
};
constexpr Shape kShapes[] = {{1, 1, 1},    {1, 7, 5},     {3, 1, 9},     {8, 16, 1},
                             {5, 72, 509}, {17, 509, 72}, {64, 64, 64},  {33, 31, 29},
                             {128, 96, 1}, {2, 576, 192}, {65, 127, 257}};

double tolerance(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 1e-5 : 2e-2;
}

at::Tensor random(int64_t rows, int64_t columns, uint64_t seed, const at::TensorOptions& options) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU).clone();
  generator.set_current_seed(seed);
  return at::randn({rows, columns}, generator, at::TensorOptions(at::kDouble)).to(options);
}

// max|a − b| against Σ|x||w|, the size of the sum's terms: a product may cancel to nearly nothing.
void expect_product(const at::Tensor& got, const at::Tensor& a, const at::Tensor& b,
                    double tolerance, double times = 1) {
  const auto wide = [](const at::Tensor& x) { return x.to(at::kCPU, at::kDouble); };
  const at::Tensor want = at::mm(wide(a), wide(b)) * times;
  ASSERT_EQ(got.sizes(), want.sizes());
  const double size = at::mm(wide(a).abs(), wide(b).abs()).max().item<double>() * times;
  EXPECT_LT((wide(got) - want).abs().max().item<double>() / size, tolerance);
}

std::string name_of(const Shape& s, at::ScalarType dtype) {
  return fmt::format("m {} n {} k {} {}", s.m, s.n, s.k, at::toString(dtype));
}

// A matrix whose rows lie in a wider one, as the parts of a fused product do.
at::Tensor as_part(const at::Tensor& x) {
  const at::Tensor wide = at::zeros({x.size(0), x.size(1) + 13}, x.options());
  wide.slice(1, 6, 6 + x.size(1)).copy_(x);
  return wide.slice(1, 6, 6 + x.size(1));
}
// A matrix whose columns are contiguous.
at::Tensor as_transpose(const at::Tensor& x) {
  return x.t().contiguous().t();
}

// One in which neither rows nor columns are.
at::Tensor with_gaps(const at::Tensor& x) {
  const at::Tensor wide = at::zeros({x.size(0), x.size(1), 2}, x.options());
  wide.select(2, 0).copy_(x);
  return wide.select(2, 0);
}

void expect_all_products(const Shape& s, const at::TensorOptions& options,
                         const std::function<at::Tensor(const at::Tensor&)>& view) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  SCOPED_TRACE(name_of(s, dtype));
  const at::Tensor x = view(random(s.m, s.k, 1, options));
  const at::Tensor w = view(random(s.n, s.k, 2, options));
  const at::Tensor dy = view(random(s.m, s.n, 3, options));
  const at::Tensor y = linear_forward(x, w);
  EXPECT_EQ(y.scalar_type(), dtype);
  expect_product(y, x, w.t(), tolerance(dtype));
  expect_product(linear_input_gradient(dy, w), dy, w, tolerance(dtype));

  constexpr int kMicrobatches = 3;
  const at::ScalarType sums = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor dw = at::zeros({s.n, s.k}, options.dtype(sums));
  for (int i = 0; i < kMicrobatches; ++i) linear_weight_gradient(dw, dy, x);
  expect_product(dw, dy.t(), x, tolerance(sums), kMicrobatches);
  dw.fill_(std::numeric_limits<double>::quiet_NaN());
  linear_weight_gradient(dw, dy, x, /*accumulate=*/false);
  expect_product(dw, dy.t(), x, tolerance(sums));
}

void expect_all_products_on(c10::Device device, std::vector<at::ScalarType> dtypes) {
  for (const at::ScalarType dtype : dtypes) {
    for (const Shape& shape : kShapes) {
      const at::TensorOptions options = at::TensorOptions(dtype).device(device);
      expect_all_products(shape, options, [](const at::Tensor& x) { return x; });
      expect_all_products(shape, options, as_part);
      expect_all_products(shape, options, as_transpose);
    }
  }
}

TEST(Matmul, MatchesFloat64) {
  expect_all_products_on(at::kCPU, {at::kDouble, at::kFloat, at::kBFloat16});
}

TEST(Matmul, MatchesFloat64OnAGpu) {
  const auto device = gpu_or_null();
  if (device == nullptr) GTEST_SKIP() << "not run: no GPU here, or no CUDA plug-in";
  expect_all_products_on(device->torch(), {at::kFloat, at::kBFloat16});
}

// oneDNN can be told to behave as on an older CPU, before its first product: in another process.
TEST(Matmul, MatchesFloat64OnOlderCpus) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  for (const char* isa : {"AVX512_CORE_BF16", "AVX512_CORE", "AVX2"}) {
    const std::string command = fmt::format(
        "DNNL_MAX_CPU_ISA={} '{}' --gtest_filter=Matmul.MatchesFloat64 > /dev/null", isa, program);
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
}

at::Tensor integers(int64_t rows, int64_t columns, uint64_t seed) {
  return random(rows, columns, seed, at::kDouble).mul(1.5).round().clamp(-4, 4).to(at::kBFloat16);
}

// Sums of small integers are exact in fp32, so that one term too few or twice is seen. The shapes
// are cut into several blocks along each dim, or into one; end in the middle of a tile, or with it;
// and are written past the caches (kernels/amx/product.h: from 2 MB on, rows of whole lines), or
// not, in bf16 and in fp32, the last columns a whole panel or half of one.
TEST(Matmul, IsExactOnIntegersOnAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  for (const Shape& s : {Shape{1050, 1400, 1250}, Shape{1024, 1536, 64}, Shape{33, 2000, 32},
                         Shape{96, 40, 3000}, Shape{2048, 576, 576}, Shape{1040, 1050, 1040},
                         Shape{64, 1050, 1040}, Shape{1050, 1040, 64}, Shape{32, 32, 32}}) {
    SCOPED_TRACE(name_of(s, at::kBFloat16));
    for (const auto& view : std::vector<std::function<at::Tensor(const at::Tensor&)>>{
             [](const at::Tensor& x) { return x; }, as_part, as_transpose,
             [](const at::Tensor& x) { return as_part(x.t()).t(); }, with_gaps}) {
      const at::Tensor x = view(integers(s.m, s.k, 1)), w = view(integers(s.n, s.k, 2));
      const at::Tensor dy = view(integers(s.m, s.n, 3));
      const at::Tensor y = at::mm(wide(x), wide(w).t()), dx = at::mm(wide(dy), wide(w));
      const at::Tensor dw = at::mm(wide(dy).t(), wide(x));
      for (const int threads : {1, 3, 40}) {
        at::set_num_threads(threads);
        EXPECT_TRUE(at::equal(linear_forward(x, w), y.to(at::kBFloat16)));
        EXPECT_TRUE(at::equal(linear_input_gradient(dy, w), dx.to(at::kBFloat16)));
        const at::Tensor sum = at::full({s.n, s.k}, std::numeric_limits<float>::quiet_NaN());
        linear_weight_gradient(sum, dy, x, /*accumulate=*/false);
        linear_weight_gradient(sum, dy, x);
        EXPECT_TRUE(at::equal(sum, (2 * dw).to(at::kFloat)));
      }
    }
  }
  at::set_num_threads(before);
}

// An AMX that nobody uses would be seen in no result.
TEST(Matmul, UsesAmxWhereTheCpuHasIt) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  const std::string flags((std::istreambuf_iterator<char>(cpuinfo)), {});
  const auto has = [&](const char* flag) { return flags.find(flag) != std::string::npos; };
  EXPECT_EQ(has_amx(), has(" amx_bf16") && has(" amx_tile"));
  const auto matrix = [](int64_t rows, int64_t columns, at::ScalarType dtype) {
    return at::empty({rows, columns}, at::TensorOptions(dtype));
  };
  const at::Tensor a = matrix(64, 64, at::kBFloat16);
  EXPECT_EQ(amx_computes(a, a), has_amx());
  EXPECT_FALSE(amx_computes(a, matrix(64, 31, at::kBFloat16)));
  EXPECT_FALSE(amx_computes(a, matrix(64, 64, at::kFloat)));
  EXPECT_FALSE(amx_computes(matrix(64, 64, at::kFloat), a));
}

// bf16 gradients are summed in fp32: a bf16 sum of a thousand equal terms stops growing at 256.
TEST(Matmul, AccumulatesInFloat32) {
  const at::Tensor one = at::ones({1, 1}, at::TensorOptions(at::kBFloat16));
  const at::Tensor dw = at::zeros({1, 1});
  for (int i = 0; i < 1000; ++i) linear_weight_gradient(dw, one, one);
  EXPECT_EQ(dw.item<float>(), 1000.0F);
}

TEST(Matmul, GivesTheSameBitsOnOneThreadAndTwo) {
  if (!cpu_has_fast_bfloat16())
    GTEST_SKIP()
        << "without AVX512-BF16 or AMX, products are ATen's, and MKL splits sums by threads";
  const int before = at::get_num_threads();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& s : {Shape{129, 509, 257}, Shape{512, 576, 192}, Shape{7, 1536, 576},
                           Shape{700, 1100, 1300}}) {
      SCOPED_TRACE(name_of(s, dtype));
      const at::TensorOptions options(dtype);
      const at::Tensor x = random(s.m, s.k, 1, options);
      const at::Tensor w = random(s.n, s.k, 2, options);
      const at::Tensor dy = random(s.m, s.n, 3, options);
      std::vector<at::Tensor> results[2];
      for (const int threads : {1, 2}) {
        at::set_num_threads(threads);
        const at::Tensor dw = at::ones({s.n, s.k});
        linear_weight_gradient(dw, dy, x);
        results[threads - 1] = {linear_forward(x, w), linear_input_gradient(dy, w), dw};
      }
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(at::equal(results[0][i], results[1][i])) << "product " << i;
      }
    }
  }
  at::set_num_threads(before);
}

TEST(Matmul, RefusesShapesThatDoNotFit) {
  const at::Tensor x = at::zeros({3, 4});
  EXPECT_THROW(linear_forward(x, at::zeros({5, 3})), BrokenInvariant);
  EXPECT_THROW(linear_forward(x, at::zeros({5, 4}, at::TensorOptions(at::kBFloat16))),
               BrokenInvariant);
  EXPECT_THROW(linear_input_gradient(x, at::zeros({3, 4})), BrokenInvariant);
  EXPECT_THROW(linear_weight_gradient(at::zeros({4, 4}), at::zeros({3, 5}), x), BrokenInvariant);
  EXPECT_THROW(linear_weight_gradient(at::zeros({4, 5}).t(), at::zeros({3, 5}), x),
               BrokenInvariant);
  const at::Tensor bf16 = at::zeros({64, 64}, at::TensorOptions(at::kBFloat16));
  EXPECT_THROW(linear_weight_gradient(at::zeros({64, 64}), bf16, at::zeros({64, 64})),
               BrokenInvariant);
  if (has_amx()) {
    EXPECT_THROW(linear_weight_gradient(bf16, bf16, bf16), BrokenInvariant);
  }
}

TEST(Matmul, LeavesItsOperationsInTheRecord) {
  record::Recorder recorder;
  const record::Attach attach(&recorder);
  linear_forward(at::zeros({3, 4}), at::zeros({5, 4}));
  EXPECT_EQ(recorder.product_flops(), 2.0 * 3 * 4 * 5);
  EXPECT_STREQ(recorder.newest().what, "linear_forward");
  EXPECT_NE(recorder.newest().end_ns, 0);
}

TEST(Matmul, MeasuresARate) {
  const double rate = measure_product_rate(at::kFloat);
  EXPECT_GT(rate, 1e8);
  EXPECT_LT(rate, 1e15);
}

}  // namespace
}  // namespace picotron
