// The mesh: who am I, and with whom do I talk.
//
// World of dp × pp × cp × tp ranks, tensor parallel innermost (neighbours on the fastest link):
//
//     global_rank = ((dp · pp_size + pp) · cp_size + cp) · tp_size + tp
//
// A Group is a set of ranks that communicate, seen from one of its members. A group of size 1 has
// no channel and its collectives are no-ops (dist/collectives.h), so no caller ever asks whether
// tp_size is 1. Groups are RAII and passed to whoever needs them; there is no global.
// Read next: dist/channel.h, dist/collectives.h.
#pragma once
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/record.h"

namespace c10d {
class Backend;
}  // namespace c10d

namespace picotron {

class Channel;    // dist/channel.h
class Heartbeat;  // dist/heartbeat.h

// One value per axis of the mesh.
struct AxisSizes {
  int dp = 1, pp = 1, cp = 1, tp = 1;
  int world() const { return dp * pp * cp * tp; }
};

struct Group {
  record::Axis axis = record::Axis::none;
  std::vector<int> global_ranks = {0};    // members in order of their rank in the group
  int rank = 0;                           // mine in the group
  std::shared_ptr<Channel> channel = {};  // null where size() == 1
  int size() const { return static_cast<int>(global_ranks.size()); }
};

// A stage's links to its neighbours in the ring of stages: each a group of two ranks, the sender
// first, on which tensors of one kind travel one way. So the n-th send meets the n-th receive, and
// no message waits for one of another link: NCCL runs the operations of a group one after another,
// and in a group of all stages a send would wait for the receive started before it. A link to
// oneself, where there is one stage, and one that nothing uses (from the first stage back, to the
// last one on, without chunks) has size 1.
struct PipelineGroups {
  Group activations_in = {}, activations_out = {};  // from the stage before, to the one after
  Group gradients_in = {}, gradients_out = {};      // from the stage after, to the one before
};

struct Mesh {
  AxisSizes sizes;              // of the mesh
  AxisSizes my = {0, 0, 0, 0};  // my coordinates
  int global_rank = 0;
  int world_size = 1;
  Group tp = {}, cp = {};
  PipelineGroups pipeline = {};
  Group dp_cp = {};  // gradients are summed, optimizer state is sharded over it; cp innermost
  Group world = {};  // norm, loss, decisions
  Group tied = {};   // along pp, first and last stage: both use a tied embedding, rank 0 owns it
  Group key_value = {};  // along tp: the ranks that hold the same key/value head
  bool is_first_stage() const { return my.pp == 0; }
  bool is_last_stage() const { return my.pp == sizes.pp - 1; }
};

// Creates the backend of one group: members meet in `store`, each as `rank` of `size`. Gloo's is in
// dist/gloo.h; NCCL's comes from the CUDA plug-in, which only the caller knows.
struct BackendRequest {
  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0, size = 1;
  std::chrono::milliseconds timeout{600'000};  // of each operation
};
using BackendFactory = std::function<c10::intrusive_ptr<c10d::Backend>(const BackendRequest&)>;

// Where this rank meets the others. `store` null: a world of one.
struct Rendezvous {
  int global_rank = 0;
  int world_size = 1;
  c10::intrusive_ptr<c10d::Store> store;
  std::string address = "127.0.0.1";  // by which the other ranks reach this one
  std::chrono::milliseconds timeout{600'000};
  BackendFactory backend = {};                // empty: Gloo on `address`
  std::shared_ptr<Heartbeat> heartbeat = {};  // null: errors of a group name no rank
};

// The mesh with coordinates swapped for a rank and back. `mesh_order` names the axes, outermost
// first, as in the config ("dp-pp-cp-tp"). Throws UserError where it does not name each axis once.
AxisSizes coordinates_of(int global_rank, const AxisSizes& sizes,
                         const std::string& mesh_order = "dp-pp-cp-tp");
int global_rank_of(const AxisSizes& coordinates, const AxisSizes& sizes,
                   const std::string& mesh_order = "dp-pp-cp-tp");
// "dp 1, tp 0": the coordinates on axes longer than 1, for messages. Empty in a world of one.
std::string place_of(int global_rank, const AxisSizes& sizes, const std::string& mesh_order);

struct MeshOptions {
  std::string order = "dp-pp-cp-tp";  // of the axes, innermost last
  int key_value_sharing = 1;          // ranks of tp that hold the same key/value head
  int pp_chunks = 1;                  // more: the last stage sends on to the first
};

// Creates every group of this rank. Every rank of the world must call it with equal sizes and
// options; returns when all have. Throws UserError if sizes.world() != rendezvous.world_size,
// RunError if a peer does not come in time.
Mesh make_mesh(const AxisSizes& sizes, const Rendezvous& rendezvous,
               const MeshOptions& options = {});

// A group of all ranks beside the mesh's own, for tensors of the CPU whatever the mesh is made of:
// what goes on in the background (checkpoints) must not come between the operations of training.
// Used in the background, a rank that waits in it does not count as waiting (dist/heartbeat.h).
// Every rank calls it.
Group make_cpu_world(const Rendezvous& rendezvous, const std::string& name, bool in_background);

// The mesh as make_mesh would give it to this rank, its groups without channels: for questions
// about a layout that nobody has started (train/plan.h).
Mesh describe_mesh(const AxisSizes& sizes, int global_rank, const MeshOptions& options = {});

}  // namespace picotron
