// What the Python judges of tests/interop ask of our readers and writers:
//   copy FROM TO          a safetensors file, read by our reader and written by our writer
//   config FILE DTYPE     the config.json we would write for the one we read, on stdout
//   model FROM TO DTYPE   a model folder, copied and converted ("same": as it is)
//   load FOLDER           a model folder into Parameters, then saved again as FOLDER.saved
// Exit codes are the program's: 2 for a UserError, 1 for anything else.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/huggingface.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"
#include "model/huggingface_config.h"

namespace picotron {
namespace {

void copy(const std::string& from, const std::string& to) {
  const SafetensorsFile file(from);
  std::vector<TensorHeader> headers;
  for (const auto& [name, tensor] : file.tensors()) {
    headers.push_back({name, tensor.type, tensor.shape});
  }
  write_safetensors(to, headers, file.metadata(), [&](const TensorHeader& tensor) {
    return file.tensors().at(tensor.name).bytes;
  });
}

std::optional<DType> dtype_of(const std::string& name) {
  if (name == "same") return std::nullopt;
  if (name == "float64") return DType::float64;
  return name == "bfloat16" ? DType::bfloat16 : DType::float32;
}

void load_and_save(const std::string& folder) {
  const LlamaConfig config = read_huggingface_config(folder);
  Parameters parameters;
  for (const auto& [name, shape] : huggingface_tensors(config)) {
    Parameter parameter;
    parameter.name = name;
    parameter.full_shape = shape;
    parameter.shard = {0, 0, shape[0]};
    parameters.declare({parameter});
  }
  parameters.allocate(at::kFloat);
  load_huggingface(folder, config, parameters);
  save_huggingface(folder + ".saved", config, parameters, {.file_bytes = 100'000});
}

int run(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  if (command == "copy" && arguments.size() == 3) {
    copy(arguments[1], arguments[2]);
  } else if (command == "config" && arguments.size() == 3) {
    const LlamaConfig config = read_huggingface_config(arguments[1]);
    fmt::print("{}\n",
               to_huggingface(config, dtype_of(arguments[2]).value_or(DType::float32)).dump(2));
  } else if (command == "model" && arguments.size() == 4) {
    copy_huggingface(arguments[1], arguments[2], dtype_of(arguments[3]));
  } else if (command == "load" && arguments.size() == 2) {
    load_and_save(arguments[1]);
  } else {
    throw user_error("usage: copy FROM TO | config FILE DTYPE | model FROM TO DTYPE | load FOLDER");
  }
  return 0;
}

}  // namespace
}  // namespace picotron

int main(int argc, char** argv) {
  try {
    return picotron::run({argv + 1, argv + argc});
  } catch (const picotron::UserError& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
