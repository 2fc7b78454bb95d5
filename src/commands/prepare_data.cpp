// picotron prepare-data: text to files of tokens, once, for many runs (data/prepare.h).
#include <fmt/format.h>

#include <optional>
#include <string>
#include <thread>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/error.h"
#include "core/log.h"
#include "data/documents.h"
#include "data/prepare.h"
#include "hub/hub.h"
#include "train/hub_names.h"

namespace picotron {

int prepare_data_command(const std::vector<std::string>& arguments) {
  CLI::App app(
      "Make tokens of text: every document's, and after each the token that ends one, into files "
      "that training reads. Killed at any moment, the same command goes on.",
      "prepare-data");
  PrepareOptions options;
  options.num_proc = std::max(1U, std::thread::hardware_concurrency());
  std::string out_dir, subset, split = "train";
  int64_t num_samples = 0;
  app.add_option("--dataset", options.dataset,
                 "A .txt, .jsonl (.gz, .zst) or .parquet file, a folder of them, a pattern in "
                 "quotes, or a hub id")
      ->required();
  app.add_option("--tokenizer", options.tokenizer,
                 "A tokenizer.json, a tokenizer.model of sentencepiece, or a model's folder or hub "
                 "id")
      ->required();
  app.add_option("--out_dir", out_dir, "The folder to write")->required();
  app.add_option("--subset_name", subset, "Of a data set of the hub; by default its default one");
  app.add_option("--split", split, "Of a data set of the hub")->capture_default_str();
  app.add_option("--text_column", options.text_column, "Where .jsonl and .parquet have the text")
      ->capture_default_str();
  app.add_option("--eos_token", options.eos_token,
                 "What ends a document, as it is spelled; by default what the tokenizer says");
  app.add_option("--num_samples", num_samples, "Documents at most; by default all");
  app.add_option("--num_proc", options.num_proc, "Threads that tokenize")->capture_default_str();
  app.add_option("--shard_tokens", options.shard_tokens,
                 "Tokens after which a file ends with its document")
      ->capture_default_str();
  if (const std::optional<int> done = parse(app, arguments)) return *done;

  if (options.num_proc < 1 || options.num_proc > 1024)
    throw user_error("--num_proc {} is not from 1 to 1024", options.num_proc);
  if (options.shard_tokens < 1)
    throw user_error("--shard_tokens {} must be at least 1", options.shard_tokens);
  if (app.count("--num_samples") > 0) options.num_samples = num_samples;
  options.out_dir = out_dir;
  std::vector<std::string> notes;
  options.tokenizer = tokenizer_name_of(options.tokenizer);
  options.files = is_hub_id(options.dataset) ? fetch_dataset(options.dataset, subset, split,
                                                             hub_options(std::nullopt), notes)
                                             : find_text_files(options.dataset);
  for (const std::string& note : notes) log::print(note);
  const Prepared done = prepare(options);
  const std::string what =
      fmt::format("{}: {} documents, {} tokens in {} {}", out_dir, done.documents, done.tokens,
                  done.shards, done.shards == 1 ? "file" : "files");
  log::print(done.was_there ? what + ", all there already"
                            : fmt::format("{}; {:.1f} s, {:.1f} MB/s", what, done.seconds,
                                          static_cast<double>(done.bytes) / 1e6 / done.seconds));
  log::print(fmt::format("train on it with --dataset {}", out_dir));
  return 0;
}

}  // namespace picotron
