// From text to files of tokens, which training reads in place (token_files.h):
//
//     documents ──▶ threads tokenize ──▶ in order ──▶ tokens-00000.npy  tokens-00001.npy …
//                                                     t t t eos t eos t t t t eos …
//
// Each document is followed by the token that ends one, the last included; nothing goes before it.
// A shard ends with the document that fills it. It is written aside, flushed and renamed, and then
// index.json says that it is there and where the next one begins in the text. So a preparation that
// is killed goes on after its last shard and ends in the same bytes, with any number of threads.
//
//     index.json   {"format": 1, "complete": true,
//                   "dataset": …, "files": [{"name", "bytes", "content"}, …], "text_column": …,
//                   "tokenizer": …, "tokenizer_content": …, "vocab_size": …, "eos": …,
//                   "num_samples": null, "shard_tokens": …,          what makes it what it is
//                   "documents": …, "tokens": …,
//                   "shards": [{"file", "documents", "tokens", "checksum",
//                               "next": [file, record]}, …]}
//
// checksum: XXH3, 128 bits, of the shard's tokens as they lie in the file. The tokenizer's own
// files lie beside it, so that the folder is a data set by itself. Read next: dataset.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace picotron {

struct PrepareOptions {
  std::string dataset;                       // as the user named it
  std::vector<std::filesystem::path> files;  // find_text_files() of it
  std::string text_column = "text";
  std::string tokenizer;               // open_tokenizer()'s name
  std::string eos_token = {};          // "": the tokenizer's own
  std::optional<int64_t> num_samples;  // documents at most; none: all
  int64_t shard_tokens = 100'000'000;  // a shard has at least so many, but for the last
  int64_t num_proc = 1;                // threads that tokenize
  std::filesystem::path out_dir;       // made where it is not there
  std::function<bool()> stop = {};     // asked between documents; true: leave
};

struct Prepared {
  int64_t documents = 0, tokens = 0, shards = 0;
  int64_t bytes = 0;       // of the text's files
  double seconds = 0;      // of this call; 0 where all was there
  bool was_there = false;  // nothing was left to do
};

// Writes out_dir/tokens-*.npy and index.json; on a terminal a line on stderr shows how far it is.
// UserError where the text or the tokenizer is not understood, or out_dir holds something else;
// RunError where the disk is full or fails, and where `stop` has said so.
Prepared prepare(const PrepareOptions& options);

// What out_dir/index.json says of a finished preparation.
struct PreparedIndex {
  std::vector<std::filesystem::path> shards;
  int64_t vocab_size = 0;
  int32_t eos = 0;
  std::string tokenizer_content;  // checksum of the tokenizer's files
};
// UserError where it is not finished or not understood, or a shard is missing or has another size.
PreparedIndex read_index(const std::filesystem::path& folder);

// prepare() in a folder of the user's cache, named by what decides the tokens: made once, then
// found. One process of those that ask at the same time makes it, and the others wait. → the folder
// Where: cache_folder() of core/files.h. What was done is one sentence in `notes`. Of text above
// 256 MiB only pieces are looked at to know it again.
std::filesystem::path prepare_in_cache(const PrepareOptions& options,
                                       std::vector<std::string>& notes);

}  // namespace picotron
