// The embedding, and the head with its loss, each alone: in float64 against vjp of the plain
// definition, on 1, 2 and 3 ranks that share the vocabulary unevenly, and in chunks of tokens as in
// one piece.
#include "parallel/vocab_parallel.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <string>

#include "core/record.h"
#include "dist_ranks.h"
#include "kernels/vjp.h"
#include "kernels_support.h"

namespace picotron {
namespace {

constexpr int64_t kVocab = 13, kHidden = 5;

// Every id at least once, then repeats.
at::Tensor ids_of(int64_t tokens, uint64_t seed) {
  const at::Tensor drawn = random_tensor({tokens}, at::kDouble, seed).abs() * 1000;
  const at::Tensor ids = drawn.to(at::kLong).remainder(kVocab);
  const int64_t covered = std::min(tokens, kVocab);
  ids.narrow(0, 0, covered).copy_(at::arange(covered, at::kLong));
  return ids;
}

at::Tensor mine(const at::Tensor& whole, const Parameter& parameter) {
  return whole.narrow(0, parameter.shard.begin, parameter.shard.end - parameter.shard.begin);
}

class VocabParallelTest : public ::testing::TestWithParam<int> {
 protected:
  void run(const std::function<void(const Mesh&)>& body) {
    if (GetParam() == 1) {
      body(Mesh{});
      return;
    }
    testing::run_ranks(GetParam(), [&](const Rendezvous& rendezvous) {
      const at::NoGradGuard backward_is_written_out;
      const Mesh mesh = make_mesh({.tp = GetParam()}, rendezvous);
      body(mesh);
      barrier(mesh.world);  // nobody leaves while another still waits for it
    });
  }
};

TEST_P(VocabParallelTest, EmbeddingIsThePlainLookup) {
  const at::Tensor table = random_tensor({kVocab, kHidden}, at::kDouble, 1);
  const at::Tensor ids = ids_of(29, 2);
  const at::Tensor dy = random_tensor({29, kHidden}, at::kDouble, 3);
  const VjpResult plain =
      vjp([&](const std::vector<at::Tensor>& in) { return in[0].index_select(0, ids); }, {table});
  const at::Tensor expected = plain.pullback(dy)[0];
  run([&](const Mesh& mesh) {
    Parameters parameters;
    const VocabParallelEmbedding embedding = {
        VocabMatrix::declare(parameters, "e", Role::embedding, kVocab, kHidden, mesh)};
    parameters.allocate(at::kDouble);
    const Parameter& parameter = parameters.list()[0];
    EXPECT_EQ(parameter.full_shape, (std::vector<int64_t>{kVocab, kHidden}));
    EXPECT_EQ(embedding.vocab_begin, parameter.shard.begin);
    parameter.value.copy_(mine(table, parameter));
    Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
    gradients.begin_step(2);
    EXPECT_TRUE(same_bits(embedding.forward(ids), plain.output));
    embedding.backward(dy, ids, gradients);
    EXPECT_LT(distance(parameter.gradient, mine(expected, parameter)), kJudge);
    embedding.backward(dy, ids, gradients);
    gradients.finish();
    EXPECT_LT(distance(parameter.gradient, 2 * mine(expected, parameter)), kJudge);
    EXPECT_LT(distance(gradients.norm(), (2 * expected).norm()), kJudge);
  });
}

// 9,001 tokens are three chunks of up to 4,096; 29 are one.
TEST_P(VocabParallelTest, HeadAndLossInChunksAreThePlainOnesInOne) {
  for (const int64_t tokens : {29, 9001}) {
    const at::Tensor weight = random_tensor({kVocab, kHidden}, at::kDouble, 1);
    const at::Tensor x = random_tensor({tokens, kHidden}, at::kDouble, 2);
    const at::Tensor targets = ids_of(tokens, 3);
    const double scale = 1.0 / 37;
    const VjpResult plain = vjp(
        [&](const std::vector<at::Tensor>& in) {
          const at::Tensor logits = in[0].matmul(in[1].t());
          return -logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).sum();
        },
        {x, weight});
    const auto expected = plain.pullback(at::full({}, scale, at::kDouble));

    for (const Body body : {Body::fused, Body::plain}) {
      run([&](const Mesh& mesh) {
        Parameters parameters;
        const VocabParallelHead head = {
            VocabMatrix::declare(parameters, "h", Role::linear, kVocab, kHidden, mesh), body};
        parameters.allocate(at::kDouble);
        const Parameter& parameter = parameters.list()[0];
        parameter.value.copy_(mine(weight, parameter));
        Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
        gradients.begin_step(1);  // however many chunks: one contribution

        record::Recorder recorder(mesh.global_rank);
        const record::Attach attached(&recorder);
        const auto result = head.loss_and_gradient(x, targets, scale, gradients);
        gradients.finish();
        EXPECT_LT(distance(result.loss, plain.output), kJudge) << "not scaled";
        EXPECT_LT(distance(result.dx, expected[0]), kJudge);
        EXPECT_LT(distance(parameter.gradient, mine(expected[1], parameter)), kJudge);
        int64_t chunks = 0, largest = 0, multiplied = 0;
        for (const record::Entry& entry : recorder.entries()) {
          if (std::string(entry.what) != "linear_forward") continue;
          ++chunks;
          largest = std::max(largest, entry.shape[0]);
          multiplied += entry.shape[0];
        }
        EXPECT_EQ(chunks, tokens == 29 ? 1 : 3);
        EXPECT_LE(largest, 4096);
        EXPECT_EQ(multiplied, tokens) << "nothing is computed twice";

        EXPECT_TRUE(same_bits(head.loss(x, targets), result.loss)) << "validation's loss";
        EXPECT_LT(
            distance(
                head.logits(x),
                x.matmul(weight.t()).narrow(1, parameter.shard.begin, parameter.value.size(0))),
            kJudge);
      });
    }
  }
}

TEST_P(VocabParallelTest, AConstantAddedToAllLogitsChangesNothing) {
  // Logits around 1,000: a softmax without the maximum taken off overflows; log(ranks) is not
  // added.
  const at::Tensor weight = at::cat({random_tensor({kVocab, kHidden - 1}, at::kDouble, 1),
                                     at::full({kVocab, 1}, 1000.0, at::kDouble)},
                                    1);
  const at::Tensor x = random_tensor({7, kHidden}, at::kDouble, 2);
  x.select(1, kHidden - 1).fill_(1);
  const at::Tensor targets = ids_of(7, 3);
  const at::Tensor small = x.narrow(1, 0, kHidden - 1).matmul(weight.narrow(1, 0, kHidden - 1).t());
  const at::Tensor expected = -small.log_softmax(-1).gather(1, targets.unsqueeze(1)).sum();
  run([&](const Mesh& mesh) {
    Parameters parameters;
    const VocabParallelHead head = {
        VocabMatrix::declare(parameters, "h", Role::linear, kVocab, kHidden, mesh)};
    parameters.allocate(at::kDouble);
    parameters.list()[0].value.copy_(mine(weight, parameters.list()[0]));
    EXPECT_LT(distance(head.loss(x, targets), expected), kJudge);
  });
}

// Of the stream each rank has its tokens, of the ids and the loss all.
TEST_P(VocabParallelTest, UnderSequenceParallelTheStreamIsCut) {
  constexpr int64_t kTokens = 30;
  const at::Tensor table = random_tensor({kVocab, kHidden}, at::kDouble, 1);
  const at::Tensor ids = ids_of(kTokens, 2), targets = ids_of(kTokens, 3);
  // Embedding and head are one matrix here, so that one gradient shows both.
  const VjpResult plain = vjp(
      [&](const std::vector<at::Tensor>& in) {
        const at::Tensor logits = in[0].index_select(0, ids).matmul(in[0].t());
        return -logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).sum();
      },
      {table});
  const at::Tensor expected = plain.pullback(at::ones({}, at::kDouble))[0];
  run([&](const Mesh& mesh) {
    Parameters parameters;
    const VocabMatrix matrix = VocabMatrix::declare(parameters, "e", Role::embedding, kVocab,
                                                    kHidden, TensorParallel(mesh, true));
    tie(parameters, matrix.weight, matrix.weight, mesh.tied);
    const VocabParallelEmbedding embedding = {matrix};
    const VocabParallelHead head = {matrix, Body::fused};
    parameters.allocate(at::kDouble);
    const Parameter& parameter = parameters.list()[0];
    parameter.value.copy_(mine(table, parameter));
    Gradients gradients(parameters, mesh.dp_cp, mesh.world, {});
    gradients.begin_step(1);
    const at::Tensor x = embedding.forward(ids);
    const int64_t tokens = kTokens / mesh.tp.size();
    EXPECT_TRUE(same_bits(x, table.index_select(0, ids).narrow(0, mesh.tp.rank * tokens, tokens)));
    const auto result = head.loss_and_gradient(x, targets, 1, gradients);
    EXPECT_LT(distance(result.loss, plain.output), kJudge);
    EXPECT_EQ(result.dx.size(0), tokens);
    embedding.backward(result.dx, ids, gradients);
    gradients.finish();
    EXPECT_LT(distance(parameter.gradient, mine(expected, parameter)), kJudge);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, VocabParallelTest, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace picotron
