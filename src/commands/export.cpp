// picotron export: a checkpoint as a Hugging Face folder, for transformers and whatever reads its
// format. Inside a checkpoint the weights lie as such a folder already; this finds the right one,
// copies it whole, and converts the numbers where asked.
#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "checkpoint/huggingface.h"
#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/error.h"
#include "core/log.h"

namespace picotron {

void write_export(const std::function<std::filesystem::path()>& find_model, const std::string& out,
                  const std::string& dtype_name) {
  namespace fs = std::filesystem;
  std::optional<DType> dtype;
  if (dtype_name == "float32") {
    dtype = DType::float32;
  } else if (dtype_name == "bfloat16") {
    dtype = DType::bfloat16;
  } else if (!dtype_name.empty()) {
    throw user_error("--dtype {} is not known; use float32 or bfloat16", dtype_name);
  }
  std::error_code ignored;
  if (fs::exists(out, ignored) && !(fs::is_directory(out, ignored) && fs::is_empty(out, ignored))) {
    throw user_error("{} is there and not an empty folder; choose another folder to write", out);
  }
  const fs::path model = find_model();
  const int64_t bytes = copy_huggingface(model, out, dtype);
  log::print(fmt::format("wrote {} from {}: {:.2f} MB of weights", out, model.string(),
                         static_cast<double>(bytes) / 1e6));
}

int export_command(const std::vector<std::string>& arguments) {
  CLI::App app("Write a checkpoint as a Hugging Face folder that transformers loads.", "export");
  std::string checkpoint, out, dtype_name;
  app.add_option("--checkpoint", checkpoint,
                 "A save_dir (its newest step), a step's folder, or a Hugging Face folder")
      ->required();
  app.add_option("--out", out, "The folder to write; it must be absent or empty")->required();
  app.add_option("--dtype", dtype_name,
                 "float32 or bfloat16; without it the weights stay as they are");
  if (const std::optional<int> done = parse(app, arguments)) return *done;

  write_export([&] { return find_model_folder(checkpoint); }, out, dtype_name);
  return 0;
}

}  // namespace picotron
