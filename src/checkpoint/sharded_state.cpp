// Rectangles of tensors, who owns which, and pieces on their way to the disk and back.
#include "checkpoint/sharded_state.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <future>
#include <memory>
#include <numeric>

#include "checkpoint/stored_types.h"
#include "core/error.h"
#include "core/files.h"
#include "dist/collectives.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceBytes = int64_t{32} << 20;
constexpr int64_t kReadBytes = int64_t{32} << 20;
constexpr size_t kFilesBehind = 3;  // that the disk works on while the next is being written

// A whole tensor as rows: [rows, columns], a vector as one column.
struct Rows {
  int64_t rows, columns;
  explicit Rows(const std::vector<int64_t>& shape)
      : rows(shape.at(0)), columns(shape.size() > 1 ? shape[1] : 1) {
    check(shape.size() <= 2, "tensors of the model are vectors and matrices");
  }
};

// Where a shard's elements are in the rows of the whole: element i of the local part is in row
// row + i / width, column + i mod width.
struct Place {
  int64_t row, column, width;
  Place(const Shard& shard, const Rows& whole)
      : row(shard.dim == 0 ? shard.begin : 0),
        column(shard.dim == 0 ? 0 : shard.begin),
        width(shard.dim == 0 ? whole.columns : shard.end - shard.begin) {}
};

// Elements [begin, end) of a local part as at most three rectangles of `rows`, which begin at row
// `first_row` of the whole: the end of a row, full rows, the beginning of one.
void for_each_rectangle(
    const at::Tensor& rows, int64_t first_row, const Place& place, int64_t begin, int64_t end,
    const std::function<void(const at::Tensor& rectangle, int64_t offset)>& visit) {
  for (int64_t i = begin; i < end;) {
    const int64_t row = place.row + i / place.width - first_row, column = i % place.width;
    const bool full = column == 0 && end - i >= place.width;
    const int64_t height = full ? (end - i) / place.width : 1;
    const int64_t width = full ? place.width : std::min(place.width - column, end - i);
    visit(rows.narrow(0, row, height).narrow(1, place.column + column, width), i - begin);
    i += height * width;
  }
}

// The embedding, each layer, the last norm and the head: a file each, in the order of the model.
int64_t file_number(const std::string& name, int64_t layers) {
  constexpr std::string_view kLayers = "model.layers.";
  if (name.starts_with(kLayers)) return 1 + std::stoll(name.substr(kLayers.size()));
  if (name.starts_with("model.embed_tokens")) return 0;
  return name.starts_with("model.norm") ? layers + 1 : layers + 2;
}

}  // namespace

std::vector<LocalPart> parts_within(const Parameters& parameters,
                                    const std::vector<Range>& ranges) {
  std::vector<LocalPart> parts;
  for (const Range& range : ranges) {
    for (const Parameter& parameter : parameters.list()) {
      const int64_t begin = std::max(range.begin, parameter.offset) - parameter.offset;
      const int64_t end =
          std::min(range.end, parameter.offset + parameter.numel()) - parameter.offset;
      if (begin < end) parts.push_back({&parameter, begin, end});
    }
  }
  return parts;
}

void agree(const std::string& error, const Group& world) {
  const at::Tensor failed = at::zeros({world.size()}, at::kByte);
  if (!error.empty()) failed[world.rank] = 1;
  all_gather(failed, world).wait();
  const auto* flags = failed.const_data_ptr<uint8_t>();
  const auto* first = std::find(flags, flags + world.size(), 1);
  if (first == flags + world.size()) return;
  const int speaker = static_cast<int>(first - flags);
  const at::Tensor text = at::zeros({1000}, at::kByte);
  if (speaker == world.rank)
    error.copy(static_cast<char*>(text.data_ptr()), static_cast<size_t>(text.numel()) - 1);
  broadcast(text, speaker, world).wait();
  throw RunError(static_cast<const char*>(text.const_data_ptr()));
}

void on_rank(int rank, const Group& world, const std::function<void()>& action) {
  std::string error;
  try {
    if (world.rank == rank) action();
  } catch (const std::exception& caught) {
    error = plain_sentence(caught.what());
  }
  agree(error, world);
}

// ------------------------------------------------------------------------------------ writing

ShardedWriter::ShardedWriter(const TensorShapes& shapes, const std::vector<LocalPart>& parts,
                             const Group& world)
    : shapes_(shapes), world_(world) {
  exchange_owners(parts);
  int64_t layers = 0;
  for (const auto& [name, shape] : shapes)
    if (name.starts_with("model.layers.")) layers = std::max(layers, file_number(name, 0));
  std::map<int64_t, File> by_number;
  for (const auto& [name, shape] : shapes)
    by_number[file_number(name, layers)].tensors.push_back(name);
  for (auto& [number, file] : by_number) {
    file.name =
        fmt::format("model-{:05}-of-{:05}.safetensors", files_.size() + 1, by_number.size());
    files_.push_back(std::move(file));
  }
  choose_writers();
}

void ShardedWriter::exchange_owners(const std::vector<LocalPart>& parts) {
  // Rows of numbers: which tensor, its shard's dim, begin and end, the owned elements' begin and
  // end.
  constexpr int64_t kNumbers = 6;
  std::vector<int64_t> table;
  for (const LocalPart& part : parts) {
    const Parameter& parameter = *part.parameter;
    const auto found = shapes_.find(parameter.name);
    // Of ranks that hold the same elements, in tp or as a tied embedding, one counts.
    if (!parameter.counts_in_norm || found == shapes_.end()) continue;
    mine_[parameter.name] = &parameter;
    const Shard& shard = parameter.shard;
    table.insert(table.end(), {std::distance(shapes_.begin(), found), shard.dim, shard.begin,
                               shard.end, part.begin, part.end});
  }
  const at::Tensor lengths = at::zeros({world_.size()}, at::kLong);
  lengths[world_.rank] = static_cast<int64_t>(table.size());
  all_gather(lengths, world_).wait();
  const auto longest = lengths.max().item<int64_t>();
  const at::Tensor tables = at::zeros({world_.size() * longest}, at::kLong);
  std::copy(table.begin(), table.end(), tables.data_ptr<int64_t>() + world_.rank * longest);
  all_gather(tables, world_).wait();

  std::map<std::string, int64_t> numel;
  for (int rank = 0; rank < world_.size(); ++rank) {
    const int64_t* row = tables.const_data_ptr<int64_t>() + rank * longest;
    const int64_t* end = row + lengths[rank].item<int64_t>();
    for (; row < end; row += kNumbers) {
      const std::string& name = std::next(shapes_.begin(), row[0])->first;
      owners_[name].push_back({rank, {row[1], row[2], row[3]}, row[4], row[5]});
      numel[name] += row[5] - row[4];
    }
  }
  for (const auto& [name, shape] : shapes_) {
    const int64_t whole =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    check(numel[name] == whole, fmt::format("the owned parts of {} make the whole of it: of its {} "
                                            "elements, {} are owned",
                                            name, whole, numel[name]));
  }
}

void ShardedWriter::choose_writers() {
  std::vector<int64_t> load(static_cast<size_t>(world_.size()), 0);
  for (File& file : files_) {
    int64_t numel = 0;
    std::vector<int> owners;
    for (const std::string& name : file.tensors) {
      for (const Owner& owner : owners_.at(name)) {
        numel += owner.end - owner.begin;
        owners.push_back(owner.rank);
      }
    }
    file.writer = *std::min_element(owners.begin(), owners.end(), [&](int a, int b) {
      return std::pair(load[static_cast<size_t>(a)], a) <
             std::pair(load[static_cast<size_t>(b)], b);
    });
    load[static_cast<size_t>(file.writer)] += numel;
  }
}

std::vector<TensorHeader> ShardedWriter::headers(const ShardedTensors& tensors,
                                                 const File& file) const {
  std::vector<TensorHeader> result;
  for (const std::string& name : file.tensors)
    result.push_back({name, stored_type(tensors.stored), shapes_.at(name)});
  return result;
}

std::string ShardedWriter::index(const ShardedTensors& tensors) const {
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  int64_t bytes = 0;
  for (const File& file : files_) {
    for (const TensorHeader& tensor : headers(tensors, file)) {
      weight_map[tensor.name] = file.name;
      bytes += tensor.bytes();
    }
  }
  const nlohmann::ordered_json root = {{"metadata", {{"total_size", bytes}}},
                                       {"weight_map", weight_map}};
  return root.dump(2) + "\n";
}

std::vector<ShardedWriter::Piece> ShardedWriter::pieces_of(
    int writer, const std::vector<ShardedTensors>& tensors) const {
  std::vector<Piece> pieces;
  for (const ShardedTensors& kind : tensors) {
    const auto element = static_cast<int64_t>(c10::elementSize(kind.held));
    for (const File& file : files_) {
      if (file.writer != writer) continue;
      const size_t first = pieces.size();
      for (const std::string& name : file.tensors) {
        const Rows whole(shapes_.at(name));
        const int64_t step = std::max<int64_t>(1, kPieceBytes / (element * whole.columns));
        for (int64_t begin = 0; begin < whole.rows; begin += step)
          pieces.push_back({&kind, &file, name, begin, std::min(begin + step, whole.rows)});
      }
      pieces[first].opens = true;
      pieces.back().closes = true;
    }
  }
  return pieces;
}

at::Tensor ShardedWriter::assemble(const std::vector<const Piece*>& by_writer) const {
  std::vector<Work> sends, receives;
  std::vector<std::function<void()>> arrivals;  // what is to be done with what has been received
  at::Tensor whole_piece;
  for (int writer = 0; writer < world_.size(); ++writer) {
    const Piece* piece = by_writer[static_cast<size_t>(writer)];
    if (piece == nullptr) continue;
    const Rows whole(shapes_.at(piece->name));
    const bool writes = writer == world_.rank;
    for (const Owner& owner : owners_.at(piece->name)) {
      const bool owns = owner.rank == world_.rank;
      const Place place(owner.shard, whole);
      const int64_t begin = std::max(owner.begin, (piece->begin - place.row) * place.width);
      const int64_t end = std::min(owner.end, (piece->end - place.row) * place.width);
      if ((!writes && !owns) || begin >= end) continue;
      at::Tensor part;
      if (owns) {
        part = piece->tensors->values({mine_.at(piece->name), begin, end}).to(at::kCPU);
        if (!writes) {
          sends.push_back(send(part, writer, world_));
          continue;
        }
        if (part.numel() == (piece->end - piece->begin) * whole.columns) {
          whole_piece = part;  // as it lies: nothing is copied
          continue;
        }
      } else {
        part = at::empty({end - begin}, piece->tensors->held);
        receives.push_back(receive(part, owner.rank, world_));
      }
      if (!whole_piece.defined())
        whole_piece = at::empty({piece->end - piece->begin, whole.columns}, part.options());
      arrivals.emplace_back([whole_piece, piece, place, begin, end, part] {
        for_each_rectangle(whole_piece, piece->begin, place, begin, end,
                           [&](const at::Tensor& rectangle, int64_t offset) {
                             const at::Tensor run = part.narrow(0, offset, rectangle.numel());
                             rectangle.copy_(run.view(rectangle.sizes()));
                           });
      });
    }
  }
  for (Work& received : receives) received.wait();
  for (const auto& arrive : arrivals) arrive();
  for (Work& sent : sends) sent.wait();
  return whole_piece;
}

namespace {

// The files that a rank writes, one after the other, behind its back: while a piece goes to the
// disk, the next comes together. The disk works on one file while the next is being written, and is
// waited for at the end. Once something has failed, what comes is dropped, for the others go on
// sending; then all agree.
class Output {
 public:
  // Starts `write`, which calls open(), append() and close(), when the one before has ended.
  void behind(std::function<void()> write) {
    wait();
    writing_ = std::async(std::launch::async, [this, write = std::move(write)] { attempt(write); });
  }
  void open(const fs::path& file, std::vector<TensorHeader> headers) {
    files_.push_back(std::make_unique<NewFile>(file));
    files_.back()->append(safetensors_header(headers, {{"format", "pt"}}));
  }
  void append(const at::Tensor& values) { files_.back()->append(bytes_of(values)); }
  void close() {
    files_.back()->flush_behind();
    if (files_.size() > kFilesBehind) files_[files_.size() - 1 - kFilesBehind]->flush_behind();
  }
  // On the disk under their names, when this returns. Paths are relative to `checkpoint`.
  nlohmann::json commit(const fs::path& checkpoint) {
    wait();
    nlohmann::json records = nlohmann::json::object();
    attempt([&] {
      for (const auto& file : files_) {
        file->commit();
        records[file->path().lexically_relative(checkpoint).string()] = {file->bytes(),
                                                                         file->checksum()};
      }
    });
    return records;
  }
  const std::string& error() const { return error_; }  // after commit()

 private:
  void wait() {
    if (writing_.valid()) writing_.get();
  }
  void attempt(const std::function<void()>& action) {
    if (!error_.empty()) return;
    try {
      action();
    } catch (const std::exception& error) {
      error_ = plain_sentence(error.what());
    }
  }
  std::vector<std::unique_ptr<NewFile>> files_;
  std::string error_;
  std::future<void> writing_;  // the last member: its end is waited for before the others go
};

// Everybody's text, on rank 0.
std::vector<std::string> gather_texts(const std::string& mine, const Group& world) {
  const at::Tensor lengths = at::zeros({world.size()}, at::kLong);
  lengths[world.rank] = static_cast<int64_t>(mine.size());
  all_gather(lengths, world).wait();
  if (world.rank != 0) {
    const at::Tensor text = at::zeros({static_cast<int64_t>(mine.size())}, at::kByte);
    mine.copy(static_cast<char*>(text.data_ptr()), mine.size());
    send(text, 0, world).wait();
    return {};
  }
  std::vector<std::string> texts = {mine};
  for (int rank = 1; rank < world.size(); ++rank) {
    const at::Tensor text = at::zeros({lengths[rank].item<int64_t>()}, at::kByte);
    receive(text, rank, world).wait();
    texts.emplace_back(static_cast<const char*>(text.const_data_ptr()), text.nbytes());
  }
  return texts;
}

}  // namespace

std::map<std::string, FileRecord> ShardedWriter::write(
    const fs::path& checkpoint, const std::vector<ShardedTensors>& tensors) const {
  // Every rank walks the same lists: in round r the r-th piece of each writer comes together.
  std::vector<std::vector<Piece>> pieces;
  size_t rounds = 0;
  for (int writer = 0; writer < world_.size(); ++writer) {
    pieces.push_back(pieces_of(writer, tensors));
    rounds = std::max(rounds, pieces.back().size());
  }
  Output output;
  for (size_t round = 0; round < rounds; ++round) {
    std::vector<const Piece*> by_writer;
    for (const auto& list : pieces)
      by_writer.push_back(round < list.size() ? &list[round] : nullptr);
    const at::Tensor values = assemble(by_writer);
    const Piece* piece = by_writer[static_cast<size_t>(world_.rank)];
    if (piece == nullptr) continue;
    output.behind([&, piece, values = values.to(piece->tensors->stored).contiguous()] {
      if (piece->opens)
        output.open(checkpoint / piece->tensors->folder / piece->file->name,
                    headers(*piece->tensors, *piece->file));
      output.append(values);
      if (piece->closes) output.close();
    });
  }
  const nlohmann::json records = output.commit(checkpoint);
  agree(output.error(), world_);
  std::map<std::string, FileRecord> all;
  for (const std::string& text : gather_texts(records.dump(), world_)) {
    const nlohmann::json of_rank = nlohmann::json::parse(text);
    for (const auto& [path, record] : of_rank.items())
      all[path] = {record[0].get<int64_t>(), record[1].get<std::string>()};
  }
  return all;
}

// ------------------------------------------------------------------------------------ reading

void read_part(const StoredTensor& stored, const LocalPart& part, const at::Tensor& out) {
  const Rows whole(stored.shape);
  const Place place(part.parameter->shard, whole);
  const at::Tensor rows = view_of(stored).view({whole.rows, whole.columns});
  const int64_t step = kReadBytes / rows.element_size();
  for (int64_t begin = part.begin; begin < part.end; begin += step) {
    const int64_t end = std::min(begin + step, part.end);
    for_each_rectangle(rows, 0, place, begin, end,
                       [&](const at::Tensor& rectangle, int64_t offset) {
                         out.narrow(0, begin - part.begin + offset, rectangle.numel())
                             .view(rectangle.sizes())
                             .copy_(rectangle);
                       });
    release_pages(stored.bytes);
  }
}

void read_sharded(const fs::path& checkpoint, const TensorShapes& shapes,
                  const ShardedTensors& tensors, const std::vector<LocalPart>& parts) {
  const SafetensorsFolder folder(checkpoint / tensors.folder);
  for (const auto& [name, stored] : folder.tensors()) {
    if (!shapes.contains(name))
      throw user_error("{}: the model has no tensor {}; is the checkpoint of another architecture?",
                       folder.file_of(name).string(), name);
  }
  for (const auto& [name, shape] : shapes) {
    const auto found = folder.tensors().find(name);
    if (found == folder.tensors().end()) {
      throw user_error("{} has no tensor {}; is the checkpoint of another architecture?",
                       (checkpoint / tensors.folder).string(), name);
    }
    if (found->second.shape != shape || !scalar_type(found->second.type)) {
      throw user_error("{}: tensor {} is {} of shape [{}], and the model needs [{}]",
                       folder.file_of(name).string(), name, stored_type_name(found->second.type),
                       fmt::join(found->second.shape, ", "), fmt::join(shape, ", "));
    }
  }
  for (const LocalPart& part : parts)
    read_part(folder.tensors().at(part.parameter->name), part, tensors.values(part));
}

}  // namespace picotron
