// Tensors cut as the ranks hold them, whole as files hold them.
//
// Each element of the model has one owner, the rank that steps on it: of tp and pp the one that has
// the shard, of the replicas in dp×cp the one whose part of the bucket it is (ZeRO-1). What it owns
// of a Parameter is a run of elements of its shard, row-major:
//
//     whole tensor, in a file        shard of tp 1 (dim 1)       owned by dp 0 | by dp 1
//     ┌─────────┬─────────┐          ┌─────────┐                 ┌─────────┐
//     │ · · · · │ a b c d │          │ a b c d │                 │ a b c d │
//     │ · · · · │ e f g h │   ◀──▶   │ e f g h │     ◀──▶        │ e f│g h │    a…f | g…l
//     │ · · · · │ i j k l │          │ i j k l │                 │ i j k l │
//     └─────────┴─────────┘          └─────────┘                 └─────────┘
//
// Writing: each file has one writer, chosen among its owners so that all write about as much. A
// tensor is put together there in pieces of at most 32 MB, each checksummed and written while the
// next one comes in; so no rank holds more than two pieces that are not its own. Reading: each rank
// maps the files and copies the elements that it needs. Neither knows anything of layouts, so what
// was written in one is read in any other. Read next: checkpoint/saver.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/safetensors.h"
#include "dist/mesh.h"
#include "parallel/data_parallel.h"
#include "parallel/parameter.h"

namespace picotron {

// Elements [begin, end) of the local part of a Parameter, row-major.
struct LocalPart {
  const Parameter* parameter = nullptr;
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
// What lies in `ranges` of the flat buffers.
std::vector<LocalPart> parts_within(const Parameters& parameters, const std::vector<Range>& ranges);

// One value for each element of the model: its weights, a moment of the optimizer.
struct ShardedTensors {
  std::string folder;  // within a checkpoint: "optimizer/exp_avg"
  at::ScalarType held = at::kFloat, stored = at::kFloat;  // here, and in the files
  std::function<at::Tensor(const LocalPart&)> values;     // a view of them: 1-D, contiguous
};

// Name and whole shape of every tensor of the model.
using TensorShapes = std::map<std::string, std::vector<int64_t>>;

class ShardedWriter {
 public:
  // Collective over `world` (of tensors on the CPU): everybody learns who owns what. `parts`: what
  // this rank steps on. All outlive this object.
  ShardedWriter(const TensorShapes& shapes, const std::vector<LocalPart>& parts,
                const Group& world);

  // Collective. Writes the tensors below `checkpoint`, whose folders exist, each file flushed to
  // the disk. Returns the records of all files on rank 0, an empty list elsewhere. Where a rank
  // cannot write, all throw the same RunError.
  std::map<std::string, FileRecord> write(const std::filesystem::path& checkpoint,
                                          const std::vector<ShardedTensors>& tensors) const;
  // Of the files of one folder: what transformers calls the index, from tensors to files.
  std::string index(const ShardedTensors& tensors) const;

 private:
  struct Owner {
    int rank;
    Shard shard;
    int64_t begin, end;
  };
  struct File {
    std::string name = {};                  // "model-00002-of-00008.safetensors"
    std::vector<std::string> tensors = {};  // in order
    int writer = 0;
  };
  // Some rows of a tensor on the way to their file.
  struct Piece {
    const ShardedTensors* tensors;
    const File* file;
    std::string name;                    // of the tensor
    int64_t begin, end;                  // rows
    bool opens = false, closes = false;  // is the first, the last of its file
  };
  void exchange_owners(const std::vector<LocalPart>& parts);
  void choose_writers();
  std::vector<Piece> pieces_of(int writer, const std::vector<ShardedTensors>& tensors) const;
  // Moves the parts of one piece of each writer; returns mine, whole, or nothing where I write
  // none.
  at::Tensor assemble(const std::vector<const Piece*>& by_writer) const;
  std::vector<TensorHeader> headers(const ShardedTensors& tensors, const File& file) const;

  const TensorShapes& shapes_;
  const Group& world_;
  std::map<std::string, std::vector<Owner>> owners_;  // by tensor
  std::map<std::string, const Parameter*> mine_;      // by tensor: where I am an owner
  std::vector<File> files_;                           // embedding, layers, norm, head
};

// Copies elements [begin, end) of a Parameter's local part out of a mapped file, converted to
// out's dtype. out: 1-D, of as many elements. Touched pages of the file are given back.
void read_part(const StoredTensor& stored, const LocalPart& part, const at::Tensor& out);

// Fills the tensors' values of `parts` from their folder of a checkpoint, which holds every tensor
// of the model in its shape. UserError naming the file and the tensor.
void read_sharded(const std::filesystem::path& checkpoint, const TensorShapes& shapes,
                  const ShardedTensors& tensors, const std::vector<LocalPart>& parts);

// Collective: where any rank brings a sentence of what went wrong, all throw RunError with that of
// the lowest such rank.
void agree(const std::string& error, const Group& world);
// Runs `action` on one rank while the others wait, then agrees.
void on_rank(int rank, const Group& world, const std::function<void()>& action);

}  // namespace picotron
