// The mesh: who am I, and with whom do I talk.
//
// World of dp × pp × cp × tp ranks, tensor parallel innermost (neighbours on the fastest link):
//
//     global_rank = ((dp · pp_size + pp) · cp_size + cp) · tp_size + tp
//
// A Group is a set of ranks that communicate, seen from one of its members. A group of size 1 has
// no backend and its collectives are no-ops (dist/collectives.h), so no caller ever asks `if
// (tp_size == 1)`. Groups are RAII and passed to whoever needs them; there is no global. Read next:
// dist/collectives.h.
#pragma once
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/record.h"

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace picotron {

// One value per axis of the mesh.
struct AxisSizes {
  int dp = 1, pp = 1, cp = 1, tp = 1;
  int world() const { return dp * pp * cp * tp; }
};

struct Group {
  record::Axis axis = record::Axis::none;
  std::vector<int> global_ranks = {0};     // members in order of their rank in the group
  int rank = 0;                            // mine in the group
  std::shared_ptr<c10d::Backend> backend;  // null where size() == 1
  int size() const { return static_cast<int>(global_ranks.size()); }
};

struct Mesh {
  AxisSizes sizes;  // of the mesh
  AxisSizes my;     // my coordinates (each counts from 0)
  int global_rank = 0;
  int world_size = 1;
  Group tp, cp, dp, pp;
  Group dp_cp;  // gradients are summed over it, optimizer state is sharded over it; cp innermost
  Group world;  // norm, loss, decisions
  bool is_first_stage() const { return my.pp == 0; }
  bool is_last_stage() const { return my.pp == sizes.pp - 1; }
};

// Where this rank meets the others. `store` null: a world of one.
struct Rendezvous {
  int global_rank = 0;
  int world_size = 1;
  c10::intrusive_ptr<c10d::Store> store;
  std::chrono::milliseconds timeout{600'000};
};

// Creates every group of this rank. Every rank of the world must call it with equal sizes and
// order. Throws UserError if sizes.world() != rendezvous.world_size, RunError if a peer does not
// come in time. `mesh_order`: axis names, outermost first, as in the config ("dp-pp-cp-tp").
Mesh make_mesh(const AxisSizes& sizes, const Rendezvous& rendezvous,
               const std::string& mesh_order = "dp-pp-cp-tp");

}  // namespace picotron
