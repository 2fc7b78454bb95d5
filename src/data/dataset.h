// A data set is a numbered list of rows of seq_length + 1 tokens: the model reads the first
// seq_length and is asked for the last seq_length.
//
//   row      t0 t1 t2 … tn          n = seq_length
//   inputs   t0 t1 … t(n−1)
//   targets     t1 t2 … tn
//
// Files are one long stream of tokens (a folder: its files by name, joined), and row i is tokens
// [i·n, i·n + n + 1): rows share one token, so that every token but the first is a target once.
// `builtin:stories` makes row i on the spot from (seed, i) alone. A data set has no state, so any
// rank may read any row at any time; who reads which row is data/loader.h.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "hub/hub.h"

namespace picotron {

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual const std::string& name() const = 0;  // as the user named it
  virtual int64_t seq_length() const = 0;
  virtual int64_t num_rows() const = 0;  // at least 1

  // Writes row `row` of [0, num_rows) into out[seq_length + 1]. Thread-safe.
  virtual void read_row(int64_t row, std::span<int32_t> out) const = 0;

  // Where that token lies, for an error: "tokens.npy, token 1234".
  virtual std::string locate(int64_t row, int64_t column) const = 0;

  // How many tokens the data set's tokenizer knows; none for a .npy, whose tokens the model's own
  // vocabulary must hold (the loader checks each).
  virtual std::optional<int64_t> vocab_size() const { return std::nullopt; }

  // The lowest loss any model can reach, nats per token: the entropy of the seq_length targets of a
  // row given what precedes them, averaged over the targets. Known for builtin:stories.
  virtual std::optional<double> floor() const { return std::nullopt; }

  virtual std::shared_ptr<const Tokenizer> tokenizer() const { return nullptr; }

  // The token that ends a document, where something says so.
  virtual std::optional<int32_t> end_of_document() const {
    return tokenizer() == nullptr ? std::nullopt : tokenizer()->eos();
  }
};

struct DatasetOptions {
  // builtin:stories; a .npy or a folder of them; a folder that prepare() made; text (documents.h);
  // a data set of the hub; or a mixture of such (mixture.h).
  std::string name = {};
  std::string tokenizer = {};                         // of text; "": the data set's own, else
  std::function<std::string()> model_tokenizer = {};  // the model's; "" where it has none
  std::string text_column = "text";                   // of .jsonl and .parquet
  int64_t num_proc = 1;                               // threads that tokenize
  std::function<bool()> stop = {};  // asked while text is tokenized: true to leave with RunError
  std::string subset_name = {}, split = "train";  // of a data set of the hub
  HubOptions hub = {};
  int64_t seq_length = 0;
  uint64_t seed = 0;  // of builtin:stories
  // At most so many rows (of text that is tokenized: documents) of each data set, validation's
  // included; none: all.
  std::optional<int64_t> num_samples = {};
  bool hold_out = false;             // the run evaluates, so it needs a validation set
  std::string validation = {};       // another data set; "": the last validation_fraction
  double validation_fraction = 0.1;  // of the rows
};

struct OpenedDatasets {
  std::shared_ptr<const Dataset> train;
  std::shared_ptr<const Dataset> validation;  // null where nothing is held out or named
  std::string tokenizer;           // open_tokenizer()'s name for it; "" where none is known
  std::vector<std::string> notes;  // sentences a person should see, such as rows left unused
};

// Opens what `options` names. UserError where it is missing, unreadable, malformed, too short for
// one row, or of a kind that is not read yet.
OpenedDatasets open_datasets(const DatasetOptions& options);

}  // namespace picotron
