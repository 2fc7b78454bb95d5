// Coordinates and groups of the mesh, for many sizes and orders.
#include "dist/mesh.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <set>

#include "core/error.h"
#include "dist/collectives.h"
#include "dist/heartbeat.h"
#include "dist_ranks.h"

namespace picotron {
namespace {

using testing::run_ranks;

TEST(MeshCoordinates, TensorParallelIsInnermost) {
  const AxisSizes sizes{.dp = 2, .pp = 3, .cp = 2, .tp = 4};
  for (int rank = 0; rank < sizes.world(); ++rank) {
    const AxisSizes my = coordinates_of(rank, sizes);
    EXPECT_EQ(rank, ((my.dp * sizes.pp + my.pp) * sizes.cp + my.cp) * sizes.tp + my.tp);
    EXPECT_EQ(rank, global_rank_of(my, sizes));
  }
}

TEST(MeshCoordinates, OrderIsTheConfigs) {
  const AxisSizes sizes{.dp = 2, .pp = 3, .cp = 2, .tp = 4};
  for (const char* order : {"tp-cp-pp-dp", "pp-dp-cp-tp", "cp-tp-dp-pp"}) {
    std::set<int> seen;
    for (int rank = 0; rank < sizes.world(); ++rank) {
      const AxisSizes my = coordinates_of(rank, sizes, order);
      EXPECT_EQ(rank, global_rank_of(my, sizes, order));
      seen.insert(((my.dp * sizes.pp + my.pp) * sizes.cp + my.cp) * sizes.tp + my.tp);
    }
    EXPECT_EQ(seen.size(), 48u);
  }
  EXPECT_EQ(coordinates_of(1, sizes, "tp-cp-pp-dp").dp, 1);
  EXPECT_EQ(place_of(29, sizes, "dp-pp-cp-tp"), "dp 1, pp 0, cp 1, tp 1");
  EXPECT_EQ(place_of(1, {.dp = 2}, "dp-pp-cp-tp"), "dp 1");
}

TEST(MeshCoordinates, AWrongOrderIsAUserError) {
  for (const char* order :
       {"", "dp-pp-cp", "dp-pp-cp-cp", "dp-pp-cp-xx", "dp_pp_cp_tp", "dp-pp-cp-tp-"}) {
    EXPECT_THROW(coordinates_of(0, {}, order), UserError) << order;
  }
}

TEST(MeshWorld, MustAgreeWithTheConfig) {
  Rendezvous three;
  three.world_size = 3;
  try {
    make_mesh({.dp = 2, .tp = 2}, three);
    FAIL();
  } catch (const UserError& error) {
    const std::string sentence = error.what();
    EXPECT_NE(sentence.find("= 4 ranks"), std::string::npos) << sentence;
    EXPECT_NE(sentence.find("but 3 were started"), std::string::npos) << sentence;
  }
}

struct Layout {
  AxisSizes sizes;
  const char* order;
};
// What CTest shows beside the name.
void PrintTo(const Layout& layout, std::ostream* out) {
  const auto& [dp, pp, cp, tp] = layout.sizes;
  *out << "dp " << dp << " pp " << pp << " cp " << cp << " tp " << tp << " as " << layout.order;
}
class MeshGroups : public ::testing::TestWithParam<Layout> {};

// Every member of a group must hold the same list, itself at its own place, and groups of an axis
// cover the world.
TEST_P(MeshGroups, AgreeAmongRanks) {
  const auto [sizes, order] = GetParam();
  std::mutex mutex;
  std::map<record::Axis, std::map<int, std::vector<int>>> lists;
  run_ranks(sizes.world(), [&, sizes = sizes, order = order](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh(sizes, rendezvous, {.order = order});
    EXPECT_EQ(mesh.tp.size(), sizes.tp);
    EXPECT_EQ(mesh.cp.size(), sizes.cp);
    EXPECT_EQ(mesh.dp_cp.size(), sizes.dp * sizes.cp);
    EXPECT_EQ(mesh.dp_cp.rank, mesh.my.dp * sizes.cp + mesh.my.cp);
    EXPECT_EQ(mesh.tp.rank, mesh.my.tp);
    EXPECT_EQ(mesh.world.rank, mesh.global_rank);
    for (const Group* group : {&mesh.tp, &mesh.cp, &mesh.dp_cp, &mesh.world}) {
      EXPECT_EQ(group->channel == nullptr, group->size() == 1);
      EXPECT_EQ(group->global_ranks[static_cast<size_t>(group->rank)], mesh.global_rank);
      const std::lock_guard lock(mutex);
      lists[group->axis][mesh.global_rank] = group->global_ranks;
    }
  });
  for (const auto& [axis, by_rank] : lists) {
    EXPECT_EQ(by_rank.size(), static_cast<size_t>(sizes.world()));
    for (const auto& [rank, list] : by_rank) {
      for (const int member : list) EXPECT_EQ(by_rank.at(member), list) << record::name_of(axis);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(
    Layouts, MeshGroups,
    ::testing::Values(Layout{{.dp = 1}, "dp-pp-cp-tp"}, Layout{{.dp = 3}, "dp-pp-cp-tp"},
                      Layout{{.dp = 2, .tp = 2}, "dp-pp-cp-tp"},
                      Layout{{.pp = 2, .cp = 3}, "dp-pp-cp-tp"},
                      Layout{{.dp = 2, .pp = 2, .cp = 2, .tp = 2}, "dp-pp-cp-tp"},
                      Layout{{.dp = 2, .pp = 2, .tp = 3}, "tp-cp-dp-pp"}));

// Along pp each link of two neighbours is two groups, the sender first; the ring is closed for
// chunks alone. In each a message arrives that says who sent it.
class PipelineLinks : public ::testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(PipelineLinks, JoinNeighbours) {
  const auto [stages, chunks] = GetParam();
  const AxisSizes sizes{.dp = 2, .pp = stages};
  run_ranks(sizes.world(), [&, p = stages, c = chunks](const Rendezvous& rendezvous) {
    const Mesh mesh = make_mesh(sizes, rendezvous, {.pp_chunks = c});
    const int me = mesh.my.pp;
    const bool ring = p > 1 && c > 1;
    const auto rank_of = [&](int stage) {
      return global_rank_of({mesh.my.dp, stage, 0, 0}, sizes);
    };
    const auto expect = [&](const Group& group, int sender, int receiver) {
      const bool outside = sender < 0 || sender >= p || receiver < 0 || receiver >= p;
      const std::vector<int> members =
          p == 1 || (outside && !ring)
              ? std::vector{mesh.global_rank}
              : std::vector{rank_of((sender + p) % p), rank_of((receiver + p) % p)};
      EXPECT_EQ(group.global_ranks, members);
      EXPECT_EQ(group.axis, record::Axis::pp);
      EXPECT_EQ(group.channel == nullptr, members.size() == 1);
      EXPECT_EQ(members[static_cast<size_t>(group.rank)], mesh.global_rank);
    };
    const PipelineGroups& links = mesh.pipeline;
    expect(links.activations_in, me - 1, me);
    expect(links.activations_out, me, me + 1);
    expect(links.gradients_in, me + 1, me);
    expect(links.gradients_out, me, me - 1);
    std::vector<Work> works;
    for (const Group* out : {&links.activations_out, &links.gradients_out}) {
      if (out->size() > 1) works.push_back(send(at::full({1}, mesh.global_rank), 1, *out));
    }
    for (const Group* in : {&links.activations_in, &links.gradients_in}) {
      if (in->size() == 1) continue;
      const at::Tensor from = at::full({1}, -1);
      receive(from, 0, *in).wait();
      EXPECT_EQ(from.item<int64_t>(), in->global_ranks[0]);
    }
    for (Work& work : works) work.wait();
  });
}
INSTANTIATE_TEST_SUITE_P(Sizes, PipelineLinks,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4),
                                            ::testing::Values(1, 2)));

}  // namespace
}  // namespace picotron
