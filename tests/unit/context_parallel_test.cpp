// Ring attention against attention of the whole sequence on one rank: its definition with every
// matrix written out, differentiated by LibTorch, and for long sequences the kernel that
// attention_test.cpp holds to that definition.
#include "parallel/context_parallel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "dist_ranks.h"
#include "kernels/vjp.h"

namespace picotron {
namespace {

using testing::run_ranks;

struct Case {
  int64_t seq, heads = 4, key_value_heads = 2, rows = 1, head_dim = 8;
  DocumentBegins documents = {};  // empty: not masked
};

std::string name_of(const Case& c) {
  return fmt::format("s{} h{} kv{} rows {} d{} documents {}", c.seq, c.heads, c.key_value_heads,
                     c.rows, c.head_dim, c.documents.size());
}

double scale_of(const Case& c) {
  return 1.3 / std::sqrt(static_cast<double>(c.head_dim));
}

at::Tensor random(at::IntArrayRef sizes, uint64_t seed) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU).clone();
  generator.set_current_seed(seed);
  return at::randn(sizes, generator, at::TensorOptions(at::kDouble));
}

// q, k, v as the model has them, views of one fused product, and the gradient of the output. Keys
// get a drift along the sequence, so that its parts differ in their log-sum-exp.
struct Inputs {
  at::Tensor fused;  // [rows, seq, heads + 2 kv heads, head_dim]
  at::Tensor dout;   // [rows, seq, heads, head_dim]
  Case shape;

  at::Tensor head_range(int64_t first, int64_t count) const {
    return fused.narrow(2, first, count).transpose(1, 2);
  }
  at::Tensor q() const { return head_range(0, shape.heads); }
  at::Tensor k() const { return head_range(shape.heads, shape.key_value_heads); }
  at::Tensor v() const {
    return head_range(shape.heads + shape.key_value_heads, shape.key_value_heads);
  }
  at::Tensor dy() const { return dout.transpose(1, 2); }
  Inputs columns(const at::Tensor& which) const {
    return {fused.index_select(1, which), dout.index_select(1, which), shape};
  }
};

Inputs inputs_of(const Case& c, at::ScalarType dtype) {
  const at::Tensor fused = random({c.rows, c.seq, c.heads + 2 * c.key_value_heads, c.head_dim}, 1);
  fused.narrow(2, c.heads, c.key_value_heads) *=
      at::linspace(0.5, 2, c.seq, at::kDouble).view({1, c.seq, 1, 1});
  return {fused.to(dtype), random({c.rows, c.seq, c.heads, c.head_dim}, 2).to(dtype), c};
}

// Into views of one fused gradient, as the model has it.
AttentionGradients backward_of(const ContextParallelAttention& layer, const Inputs& in,
                               const AttentionOutput& y) {
  const Inputs into{at::full_like(in.fused, NAN), {}, in.shape};
  const AttentionGradients d = {into.q(), into.k(), into.v()};
  layer.backward(d, in.dy(), in.q(), in.k(), in.v(), y, in.shape.documents);
  return d;
}

// Of the whole sequence.
struct Result {
  at::Tensor out, lse, dq, dk, dv;
};

// Whether key j is hidden from query i: [rows, 1, seq, seq].
at::Tensor hidden_from(const Case& c) {
  const at::Tensor future = at::ones({c.seq, c.seq}, at::kBool).triu(1);
  std::vector<at::Tensor> rows(static_cast<size_t>(c.rows), future);
  for (size_t row = 0; row < c.documents.size(); ++row) {
    at::Tensor document = at::zeros({c.seq}, at::kLong);
    for (const int64_t begin : c.documents[row]) document.slice(0, begin).add_(1);
    rows[row] = future.logical_or(document.unsqueeze(1) != document.unsqueeze(0));
  }
  return at::stack(rows).unsqueeze(1);
}

Result judge(const Inputs& in) {
  const double scale = scale_of(in.shape);
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const at::Tensor q = wide(in.q()), k = wide(in.k()), v = wide(in.v());
  if (in.shape.seq > 512 && in.shape.documents.empty()) {
    const AttentionOutput y = attention(q, k, v, true, scale);
    const AttentionGradients d = attention_backward(wide(in.dy()), q, k, v, y, true, scale);
    return {y.out, y.lse, d.dq, d.dk, d.dv};
  }
  const int64_t group = in.shape.heads / in.shape.key_value_heads;
  const auto scores = [&](const at::Tensor& queries, const at::Tensor& keys) {
    const at::Tensor hidden = hidden_from(in.shape);
    return (at::matmul(queries, keys.repeat_interleave(group, 1).transpose(2, 3)) * scale)
        .masked_fill(hidden, -std::numeric_limits<double>::infinity());
  };
  const auto f = [&](const std::vector<at::Tensor>& x) {
    return at::matmul(scores(x[0], x[1]).softmax(-1), x[2].repeat_interleave(group, 1));
  };
  const VjpResult result = vjp(f, {q, k, v});
  const auto gradients = result.pullback(wide(in.dy()));
  return {result.output, scores(q, k).logsumexp(-1), gradients[0], gradients[1], gradients[2]};
}

// Chunks rank and 2·cp − 1 − rank of 2·cp.
at::Tensor zigzag(int64_t seq, int rank, int cp) {
  const std::vector<at::Tensor> chunks = at::arange(seq).chunk(2 * cp);
  return at::cat(
      {chunks[static_cast<size_t>(rank)], chunks[static_cast<size_t>(2 * cp - 1 - rank)]});
}

// Forward and backward of every case on cp ranks, put together again.
std::vector<Result> run_ring(int cp, const std::vector<Inputs>& all) {
  std::vector<Result> whole;
  for (const Inputs& in : all) {
    whole.push_back({at::full_like(in.q(), NAN),
                     at::full({in.shape.rows, in.shape.heads, in.shape.seq}, NAN, at::kDouble),
                     at::full_like(in.q(), NAN), at::full_like(in.k(), NAN),
                     at::full_like(in.v(), NAN)});
  }
  run_ranks(cp, [&](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.cp = cp}, rendezvous);
    for (size_t i = 0; i < all.size(); ++i) {
      const Case& shape = all[i].shape;
      const at::Tensor mine = zigzag(shape.seq, mesh.cp.rank, cp);
      const Inputs in = all[i].columns(mine);
      const ContextParallelAttention layer{.cp = &mesh.cp, .scale = scale_of(shape)};

      record::Recorder& recorder = *record::current();
      const RingBytes bytes = ring_bytes(in.k().sizes(), in.fused.scalar_type(), cp);
      const int64_t before = recorder.bytes(record::Axis::cp);
      const AttentionOutput y = layer.forward(in.q(), in.k(), in.v(), shape.documents);
      EXPECT_EQ(recorder.bytes(record::Axis::cp) - before, bytes.forward);
      const AttentionGradients d = backward_of(layer, in, y);
      EXPECT_EQ(recorder.bytes(record::Axis::cp) - before, bytes.forward + bytes.backward);

      EXPECT_EQ(y.out.scalar_type(), in.fused.scalar_type());
      EXPECT_TRUE(y.out.transpose(1, 2).is_contiguous());
      for (const at::Tensor& x : {d.dq, d.dk, d.dv}) {
        EXPECT_EQ(x.scalar_type(), in.fused.scalar_type());
      }
      whole[i].out.index_copy_(2, mine, y.out);
      whole[i].lse.index_copy_(2, mine, y.lse.to(at::kDouble));
      whole[i].dq.index_copy_(2, mine, d.dq);
      whole[i].dk.index_copy_(2, mine, d.dk);
      whole[i].dv.index_copy_(2, mine, d.dv);
    }
  });
  return whole;
}

// max|a − b| / max|b|, over the whole sequence; NaN where a rank wrote nothing.
double distance(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return (a.to(at::kDouble) - b).abs().max().item<double>() / b.abs().max().item<double>();
}

void expect_the_whole(int cp, const std::vector<Case>& cases, at::ScalarType dtype,
                      double tolerance) {
  std::vector<Inputs> inputs;
  for (const Case& c : cases) inputs.push_back(inputs_of(c, dtype));
  const std::vector<Result> got = run_ring(cp, inputs);
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(fmt::format("cp {} {} {}", cp, name_of(cases[i]), at::toString(dtype)));
    const Result want = judge(inputs[i]);
    EXPECT_LT(distance(got[i].out, want.out), tolerance);
    EXPECT_LT(distance(got[i].lse, want.lse), tolerance);
    EXPECT_LT(distance(got[i].dq, want.dq), tolerance);
    EXPECT_LT(distance(got[i].dk, want.dk), tolerance);
    EXPECT_LT(distance(got[i].dv, want.dv), tolerance);
  }
}

std::vector<Case> cases_of(int cp) {
  return {{.seq = 2 * cp, .heads = 1, .key_value_heads = 1},
          {.seq = 2 * cp, .heads = 6, .key_value_heads = 1, .rows = 3, .head_dim = 7},
          {.seq = 4 * cp, .rows = 2},
          {.seq = 6 * cp, .heads = 8, .key_value_heads = 8, .rows = 2, .head_dim = 5},
          {.seq = 34 * cp, .heads = 6, .key_value_heads = 3, .rows = 2, .head_dim = 16},
          {.seq = 120 * cp, .heads = 8, .key_value_heads = 8, .head_dim = 4},
          {.seq = 4096 / (2 * cp) * (2 * cp), .heads = 2, .key_value_heads = 1}};
}

class ContextParallel : public ::testing::TestWithParam<int> {};

TEST_P(ContextParallel, IsAttentionOfTheWholeSequenceInFloat64) {
  expect_the_whole(GetParam(), cases_of(GetParam()), at::kDouble, 1e-10);
}
TEST_P(ContextParallel, IsAttentionOfTheWholeSequenceInFloat32) {
  expect_the_whole(GetParam(), cases_of(GetParam()), at::kFloat, 1e-5);
}
TEST_P(ContextParallel, IsAttentionOfTheWholeSequenceInBfloat16) {
  std::vector<Case> cases = cases_of(GetParam());
  // Long enough for every hop to take the backward of kernels/attention_onednn.h.
  cases.push_back({.seq = 512 * GetParam(), .heads = 6, .key_value_heads = 2, .head_dim = 64});
  expect_the_whole(GetParam(), cases, at::kBFloat16, 2e-2);
}
INSTANTIATE_TEST_SUITE_P(Ranks, ContextParallel, ::testing::Values(2, 3, 4));

// Documents of one token, of all, and with their ends on, before and after those of chunks.
std::vector<Case> masked_cases_of(int cp) {
  const int64_t chunk = 6, seq = 2 * cp * chunk;
  std::vector<int64_t> each(static_cast<size_t>(seq)), chunks;
  std::iota(each.begin(), each.end(), 0);
  for (int64_t begin = 0; begin < seq; begin += chunk) chunks.push_back(begin);
  std::vector<Case> cases = {{.seq = seq, .documents = {{0, 1, chunk, chunk + 1, seq - 1}}},
                             {.seq = seq, .documents = {{0, chunk - 1, seq - chunk + 2}}},
                             {.seq = seq, .rows = 3, .documents = {{0}, {0, seq / 2}, {0, 3}}},
                             {.seq = seq, .rows = 2, .documents = {each, chunks}}};
  // As they come: some long, some short.
  Case random{.seq = 160 * cp, .heads = 6, .key_value_heads = 3, .rows = 2, .head_dim = 16};
  for (int64_t row = 0; row < random.rows; ++row) {
    std::vector<int64_t>& begins = random.documents.emplace_back();
    for (int64_t begin = 0; begin < random.seq; begin += 1 + (begin * 7919 + row * 31) % 90)
      begins.push_back(begin);
  }
  cases.push_back(random);
  return cases;
}

class DocumentMasking : public ::testing::TestWithParam<int> {};

TEST_P(DocumentMasking, IsAttentionUnderADenseMask) {
  expect_the_whole(GetParam(), masked_cases_of(GetParam()), at::kDouble, 1e-10);
  expect_the_whole(GetParam(), masked_cases_of(GetParam()), at::kFloat, 1e-5);
  expect_the_whole(GetParam(), masked_cases_of(GetParam()), at::kBFloat16, 2e-2);
}

TEST_P(DocumentMasking, WithoutABoundaryTheBitsAreTheSame) {
  Case c{.seq = 24 * GetParam(), .rows = 2};
  const Result plain = run_ring(GetParam(), {inputs_of(c, at::kFloat)})[0];
  c.documents = {{0}, {0}};
  const Result masked = run_ring(GetParam(), {inputs_of(c, at::kFloat)})[0];
  EXPECT_TRUE(at::equal(plain.out, masked.out) && at::equal(plain.lse, masked.lse));
  EXPECT_TRUE(at::equal(plain.dq, masked.dq) && at::equal(plain.dk, masked.dk) &&
              at::equal(plain.dv, masked.dv));
}
INSTANTIATE_TEST_SUITE_P(Ranks, DocumentMasking, ::testing::Values(1, 2, 3, 4));

TEST(AttentionPieces, CoverEachPairOfOneDocumentOnce) {
  const std::vector<int64_t> begins = {0, 5, 6, 12, 13, 30, 47};
  for (const int ranks : {1, 2, 3, 4}) {
    const int64_t tokens = 48 / ranks;
    at::Tensor seen = at::zeros({48, 48}, at::kLong);
    for (int rank = 0; rank < ranks; ++rank) {
      for (int hops = 0; hops < ranks; ++hops) {
        const int from = (rank + ranks - hops) % ranks;
        const RingPlace place{.tokens = tokens, .rank = rank, .ranks = ranks};
        const at::Tensor mine = zigzag(48, rank, ranks), theirs = zigzag(48, from, ranks);
        for (const AttentionPiece& p : attention_pieces({begins}, place, hops)) {
          at::Tensor block = at::ones({p.queries, p.keys}, at::kLong);
          if (p.causal) block = block.tril();
          seen.index_put_({mine.narrow(0, p.query, p.queries).unsqueeze(1),
                           theirs.narrow(0, p.key, p.keys).unsqueeze(0)},
                          block, /*accumulate=*/true);
        }
      }
    }
    const at::Tensor hidden = hidden_from({.seq = 48, .documents = {begins}})[0][0];
    EXPECT_TRUE(at::equal(seen, hidden.logical_not().to(at::kLong))) << ranks;
  }
}

TEST(AttentionPieces, RefuseWhatIsNoListOfDocuments) {
  EXPECT_THROW(attention_pieces({{0}}, {.rows = 2, .tokens = 4}, 0), BrokenInvariant);
  EXPECT_THROW(attention_pieces({{1}}, {.rows = 1, .tokens = 4}, 0), BrokenInvariant);
}

// Rounding once for all hops: 8 of them must not add up to more than one does.
TEST(ContextParallelRing, EightRanksRoundOnce) {
  expect_the_whole(8, {{.seq = 512, .head_dim = 32}}, at::kBFloat16, 2e-2);
  expect_the_whole(8, {{.seq = 512}}, at::kDouble, 1e-10);
}

TEST(ContextParallelRing, SameBitsEveryTime) {
  const std::vector<Inputs> in = {inputs_of({.seq = 256, .rows = 2}, at::kFloat)};
  const Result a = run_ring(4, in)[0], b = run_ring(4, in)[0];
  EXPECT_TRUE(at::equal(a.out, b.out) && at::equal(a.lse, b.lse));
  EXPECT_TRUE(at::equal(a.dq, b.dq) && at::equal(a.dk, b.dk) && at::equal(a.dv, b.dv));
}

TEST(ContextParallelRing, OneRankIsOneCallOfTheKernel) {
  record::Recorder recorder;
  const record::Attach attached(&recorder);
  const Group alone;
  const ContextParallelAttention layer{.cp = &alone, .scale = 0.4};
  const Inputs in = inputs_of({.seq = 13}, at::kFloat);  // odd: nothing is cut
  const AttentionOutput y = layer.forward(in.q(), in.k(), in.v());
  const AttentionGradients d = backward_of(layer, in, y);
  EXPECT_EQ(recorder.entries().size(), 2u);
  const AttentionOutput want = attention(in.q(), in.k(), in.v(), true, 0.4);
  EXPECT_TRUE(at::equal(y.out, want.out) && at::equal(y.lse, want.lse));
  const AttentionGradients dwant =
      attention_backward(in.dy(), in.q(), in.k(), in.v(), want, true, 0.4);
  EXPECT_TRUE(at::equal(d.dq, dwant.dq) && at::equal(d.dk, dwant.dk) && at::equal(d.dv, dwant.dv));
}

TEST(ContextParallelRing, RefusesAnOddNumberOfTokens) {
  EXPECT_THROW(run_ranks(2,
                         [](const Rendezvous& rendezvous) {
                           const Mesh mesh = make_mesh({.cp = 2}, rendezvous);
                           const ContextParallelAttention layer{.cp = &mesh.cp};
                           const at::Tensor x = at::ones({1, 1, 3, 4});
                           layer.forward(x, x, x);
                         }),
               BrokenInvariant);
}

TEST(ContextParallelBytes, FollowTheFormula) {
  // k and v of a rank: 2 · 2·3·8·4 = 384 elements.
  const std::vector<int64_t> key_shape = {2, 3, 8, 4};
  EXPECT_EQ(ring_bytes(key_shape, at::kBFloat16, 4).forward, 3 * 384 * 2);
  EXPECT_EQ(ring_bytes(key_shape, at::kBFloat16, 4).backward, 3 * 384 * (2 + 4));
  EXPECT_EQ(ring_bytes(key_shape, at::kFloat, 2).backward, 384 * (4 + 4));
  EXPECT_EQ(ring_bytes(key_shape, at::kDouble, 2).backward, 384 * (8 + 8));
  EXPECT_EQ(ring_bytes(key_shape, at::kBFloat16, 1).backward, 0);
}

// What was begun, in order; messages begun before an attention call end after it.
std::string story_of(const record::Recorder& recorder) {
  std::string story;
  const std::vector<record::Entry> entries = recorder.entries();
  for (size_t i = 0; i < entries.size(); ++i) {
    const bool computes = entries[i].kind == record::Kind::attention;
    story += computes ? "attention, " : fmt::format("{} ", entries[i].what);
    if (!computes || entries[i - 1].kind != record::Kind::send_receive) continue;
    for (const size_t message : {i - 2, i - 1}) {
      EXPECT_LT(entries[message].begin_ns, entries[i].begin_ns);
      EXPECT_GT(entries[message].end_ns, entries[i].end_ns);
    }
  }
  return story;
}

TEST(ContextParallelRing, MessagesTravelWhileAttentionIsComputed) {
  run_ranks(3, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.cp = 3}, rendezvous);
    const Inputs in = inputs_of({.seq = 64}, at::kFloat);
    const ContextParallelAttention layer{.cp = &mesh.cp, .scale = 0.4};
    record::Recorder forward(mesh.global_rank), backward(mesh.global_rank);
    AttentionOutput y;
    {
      const record::Attach attached(&forward);
      y = layer.forward(in.q(), in.k(), in.v());
    }
    {
      const record::Attach attached(&backward);
      backward_of(layer, in, y);
    }
    EXPECT_EQ(story_of(forward),
              "send receive attention, "  // my block sets off; my own keys
              "send receive attention, "  // one hop
              "attention, ");             // two hops: nothing left to send
    EXPECT_EQ(story_of(backward),
              "send receive attention, "  // my block sets off; my own keys
              "send receive attention, "  // one hop
              "send receive attention, "  // its sums set off; two hops
              "send receive ");           // sums go home
  });
}

}  // namespace
}  // namespace picotron
