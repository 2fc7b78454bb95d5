// Models and data sets of a hub of Hugging Face's kind, by their ids ("HuggingFaceTB/SmolLM-135M").
// What is downloaded lies in the cache that Hugging Face's own programs use, in their layout, so
// that each finds what the other has brought:
//
//     $HF_HUB_CACHE, else $HF_HOME/hub, else $XDG_CACHE_HOME/huggingface/hub, else
//     ~/.cache/huggingface/hub
//       models--HuggingFaceTB--SmolLM-135M/       datasets--roneneldan--TinyStories/
//         refs/main                  the commit that "main" is
//         blobs/ETAG                 a file's content; ETAG.incomplete while it comes
//         snapshots/COMMIT/PATH  →   ../../blobs/ETAG
//         .no_exist/COMMIT/PATH      asked for, and not there
//       .locks/…/ETAG.lock           held while a file comes
//
// What is there is not asked for again: a second run makes no request, and none where
// HF_HUB_OFFLINE is 1. A new version is fetched after refs/main is removed. Of the ranks of a
// machine the one that gets a file's lock downloads it, and the others find it. Files come four at
// a time, each goes on where a broken connection left it, and is compared with its checksum.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace picotron {

struct HubOptions {
  std::string endpoint;  // $HF_ENDPOINT, else https://huggingface.co
  // $HF_TOKEN, else the one given, else the file $HF_TOKEN_PATH or $HF_HOME/token; "" none. It is
  // sent to the endpoint and stands in no message and no file.
  std::string token;
  std::filesystem::path cache;
  bool offline = false;  // $HF_HUB_OFFLINE
};
HubOptions hub_options(const std::optional<std::string>& given_token);

// "organisation/name", and no file or folder here.
bool is_hub_id(const std::string& name);

enum class ModelFiles { config, tokenizer, all };  // all: its safetensors, config and tokenizer

// The local folder of a model with those of its files that are asked for. What came is one sentence
// in `notes`. UserError where the hub has no such model, or refuses it, and says what to do;
// RunError where it does not answer or the disk is full.
std::filesystem::path fetch_model(const std::string& id, ModelFiles files,
                                  const HubOptions& options, std::vector<std::string>& notes);

// The Parquet files of a split, in order: the repository's own, or those that the hub has made of
// it (https://huggingface.co/docs/dataset-viewer/parquet). `subset` "": its default one.
std::vector<std::filesystem::path> fetch_dataset(const std::string& id, const std::string& subset,
                                                 const std::string& split,
                                                 const HubOptions& options,
                                                 std::vector<std::string>& notes);

// Of a repository's files those that hold the split of a subset, by how such files are called:
// SUBSET/SPLIT-00000-of-00004-HASH.parquet, data/SPLIT-…, SUBSET/SPLIT/0000.parquet. Empty where
// none is.
std::vector<std::string> parquet_files_of(const std::vector<std::string>& files,
                                          const std::string& subset, const std::string& split);

}  // namespace picotron
