// Attention against its definition, softmax(q kᵀ scale + mask) v with every matrix written out, and
// its backward against LibTorch's autograd of that definition. The bodies of a GPU are held twice:
// here on a CPU, by plain kernels under the names of ATen's CUDA kernels that refuse what those
// refuse, and on a GPU where there is one.
#include "kernels/attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "core/error.h"
#include "gpu.h"
#include "kernels/attention_amx.h"
#include "kernels/attention_cpu.h"
#include "kernels/attention_cuda.h"
#include "kernels/attention_onednn.h"
#include "kernels/vjp.h"

namespace picotron {
namespace {

// max|a − b| / max|b|
double distance(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  const at::Tensor x = a.to(at::kCPU, at::kDouble);
  const at::Tensor y = b.to(at::kCPU, at::kDouble);
  return (x - y).abs().max().item<double>() / y.abs().max().item<double>();
}

double tolerance(at::ScalarType dtype) {
  return dtype == at::kDouble ? 1e-10 : dtype == at::kFloat ? 1e-5 : 2e-2;
}

struct Case {
  int64_t batch = 2, heads = 4, key_value_heads = 4, seq = 13, key_seq = 13, head_dim = 8;
  bool causal = true;
};
const Case kCases[] = {
    {},
    {.key_value_heads = 2},
    {.key_value_heads = 1},
    {.causal = false},
    {.key_value_heads = 2, .seq = 5, .key_seq = 19, .causal = false},
    {.batch = 1, .heads = 3, .key_value_heads = 1, .seq = 1, .key_seq = 1, .head_dim = 7},
    {.key_value_heads = 2, .seq = 1, .key_seq = 130, .head_dim = 16, .causal = false},
    {.batch = 3, .heads = 6, .key_value_heads = 3, .seq = 33, .key_seq = 33, .head_dim = 18},
    {.batch = 1, .heads = 2, .key_value_heads = 2, .seq = 129, .key_seq = 129, .head_dim = 64},
    {.batch = 1, .heads = 9, .key_value_heads = 3, .seq = 70, .key_seq = 70, .head_dim = 24},
    // Several blocks of queries and of keys, the last ones short.
    {.batch = 1, .heads = 4, .key_value_heads = 2, .seq = 161, .key_seq = 161, .head_dim = 80},
    {.batch = 1, .heads = 3, .key_value_heads = 1, .seq = 700, .key_seq = 700},
    {.batch = 1, .heads = 2, .key_value_heads = 2, .seq = 300, .key_seq = 1100, .causal = false}};

std::string name_of(const Case& c) {
  return fmt::format("b{} h{} kv{} s{} k{} d{} causal {}", c.batch, c.heads, c.key_value_heads,
                     c.seq, c.key_seq, c.head_dim, c.causal);
}

struct Inputs {
  at::Tensor q, k, v, dout;
  double scale;
};
at::Tensor random(at::IntArrayRef sizes, uint64_t seed) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU).clone();
  generator.set_current_seed(seed);
  return at::randn(sizes, generator, at::TensorOptions(at::kDouble));
}
Inputs inputs_of(const Case& c, at::ScalarType dtype, c10::Device device = at::kCPU) {
  const at::TensorOptions options = at::TensorOptions(dtype).device(device);
  return {random({c.batch, c.heads, c.seq, c.head_dim}, 1).to(options),
          random({c.batch, c.key_value_heads, c.key_seq, c.head_dim}, 2).to(options),
          random({c.batch, c.key_value_heads, c.key_seq, c.head_dim}, 3).to(options),
          random({c.batch, c.heads, c.seq, c.head_dim}, 4).to(options),
          1.3 / std::sqrt(static_cast<double>(c.head_dim))};
}

at::Tensor scores(const at::Tensor& q, const at::Tensor& k, bool causal, double scale) {
  const at::Tensor keys = k.repeat_interleave(q.size(1) / k.size(1), 1);
  const at::Tensor s = at::matmul(q, keys.transpose(2, 3)) * scale;
  if (!causal) return s;
  const at::Tensor hidden = at::ones({q.size(2), k.size(2)}, q.options().dtype(at::kBool)).triu(1);
  return s.masked_fill(hidden, -std::numeric_limits<double>::infinity());
}
at::Tensor plain_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           bool causal, double scale) {
  const at::Tensor values = v.repeat_interleave(q.size(1) / v.size(1), 1);
  return at::matmul(scores(q, k, causal, scale).softmax(-1), values);
}

// Forward and backward in float64, from the very values that the body under test was given.
struct Judgement {
  at::Tensor out, lse, dq, dk, dv;
};
Judgement judge(const Inputs& in, bool causal) {
  const auto f = [&](const std::vector<at::Tensor>& x) {
    return plain_attention(x[0], x[1], x[2], causal, in.scale);
  };
  const auto wide = [](const at::Tensor& x) { return x.to(at::kCPU, at::kDouble); };
  const VjpResult result = vjp(f, {wide(in.q), wide(in.k), wide(in.v)});
  const auto gradients = result.pullback(wide(in.dout));
  return {result.output, scores(wide(in.q), wide(in.k), causal, in.scale).logsumexp(-1),
          gradients[0], gradients[1], gradients[2]};
}

using Forward = AttentionOutput (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&, bool,
                                    double);
using Backward = AttentionGradients (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                        const at::Tensor&, const AttentionOutput&, bool, double);
struct Bodies {
  Forward forward;
  Backward backward;
};
const Bodies kDispatched = {
    [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal, double scale) {
      return attention(q, k, v, causal, scale);
    },
    [](const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
       const AttentionOutput& saved, bool causal,
       double scale) { return attention_backward(dout, q, k, v, saved, causal, scale); }};
const Bodies kCuda = {attention_cuda, attention_cuda_backward};

void expect_gradients(const AttentionGradients& got, const Judgement& want, double tolerance) {
  if (want.dk.size(2) > 1) {
    EXPECT_LT(distance(got.dq, want.dq), tolerance);
    EXPECT_LT(distance(got.dk, want.dk), tolerance);
  } else {  // one key has probability 1 whatever its score
    EXPECT_LT(got.dq.abs().max().item<double>(), tolerance);
    EXPECT_LT(got.dk.abs().max().item<double>(), tolerance);
  }
  EXPECT_LT(distance(got.dv, want.dv), tolerance);
}

void expect_right(const Bodies& bodies, const Inputs& in, bool causal, double tolerance) {
  const AttentionOutput got = bodies.forward(in.q, in.k, in.v, causal, in.scale);
  const Judgement want = judge(in, causal);
  EXPECT_LT(distance(got.out, want.out), tolerance);
  EXPECT_LT(distance(got.lse, want.lse), tolerance);
  EXPECT_EQ(got.out.scalar_type(), in.q.scalar_type());
  EXPECT_EQ(got.lse.scalar_type(), in.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  EXPECT_TRUE(got.out.transpose(1, 2).is_contiguous());
  expect_gradients(bodies.backward(in.dout, in.q, in.k, in.v, got, causal, in.scale), want,
                   tolerance);
}

// q, k, v as the model has them: views of one fused product [batch, seq, (heads + 2 kv) head_dim],
// and dout as a view of a wider buffer.
Inputs strided(const Case& c, at::ScalarType dtype, c10::Device device = at::kCPU) {
  const Inputs whole = inputs_of(c, dtype, device);
  const auto rows = [](const at::Tensor& x) { return x.transpose(1, 2).flatten(2); };
  const at::Tensor packed = at::cat({rows(whole.q), rows(whole.k), rows(whole.v)}, 2);
  // Four more on each side: rows a vector load may step along, from where it may not start.
  const at::Tensor fused = at::constant_pad_nd(packed, {4, 4}).slice(2, 4, 4 + packed.size(2));
  const auto view = [&](int64_t head, int64_t heads) {
    return fused.slice(2, head * c.head_dim, (head + heads) * c.head_dim)
        .unflatten(2, {heads, c.head_dim})
        .transpose(1, 2);
  };
  const at::Tensor wide = at::cat({whole.dout, whole.dout}, 3);
  return {view(0, c.heads), view(c.heads, c.key_value_heads),
          view(c.heads + c.key_value_heads, c.key_value_heads), wide.slice(3, 0, c.head_dim),
          whole.scale};
}

TEST(Attention, MatchesItsDefinition) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(name_of(c) + " " + at::toString(dtype));
      expect_right(kDispatched, inputs_of(c, dtype), c.causal, tolerance(dtype));
    }
  }
}

// Each instruction set by itself, where another body is the dispatched one, too.
TEST(AttentionCpu, MatchesItsDefinitionInEachInstructionSet) {
  for (const cpu::Kernels* kernels : supported_cpu_kernels()) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
      for (const Case& c : kCases) {
        SCOPED_TRACE(name_of(c) + " " + at::toString(dtype) + " " + kernels->instruction_set);
        const Inputs in = c.seq == c.key_seq ? strided(c, dtype) : inputs_of(c, dtype);
        const Judgement want = judge(in, c.causal);
        const AttentionOutput got = attention_cpu(in.q, in.k, in.v, c.causal, in.scale, *kernels);
        EXPECT_LT(distance(got.out, want.out), tolerance(dtype));
        EXPECT_LT(distance(got.lse, want.lse), tolerance(dtype));
        const AttentionGradients gradients = {at::empty_like(in.q), at::empty_like(in.k),
                                              at::empty_like(in.v)};
        attention_cpu_backward(gradients, in.dout, in.q, in.k, in.v, got, c.causal, in.scale,
                               *kernels);
        expect_gradients(gradients, want, tolerance(dtype));
      }
    }
  }
}

template <class F, class B>
void expect_same_bits_on_any_number_of_threads(at::ScalarType dtype, F forward, B backward) {
  const Case c = {.batch = 3, .heads = 6, .key_value_heads = 3, .seq = 170, .key_seq = 170};
  const Inputs in = inputs_of(c, dtype);
  const int threads = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> runs;
  for (const int count : {1, 2, 5}) {
    at::set_num_threads(count);
    const AttentionOutput out = forward(in.q, in.k, in.v, true, in.scale);
    const AttentionGradients d = {at::empty_like(in.q), at::empty_like(in.k), at::empty_like(in.v)};
    backward(d, in.dout, in.q, in.k, in.v, out, true, in.scale);
    runs.push_back({out.out, out.lse, d.dq, d.dk, d.dv});
  }
  at::set_num_threads(threads);
  for (size_t i = 0; i < runs[0].size(); ++i)
    EXPECT_TRUE(at::equal(runs[0][i], runs[1][i]) && at::equal(runs[0][i], runs[2][i])) << i;
}

TEST(AttentionCpu, HasTheSameBitsOnAnyNumberOfThreads) {
  const auto forward = [](const auto&... in) { return attention_cpu(in...); };
  const auto backward = [](const auto&... in) { attention_cpu_backward(in...); };
  expect_same_bits_on_any_number_of_threads(at::kFloat, forward, backward);
}

bool no_amx() {
  return !attention_amx_computes(at::empty({0}, at::kBFloat16));
}

TEST(AttentionAmx, MatchesItsDefinition) {
  if (no_amx()) GTEST_SKIP() << "not run: no AMX on this CPU";
  const Backward backward = [](const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const AttentionOutput& saved, bool causal,
                               double scale) {
    const AttentionGradients into = {at::empty_like(q), at::empty_like(k), at::empty_like(v)};
    attention_amx_backward(into, dout, q, k, v, saved, causal, scale);
    return into;
  };
  for (const Case& c : kCases) {
    SCOPED_TRACE(name_of(c));
    const Inputs in = c.seq == c.key_seq ? strided(c, at::kBFloat16) : inputs_of(c, at::kBFloat16);
    expect_right({attention_amx, backward}, in, c.causal, tolerance(at::kBFloat16));
    // Sums of probabilities that nothing has rounded.
    EXPECT_LT(
        distance(attention_amx(in.q, in.k, in.v, c.causal, in.scale).lse, judge(in, c.causal).lse),
        1e-5);
  }
}

TEST(AttentionAmx, HasTheSameBitsOnAnyNumberOfThreads) {
  if (no_amx()) GTEST_SKIP() << "not run: no AMX on this CPU";
  expect_same_bits_on_any_number_of_threads(at::kBFloat16, attention_amx, attention_amx_backward);
}

// What is not a number is not hidden: neither by a mask nor as a probability too small to count.
TEST(AttentionAmx, PassesOnWhatIsNotANumber) {
  if (no_amx()) GTEST_SKIP() << "not run: no AMX on this CPU";
  const Inputs in = inputs_of({.seq = 300, .key_seq = 300}, at::kBFloat16);
  in.k[0][0][3].fill_(std::numeric_limits<double>::quiet_NaN());
  const AttentionOutput got = attention_amx(in.q, in.k, in.v, true, in.scale);
  const AttentionGradients into = {at::empty_like(in.q), at::empty_like(in.k),
                                   at::empty_like(in.v)};
  attention_amx_backward(into, in.dout, in.q, in.k, in.v, got, true, in.scale);
  for (const at::Tensor& x : {got.out, got.lse.unsqueeze(3), into.dq}) {
    EXPECT_TRUE(x[0][0].slice(0, 3).isnan().all().item<bool>());
    EXPECT_FALSE(x.slice(1, 1).isnan().any().item<bool>());
  }
  EXPECT_FALSE(got.out[0][0].slice(0, 0, 3).isnan().any().item<bool>());
}

// Written into views of a fused buffer, whose other elements stay as they are; each body also where
// attention_backward() would not choose it.
using BackwardInto = void (*)(const AttentionGradients&, const at::Tensor&, const at::Tensor&,
                              const at::Tensor&, const at::Tensor&, const AttentionOutput&, bool,
                              double);
void expect_right_in_views(BackwardInto backward, at::ScalarType dtype) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(name_of(c) + " " + at::toString(dtype));
    const Inputs in = c.seq == c.key_seq ? strided(c, dtype) : inputs_of(c, dtype);
    const AttentionOutput saved = attention(in.q, in.k, in.v, c.causal, in.scale);
    const auto place = [](const at::Tensor& x) {  // [batch, seq, 1 + heads, head_dim + 3]
      return at::full({x.size(0), x.size(2), x.size(1) + 1, x.size(3) + 3}, 7, x.options());
    };
    const auto view = [](const at::Tensor& whole) {
      return whole.slice(2, 1).slice(3, 0, whole.size(3) - 3).transpose(1, 2);
    };
    const at::Tensor dq = place(in.q), dk = place(in.k), dv = place(in.v);
    backward({view(dq), view(dk), view(dv)}, in.dout, in.q, in.k, in.v, saved, c.causal, in.scale);
    expect_gradients({view(dq), view(dk), view(dv)}, judge(in, c.causal), tolerance(dtype));
    for (const at::Tensor& whole : {dq, dk, dv}) {
      view(whole).fill_(7);
      EXPECT_TRUE((whole == 7).all().item<bool>());
    }
  }
}

TEST(Attention, WritesItsGradientsIntoViews) {
  const BackwardInto dispatched = [](const AttentionGradients& into, const at::Tensor& dout,
                                     const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const AttentionOutput& saved, bool causal, double scale) {
    attention_backward_into(into, dout, q, k, v, saved, causal, scale);
  };
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16})
    expect_right_in_views(dispatched, dtype);
}

TEST(AttentionOneDnn, WritesItsGradientsIntoViews) {
  if (!attention_onednn_computes(at::empty({0}, at::kBFloat16))) {
    GTEST_SKIP() << "not run: no fast bf16 products on this CPU";
  }
  expect_right_in_views(attention_onednn_backward, at::kBFloat16);
}

TEST(AttentionAmx, WritesItsGradientsIntoViews) {
  if (no_amx()) GTEST_SKIP() << "not run: no AMX on this CPU";
  expect_right_in_views(attention_amx_backward, at::kBFloat16);
}

TEST(Attention, ViewsOfAFusedProductGiveTheSameBits) {
  for (const Case& c : kCases) {
    if (c.seq != c.key_seq) continue;
    SCOPED_TRACE(name_of(c));
    const Inputs packed = inputs_of(c, at::kFloat);
    const Inputs views = strided(c, at::kFloat);
    const AttentionOutput a = attention(packed.q, packed.k, packed.v, c.causal, packed.scale);
    const AttentionOutput b = attention(views.q, views.k, views.v, c.causal, views.scale);
    const auto same = [](const at::Tensor& one, const at::Tensor& other) {
      return at::equal(one, other);
    };
    EXPECT_TRUE(same(a.out, b.out) && same(a.lse, b.lse));
    const AttentionGradients da =
        attention_backward(packed.dout, packed.q, packed.k, packed.v, a, c.causal, packed.scale);
    const AttentionGradients db =
        attention_backward(views.dout, views.q, views.k, views.v, b, c.causal, views.scale);
    EXPECT_TRUE(same(da.dq, db.dq) && same(da.dk, db.dk) && same(da.dv, db.dv));
  }
}

// Ring attention: keys in two halves, each on its own. The outputs merged by their lse are the
// whole's; the halves' backward, given the whole's out and lse, sums to the whole's gradient.
void expect_halves_make_the_whole(const Bodies& bodies, const Inputs& in, double tolerance) {
  const Judgement want = judge(in, false);
  const int64_t half = in.k.size(2) / 2;
  const auto part = [&](const at::Tensor& x, bool second) {
    return second ? x.slice(2, half) : x.slice(2, 0, half);
  };
  AttentionOutput parts[2];
  for (const bool second : {false, true}) {
    parts[second] = bodies.forward(in.q, part(in.k, second), part(in.v, second), false, in.scale);
  }
  const at::Tensor lse = at::logaddexp(parts[0].lse, parts[1].lse);
  const auto weighted = [&](const AttentionOutput& x) {
    return x.out * (x.lse - lse).exp().unsqueeze(3).to(x.out.scalar_type());
  };
  const AttentionOutput whole = {weighted(parts[0]) + weighted(parts[1]), lse};
  EXPECT_LT(distance(whole.out, want.out), tolerance);
  EXPECT_LT(distance(whole.lse, want.lse), tolerance);

  at::Tensor dq = at::zeros_like(in.q);
  std::vector<at::Tensor> dk;
  std::vector<at::Tensor> dv;
  for (const bool second : {false, true}) {
    const AttentionGradients gradients = bodies.backward(
        in.dout, in.q, part(in.k, second), part(in.v, second), whole, false, in.scale);
    dq += gradients.dq;
    dk.push_back(gradients.dk);
    dv.push_back(gradients.dv);
  }
  EXPECT_LT(distance(dq, want.dq), tolerance);
  EXPECT_LT(distance(at::cat(dk, 2), want.dk), tolerance);
  EXPECT_LT(distance(at::cat(dv, 2), want.dv), tolerance);
}

TEST(Attention, TakesTheSoftmaxOfALargerWhole) {
  const Case small = {
      .key_value_heads = 2, .seq = 11, .key_seq = 17, .head_dim = 16, .causal = false};
  const Case large = {
      .key_value_heads = 2, .seq = 70, .key_seq = 310, .head_dim = 16, .causal = false};
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const Case& c : {small, large}) {
      SCOPED_TRACE(name_of(c) + " " + at::toString(dtype));
      expect_halves_make_the_whole(kDispatched, inputs_of(c, dtype), tolerance(dtype));
    }
  }
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  const at::Tensor q = at::zeros({1, 4, 3, 8});
  const at::Tensor k = at::zeros({1, 3, 3, 8});
  EXPECT_THROW(attention(q, k, k, true, 1.0), BrokenInvariant);
  const at::Tensor longer = at::zeros({1, 4, 5, 8});
  EXPECT_THROW(attention(q, longer, longer, true, 1.0), BrokenInvariant);
  EXPECT_THROW(attention_cuda(q.to(at::kDouble), q.to(at::kDouble), q.to(at::kDouble), true, 1.0),
               BrokenInvariant);
}

// What ATen's CUDA kernels do and demand, on a CPU (LibTorch 2.11: flash_api.cpp,
// kernel_backward.h).
void demand(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}
void demand_kernel_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          int64_t step) {
  for (const at::Tensor& x : {q, k, v}) {
    demand(x.size(3) % step == 0 && x.stride(3) == 1, "head_dim");
    demand(x.stride(0) % step == 0 && x.stride(1) % step == 0 && x.stride(2) % step == 0, "step");
    demand(reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0, "address");
  }
}
std::tuple<at::Tensor, at::Tensor> definition(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& v, bool causal, double scale) {
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  return {plain_attention(wide(q), wide(k), wide(v), causal, scale).to(q.scalar_type()),
          scores(wide(q), wide(k), causal, scale).logsumexp(-1).to(at::kFloat)};
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> definition_backward(
    const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, bool causal, double scale) {
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const int64_t groups = q.size(1) / k.size(1);
  const at::Tensor keys = wide(k).repeat_interleave(groups, 1);
  const at::Tensor values = wide(v).repeat_interleave(groups, 1);
  const at::Tensor p = (scores(wide(q), wide(k), causal, scale) - wide(lse).unsqueeze(3)).exp();
  const at::Tensor dp = at::matmul(wide(dout), values.transpose(2, 3));
  const at::Tensor ds = p * (dp - (wide(dout) * wide(out)).sum(3, true)) * scale;
  const auto summed = [&](const at::Tensor& x) {
    return x.unflatten(1, {k.size(1), groups}).sum(2).to(k.scalar_type());
  };
  return {at::matmul(ds, keys).to(q.scalar_type()), summed(at::matmul(ds.transpose(2, 3), wide(q))),
          summed(at::matmul(p.transpose(2, 3), wide(dout)))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, c10::SymInt, c10::SymInt, at::Tensor,
           at::Tensor, at::Tensor>
flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double, bool causal, bool,
      std::optional<double> scale) {
  demand(q.scalar_type() == at::kBFloat16, "flash takes half precision alone");
  demand_kernel_inputs(q, k, v, 8);
  const auto [out, lse] = definition(q, k, v, causal, scale.value());
  return {out, lse, {}, {}, q.size(2), k.size(2), {}, {}, {}};
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> flash_backward(
    const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& cumulative_q, const at::Tensor&,
    c10::SymInt, c10::SymInt, double, bool causal, const at::Tensor&, const at::Tensor&,
    std::optional<double> scale) {
  demand_kernel_inputs(q, k, v, 8);
  demand(out.size(3) == q.size(3) && dout.size(3) == q.size(3), "one head_dim");
  demand(lse.is_contiguous() && lse.size(2) == q.size(2) && !cumulative_q.defined(), "lse");
  return definition_backward(dout, q, k, v, out, lse, causal, scale.value());
}
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> efficient(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>&,
    bool with_lse, double, bool causal, std::optional<double> scale) {
  demand_kernel_inputs(q, k, v, 4);
  demand(q.size(1) == k.size(1) && with_lse, "as many key/value heads as heads");
  const auto [out, lse] = definition(q, k, v, causal, scale.value());
  const int64_t missing = (32 - lse.size(2) % 32) % 32;
  return {out, at::constant_pad_nd(lse, {0, missing}, INFINITY), {}, {}};
}
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> efficient_backward(
    const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor&, const at::Tensor& out, const at::Tensor& lse, const at::Tensor&,
    const at::Tensor&, double, std::array<bool, 4>, bool causal, std::optional<double> scale) {
  demand_kernel_inputs(q, k, v, 4);
  demand(q.size(1) == k.size(1), "as many key/value heads as heads");
  demand(out.transpose(1, 2).is_contiguous(), "out lies as [batch, seq, heads, head_dim]");
  demand(lse.size(2) % 32 == 0 && lse.is_contiguous(), "lse is filled up");
  demand(at::isposinf(lse.slice(2, q.size(2))).all().item<bool>(), "with infinity");
  const auto [dq, dk, dv] =
      definition_backward(dout, q, k, v, out, lse.slice(2, 0, q.size(2)), causal, scale.value());
  return {dq, dk, dv, {}};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("_scaled_dot_product_flash_attention", TORCH_FN(flash));
  library.impl("_scaled_dot_product_flash_attention_backward", TORCH_FN(flash_backward));
  library.impl("_scaled_dot_product_efficient_attention", TORCH_FN(efficient));
  library.impl("_scaled_dot_product_efficient_attention_backward", TORCH_FN(efficient_backward));
}

namespace {

TEST(AttentionCuda, MeetsWhatItsKernelsDemand) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(name_of(c) + " " + at::toString(dtype));
      expect_right(kCuda, inputs_of(c, dtype), c.causal, tolerance(dtype));
      if (c.seq == c.key_seq) expect_right(kCuda, strided(c, dtype), c.causal, tolerance(dtype));
    }
    const Case half = {.key_value_heads = 2, .seq = 11, .key_seq = 17, .head_dim = 9};
    expect_halves_make_the_whole(kCuda, inputs_of(half, dtype), tolerance(dtype));
  }
}

TEST(AttentionCuda, MatchesItsDefinitionOnAGpu) {
  const auto device = gpu_or_null();
  if (device == nullptr) GTEST_SKIP() << "not run: no GPU here, or no CUDA plug-in";
  const c10::Device there = device->torch();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(name_of(c) + " " + at::toString(dtype) + " on " + device->name());
      expect_right(kDispatched, inputs_of(c, dtype, there), c.causal, tolerance(dtype));
      if (c.seq != c.key_seq) continue;
      expect_right(kDispatched, strided(c, dtype, there), c.causal, tolerance(dtype));
    }
    const Case half = {.key_value_heads = 2, .seq = 11, .key_seq = 17, .head_dim = 9};
    expect_halves_make_the_whole(kDispatched, inputs_of(half, dtype, there), tolerance(dtype));
  }
}

}  // namespace
}  // namespace picotron
