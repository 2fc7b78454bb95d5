// Every collective against a plain sum or copy, among 2, 3 and 4 ranks, at odd sizes and with empty
// parts.
#include "dist/collectives.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "core/error.h"
#include "dist/channel.h"
#include "dist_ranks.h"

namespace picotron {
namespace {

using testing::run_ranks;

// What rank r holds before the collective: reproducible, not symmetric, with fractions that round
// in bf16.
at::Tensor input_of(int rank, int64_t numel, at::ScalarType dtype) {
  const at::Tensor i = at::arange(numel, at::kDouble);
  return ((i * (rank + 1) * 0.37).sin() * (rank + 1.5)).to(dtype);
}

at::Tensor sum_of(int ranks, int64_t numel, at::ScalarType dtype) {
  at::Tensor sum = at::zeros({numel}, dtype == at::kDouble ? at::kDouble : at::kFloat);
  for (int rank = 0; rank < ranks; ++rank)
    sum += input_of(rank, numel, dtype).to(sum.scalar_type());
  return sum.to(dtype);  // rounded once
}

struct Case {
  int ranks;
  int64_t numel;
  at::ScalarType dtype;
};
// What CTest shows beside the name.
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.numel << " " << c10::toString(c.dtype) << " among " << c.ranks << " ranks";
}

class Collectives : public ::testing::TestWithParam<Case> {};

TEST_P(Collectives, ComputeWhatTheyPromise) {
  const auto [ranks, numel, dtype] = GetParam();
  run_ranks(ranks, [=, ranks = ranks, numel = numel, dtype = dtype](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = ranks}, rendezvous);
    const Group& group = mesh.dp_cp;
    const int64_t begin = part_begin(numel, ranks, group.rank);
    const int64_t length = part_begin(numel, ranks, group.rank + 1) - begin;
    const at::Tensor expected = sum_of(ranks, numel, dtype);

    const at::Tensor reduced = input_of(group.rank, numel, dtype);
    all_reduce(reduced, group).wait();
    EXPECT_TRUE(at::equal(reduced, expected));

    const at::Tensor scattered = input_of(group.rank, numel, dtype);
    reduce_scatter(scattered, group).wait();
    EXPECT_TRUE(at::equal(scattered.narrow(0, begin, length), expected.narrow(0, begin, length)));

    at::Tensor gathered = at::full({numel}, -7, dtype);
    gathered.narrow(0, begin, length).copy_(expected.narrow(0, begin, length));
    all_gather(gathered, group).wait();
    EXPECT_TRUE(at::equal(gathered, expected));

    for (int root = 0; root < ranks; ++root) {
      const at::Tensor sent = input_of(group.rank, numel, dtype);
      broadcast(sent, root, group).wait();
      EXPECT_TRUE(at::equal(sent, input_of(root, numel, dtype)));
    }

    const int next = (group.rank + 1) % ranks, previous = (group.rank + ranks - 1) % ranks;
    const at::Tensor first = at::empty({numel}, dtype), second = at::empty({numel}, dtype);
    Work in_first = receive(first, previous, group), in_second = receive(second, previous, group);
    const at::Tensor mine = input_of(group.rank, numel, dtype), twice = mine * 2;
    Work out_first = send(mine, next, group), out_second = send(twice, next, group);
    in_second.wait();
    in_first.wait();
    out_first.wait();
    out_second.wait();
    EXPECT_TRUE(at::equal(first, input_of(previous, numel, dtype)));
    EXPECT_TRUE(at::equal(second, input_of(previous, numel, dtype) * 2));
    barrier(group);
  });
}

std::vector<Case> cases() {
  std::vector<Case> result;
  for (const int ranks : {2, 3, 4}) {
    for (const int64_t numel : {0, 1, 3, 4, 1031, 100'003}) {
      for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
        result.push_back({ranks, numel, dtype});
      }
    }
  }
  return result;
}
INSTANTIATE_TEST_SUITE_P(Sizes, Collectives, ::testing::ValuesIn(cases()), [](const auto& test) {
  const Case& c = test.param;
  return std::to_string(c.ranks) + "Ranks" + std::to_string(c.numel) + c10::toString(c.dtype);
});

TEST(CollectivesTogether, SeveralInFlightOnSeveralGroupsInDifferentOrders) {
  run_ranks(4, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = 2, .tp = 2}, rendezvous);
    constexpr int kInFlight = 6;
    constexpr int64_t kNumel = 20'011;
    std::vector<at::Tensor> dp_tensors, tp_tensors;
    std::vector<Work> works;
    for (int i = 0; i < kInFlight; ++i) {
      dp_tensors.push_back(at::full({kNumel}, mesh.global_rank + 10.0 * i, at::kDouble));
      tp_tensors.push_back(at::full({kNumel}, mesh.global_rank + 10.0 * i, at::kDouble));
      // Two ranks of the world start the groups in opposite orders.
      if (mesh.my.dp == mesh.my.tp) {
        works.push_back(all_reduce(dp_tensors.back(), mesh.dp_cp));
        works.push_back(all_reduce(tp_tensors.back(), mesh.tp));
      } else {
        works.push_back(all_reduce(tp_tensors.back(), mesh.tp));
        works.push_back(all_reduce(dp_tensors.back(), mesh.dp_cp));
      }
    }
    std::reverse(works.begin(), works.end());
    for (Work& work : works) {
      work.wait();
      work.wait();  // harmless
    }
    for (int i = 0; i < kInFlight; ++i) {
      const auto sum = [&](const Group& group) {
        return group.global_ranks[0] + group.global_ranks[1] + 20.0 * i;
      };
      EXPECT_TRUE(at::equal(dp_tensors[static_cast<size_t>(i)],
                            at::full({kNumel}, sum(mesh.dp_cp), at::kDouble)));
      EXPECT_TRUE(at::equal(tp_tensors[static_cast<size_t>(i)],
                            at::full({kNumel}, sum(mesh.tp), at::kDouble)));
    }
  });
}

TEST(CollectivesTogether, AllReduceEndsWithoutAnyoneWaiting) {
  run_ranks(2, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = 2}, rendezvous);
    const at::Tensor x = at::ones({5'000});
    Work work = all_reduce(x, mesh.dp_cp);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto ended = [] { return record::current()->newest().end_ns != 0; };
    while (!ended() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_TRUE(ended());
    work.wait();
    EXPECT_EQ(x.sum().item<float>(), 10'000);
  });
}

TEST(CollectivesTogether, WorkThatNobodyWaitedForIsSafe) {
  run_ranks(2, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = 2}, rendezvous);
    {
      const Work dropped = all_reduce(at::ones({100'000}), mesh.dp_cp);
      // Its peers come later, or, for this one, never: the group must still close at once.
      if (mesh.global_rank == 1) const Work alone = all_reduce(at::ones({100'000}), mesh.dp_cp);
    }
  });
}

TEST(CollectivesTogether, ASumOfFloatsHasTheSameBitsInBothForms) {
  run_ranks(3, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = 3}, rendezvous);
    for (int repeat = 0; repeat < 5; ++repeat) {
      const at::Tensor a = input_of(mesh.global_rank, 4'099, at::kFloat), b = a.clone();
      all_reduce(a, mesh.dp_cp).wait();
      reduce_scatter(b, mesh.dp_cp).wait();
      all_gather(b, mesh.dp_cp).wait();
      EXPECT_TRUE(at::equal(a, b));
      EXPECT_TRUE(at::equal(a, sum_of(3, 4'099, at::kFloat)));
    }
  });
}

TEST(CollectivesTogether, ARingInWhichEveryRankSendsFirst) {
  run_ranks(3, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = 3}, rendezvous);
    constexpr int64_t kNumel = 1'000'003;  // no socket buffers it
    const int next = (mesh.global_rank + 1) % 3, previous = (mesh.global_rank + 2) % 3;
    at::Tensor here = input_of(mesh.global_rank, kNumel, at::kFloat);
    at::Tensor arriving = at::empty_like(here);
    for (int hop = 0; hop < 3; ++hop) {
      send_receive({.sent = here, .to = next, .received = arriving, .from = previous}, mesh.dp_cp)
          .wait();
      std::swap(here, arriving);
      const int owner = (mesh.global_rank + 2 - hop) % 3;
      EXPECT_TRUE(at::equal(here, input_of(owner, kNumel, at::kFloat)));
    }
    EXPECT_EQ(record::current()->bytes(record::Axis::dp_cp), 3 * 4 * kNumel);
    std::vector<record::Entry> entries = record::current()->entries();
    ASSERT_STREQ(entries.front().what, "barrier");  // of make_mesh
    entries.erase(entries.begin());
    ASSERT_EQ(entries.size(), 6u);
    for (size_t i = 0; i < entries.size(); ++i) {
      EXPECT_STREQ(entries[i].what, i % 2 == 0 ? "send" : "receive");
      EXPECT_EQ(entries[i].bytes, i % 2 == 0 ? 4 * kNumel : 0);
      EXPECT_NE(entries[i].end_ns, 0);
    }
  });
}

// A backend that is not Gloo, and writes down what it is asked for.
class Listing : public c10d::Backend {
 public:
  Listing() : Backend(0, 2) {}
  const std::string getBackendName() const override { return "listing"; }
  void startCoalescing() override { calls += "start "; }
  c10::intrusive_ptr<c10d::Work> endCoalescing() override { return note("end "); }
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>&, int, int) override {
    return note("send ");
  }
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>&, int, int) override {
    return note("receive ");
  }
  std::string calls;

 private:
  struct Listed : c10d::Work {
    explicit Listed(std::string& list) : calls(list) {}
    bool wait(std::chrono::milliseconds) override {
      calls += "wait";
      return true;
    }
    std::string& calls;
  };
  c10::intrusive_ptr<c10d::Work> note(const char* call) {
    calls += call;
    return c10::make_intrusive<Listed>(calls);
  }
};

TEST(CollectivesTogether, SendReceiveIsOneCallToABackendWhoseSendsRendezvous) {
  const auto backend = c10::make_intrusive<Listing>();
  const Group group{.global_ranks = {0, 1},
                    .channel = std::make_shared<Channel>(backend, [] { return ""; })};
  const at::Tensor x = at::ones({3}), y = at::empty({3});
  send_receive({.sent = x, .to = 1, .received = y, .from = 1}, group).wait();
  EXPECT_EQ(backend->calls, "start send receive end wait");
}

TEST(CollectivesRecord, CountsBytesAndNamesTheCaller) {
  run_ranks(3, [](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh({.dp = 3}, rendezvous);
    const at::Tensor x = at::ones({5, 2});  // parts of 4, 3 and 3 elements
    const uint32_t line = __LINE__ + 1;
    all_reduce(x, mesh.dp_cp).wait();
    const record::Entry entry = record::current()->newest();
    EXPECT_STREQ(entry.what, "all_reduce");
    EXPECT_EQ(entry.axis, record::Axis::dp_cp);
    EXPECT_EQ(entry.line, line);
    EXPECT_NE(std::string(entry.file).find("dist_collectives_test.cpp"), std::string::npos);
    EXPECT_EQ(entry.shape[0], 5);
    EXPECT_EQ(entry.shape[1], 2);
    EXPECT_GE(entry.end_ns, entry.begin_ns);
    const int64_t mine = mesh.global_rank == 0 ? 4 : 3;
    EXPECT_EQ(entry.bytes, 4 * ((10 - mine) + 2 * mine));
    EXPECT_EQ(record::current()->bytes(record::Axis::dp_cp), entry.bytes);
    EXPECT_EQ(record::current()->bytes(record::Axis::tp), 0);
  });
}

TEST(CollectivesAlone, AGroupOfOneDoesNothingAndRecordsNothing) {
  record::Recorder recorder;
  const record::Attach attached(&recorder);
  const Mesh mesh = make_mesh({}, {});
  const at::Tensor x = at::arange(5, at::kFloat);
  all_reduce(x, mesh.dp_cp).wait();
  reduce_scatter(x, mesh.dp_cp).wait();
  all_gather(x, mesh.tp).wait();
  broadcast(x, 0, mesh.world).wait();
  barrier(mesh.world);
  EXPECT_TRUE(at::equal(x, at::arange(5, at::kFloat)));
  EXPECT_EQ(recorder.newest().sequence, 0u);
}

TEST(Parts, SplitAsTensorSplitDoes) {
  for (const int64_t numel : {0, 1, 2, 7, 8, 9, 1000}) {
    for (const int64_t ranks : {1, 2, 3, 8}) {
      const auto split = at::tensor_split(at::arange(numel), ranks);
      int64_t begin = 0;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        EXPECT_EQ(part_begin(numel, ranks, rank), begin);
        begin += split[static_cast<size_t>(rank)].numel();
      }
      EXPECT_EQ(part_begin(numel, ranks, ranks), numel);
    }
  }
}

}  // namespace
}  // namespace picotron
