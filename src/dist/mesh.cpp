// Ranks to coordinates and back, and one group per axis and per product of axes that the program
// reduces over.
#include "dist/mesh.h"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <algorithm>

#include "core/error.h"
#include "dist/channel.h"
#include "dist/collectives.h"
#include "dist/gloo.h"
#include "dist/heartbeat.h"

namespace picotron {
namespace {

struct AxisName {
  const char* name;
  int AxisSizes::*value;
};
constexpr std::array<AxisName, 4> kAxisNames = {{{"dp", &AxisSizes::dp},
                                                 {"pp", &AxisSizes::pp},
                                                 {"cp", &AxisSizes::cp},
                                                 {"tp", &AxisSizes::tp}}};

using Order = std::array<int AxisSizes::*, 4>;  // outermost first

Order parse_order(const std::string& mesh_order) {
  Order order{};
  std::array<bool, 4> seen{};
  bool valid = mesh_order.size() == 11;
  for (size_t place = 0; valid && place < 4; ++place) {
    const std::string name = mesh_order.substr(3 * place, 2);
    valid = place == 3 || mesh_order[3 * place + 2] == '-';
    const auto* axis =
        std::find_if(kAxisNames.begin(), kAxisNames.end(),
                     [&](const AxisName& candidate) { return candidate.name == name; });
    if (axis == kAxisNames.end() || std::exchange(seen[axis - kAxisNames.begin()], true)) {
      valid = false;
    } else {
      order[place] = axis->value;
    }
  }
  if (!valid) {
    throw user_error(
        "distributed.mesh_order \"{}\" must name dp, pp, cp and tp once each, as in \"{}\"",
        mesh_order, "dp-pp-cp-tp");
  }
  return order;
}

AxisSizes coordinates_in(int global_rank, const AxisSizes& sizes, const Order& order) {
  AxisSizes result;
  for (size_t place = order.size(); place-- > 0;) {
    result.*order[place] = global_rank % (sizes.*order[place]);
    global_rank /= sizes.*order[place];
  }
  return result;
}

int global_rank_in(const AxisSizes& coordinates, const AxisSizes& sizes, const Order& order) {
  int rank = 0;
  for (const auto axis : order) rank = rank * (sizes.*axis) + coordinates.*axis;
  return rank;
}

// The ranks that differ from `mine` on `axes` alone; the last axis counts fastest.
std::vector<int> members_along(const std::vector<int AxisSizes::*>& axes, const AxisSizes& mine,
                               const AxisSizes& sizes, const Order& order) {
  int count = 1;
  for (const auto axis : axes) count *= sizes.*axis;
  std::vector<int> members;
  for (int index = 0; index < count; ++index) {
    AxisSizes coordinates = mine;
    int rest = index;
    for (size_t i = axes.size(); i-- > 0;) {
      coordinates.*axes[i] = rest % (sizes.*axes[i]);
      rest /= sizes.*axes[i];
    }
    members.push_back(global_rank_in(coordinates, sizes, order));
  }
  return members;
}

// A backend reports after two beats of the heartbeat; together they keep the user's timeout.
std::chrono::milliseconds operation_timeout(std::chrono::milliseconds timeout) {
  return std::max(timeout / 2, timeout - Heartbeat::kBeatsToDiagnose * Heartbeat::kBeat -
                                   std::chrono::milliseconds(500));
}

Awaited no_one_waits() {
  return std::make_shared<std::atomic<uint64_t>>(0);
}

Awaited awaited_of(const Rendezvous& rendezvous) {
  return rendezvous.heartbeat != nullptr ? rendezvous.heartbeat->awaited() : no_one_waits();
}

// Gives a group its channel; every member calls it with the same name.
void connect(Group& group, const std::string& name, const BackendFactory& backend,
             const Rendezvous& rendezvous, const Awaited& awaited) {
  const auto diagnose = [heartbeat = rendezvous.heartbeat]() -> std::string {
    return heartbeat != nullptr ? heartbeat->diagnose() : "the connection to another rank failed";
  };
  try {
    group.channel = std::make_shared<Channel>(
        backend({.store = c10::make_intrusive<c10d::PrefixStore>("group/" + name, rendezvous.store),
                 .rank = group.rank,
                 .size = group.size(),
                 .timeout = operation_timeout(rendezvous.timeout)}),
        diagnose, awaited);
  } catch (const std::exception&) {
    throw LostRank(fmt::format("the ranks did not meet within {} s: {}",
                               rendezvous.timeout.count() / 1000, diagnose()));
  }
}

// Every group of this rank; `connect_group` gives one of more than one rank its channel. Every
// member of every group comes to it in one order; `name` tells groups apart.
using ConnectGroup = std::function<void(Group& group, const std::string& name)>;

Mesh build_mesh(const AxisSizes& sizes, int me, const MeshOptions& options,
                const ConnectGroup& connect_group) {
  const Order order = parse_order(options.order);
  Mesh mesh{.sizes = sizes,
            .my = coordinates_in(me, sizes, order),
            .global_rank = me,
            .world_size = sizes.world()};
  const auto join = [&](record::Axis axis, const std::vector<int>& members,
                        const std::string& name) {
    Group group{.axis = axis, .global_ranks = members};
    const auto mine = std::find(group.global_ranks.begin(), group.global_ranks.end(), me);
    group.rank = static_cast<int>(mine - group.global_ranks.begin());
    if (group.size() > 1) connect_group(group, name);
    return group;
  };
  const auto make_group = [&](record::Axis axis, const std::vector<int AxisSizes::*>& axes) {
    const std::vector<int> members = members_along(axes, mesh.my, sizes, order);
    // Groups of one axis have no rank in common, so the first member tells them apart.
    return join(axis, members, fmt::format("{}/{}", record::name_of(axis), members.front()));
  };
  // In `order`, so that a rank in the world's group is its global rank.
  mesh.world = make_group(record::Axis::world, {order.begin(), order.end()});
  mesh.tp = make_group(record::Axis::tp, {&AxisSizes::tp});
  mesh.cp = make_group(record::Axis::cp, {&AxisSizes::cp});
  mesh.dp_cp = make_group(record::Axis::dp_cp, {&AxisSizes::dp, &AxisSizes::cp});

  const std::vector<int> stages = members_along({&AxisSizes::pp}, mesh.my, sizes, order);
  for (const bool activations : {true, false}) {
    PipelineGroups& pipeline = mesh.pipeline;
    Group& up = activations ? pipeline.activations_in : pipeline.gradients_out;
    Group& down = activations ? pipeline.activations_out : pipeline.gradients_in;
    for (Group* alone : {&up, &down}) *alone = {.axis = record::Axis::pp, .global_ranks = {me}};
    // Link i is between stages i and i + 1. By i, so that no ring of ranks waits for each other.
    for (int i = 0; i < sizes.pp && sizes.pp > 1; ++i) {
      const int next = (i + 1) % sizes.pp;
      if ((next == 0 && options.pp_chunks == 1) || (mesh.my.pp != i && mesh.my.pp != next))
        continue;
      std::vector<int> members = {stages[static_cast<size_t>(i)],
                                  stages[static_cast<size_t>(next)]};
      if (!activations) std::swap(members[0], members[1]);
      (mesh.my.pp == i ? down : up) =
          join(record::Axis::pp, members,
               fmt::format("pp {}/{}", activations ? "activations" : "gradients", members[0]));
    }
  }

  std::vector<int> ends = {me};
  if (sizes.pp > 1 && (mesh.is_first_stage() || mesh.is_last_stage()))
    ends = {stages.front(), stages.back()};
  mesh.tied = join(record::Axis::pp, ends, fmt::format("tied/{}", ends.front()));
  const auto first = mesh.tp.global_ranks.begin() +
                     mesh.my.tp / options.key_value_sharing * options.key_value_sharing;
  mesh.key_value = join(record::Axis::tp, {first, first + options.key_value_sharing},
                        fmt::format("key_value/{}", *first));
  return mesh;
}

}  // namespace

AxisSizes coordinates_of(int global_rank, const AxisSizes& sizes, const std::string& mesh_order) {
  return coordinates_in(global_rank, sizes, parse_order(mesh_order));
}

int global_rank_of(const AxisSizes& coordinates, const AxisSizes& sizes,
                   const std::string& mesh_order) {
  return global_rank_in(coordinates, sizes, parse_order(mesh_order));
}

std::string place_of(int global_rank, const AxisSizes& sizes, const std::string& mesh_order) {
  const AxisSizes coordinates = coordinates_of(global_rank, sizes, mesh_order);
  std::string place;
  for (const auto& [name, axis] : kAxisNames) {
    if (sizes.*axis == 1) continue;
    place += fmt::format("{}{} {}", place.empty() ? "" : ", ", name, coordinates.*axis);
  }
  return place;
}

Mesh make_mesh(const AxisSizes& sizes, const Rendezvous& rendezvous, const MeshOptions& options) {
  if (sizes.world() != rendezvous.world_size) {
    throw user_error(
        "the config's dp {} · pp {} · cp {} · tp {} = {} ranks, but {} were started; "
        "start {} or change the sizes",
        sizes.dp, sizes.pp, sizes.cp, sizes.tp, sizes.world(), rendezvous.world_size,
        sizes.world());
  }
  const std::shared_ptr<Heartbeat> heartbeat = rendezvous.heartbeat;
  if (heartbeat != nullptr) {
    heartbeat->set_places(
        [=, axes = options.order](int rank) { return place_of(rank, sizes, axes); });
  }
  const Awaited awaited = awaited_of(rendezvous);
  const BackendFactory backend = rendezvous.world_size == 1 ? BackendFactory()
                                 : rendezvous.backend       ? rendezvous.backend
                                                            : gloo_backend(rendezvous.address);
  Mesh mesh = build_mesh(sizes, rendezvous.global_rank, options,
                         [&](Group& group, const std::string& name) {
                           connect(group, name, backend, rendezvous, awaited);
                         });
  // A rank that were done at once would close its connections while others still open theirs.
  barrier(mesh.world);
  return mesh;
}

Group make_cpu_world(const Rendezvous& rendezvous, const std::string& name, bool in_background) {
  Group group{.axis = record::Axis::world, .global_ranks = {}, .rank = rendezvous.global_rank};
  for (int rank = 0; rank < rendezvous.world_size; ++rank) group.global_ranks.push_back(rank);
  if (group.size() == 1) return group;
  connect(group, name, gloo_backend(rendezvous.address), rendezvous,
          in_background ? no_one_waits() : awaited_of(rendezvous));
  barrier(group);
  return group;
}

Mesh describe_mesh(const AxisSizes& sizes, int global_rank, const MeshOptions& options) {
  return build_mesh(sizes, global_rank, options, [](Group&, const std::string&) {});
}

}  // namespace picotron
