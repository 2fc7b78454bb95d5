// Coordinates and groups of the mesh, for many sizes and orders.
#include "dist/mesh.h"

#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <set>

#include "core/error.h"
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
    const Mesh mesh = make_mesh(sizes, rendezvous, order);
    EXPECT_EQ(mesh.tp.size(), sizes.tp);
    EXPECT_EQ(mesh.cp.size(), sizes.cp);
    EXPECT_EQ(mesh.dp.size(), sizes.dp);
    EXPECT_EQ(mesh.pp.size(), sizes.pp);
    EXPECT_EQ(mesh.dp_cp.size(), sizes.dp * sizes.cp);
    EXPECT_EQ(mesh.dp_cp.rank, mesh.my.dp * sizes.cp + mesh.my.cp);
    EXPECT_EQ(mesh.tp.rank, mesh.my.tp);
    EXPECT_EQ(mesh.world.rank, mesh.global_rank);
    for (const Group* group : {&mesh.tp, &mesh.cp, &mesh.dp, &mesh.pp, &mesh.dp_cp, &mesh.world}) {
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

}  // namespace
}  // namespace picotron
