// What tests/interop/test_hub.py asks:   hub_fetch model ID config|tokenizer|all
//                                        hub_fetch dataset ID SUBSET SPLIT
//                                        hub_fetch choose SUBSET SPLIT FILE...
// The folder or the files on stdout, a line each, then what was downloaded; complaints on stderr.
#include <cstdio>
#include <string>
#include <vector>

#include "core/error.h"
#include "hub/hub.h"

int main(int argc, char** argv) {
  using namespace picotron;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  std::vector<std::string> notes;
  try {
    const HubOptions options = hub_options(std::nullopt);
    if (arguments.at(0) == "choose") {
      for (const std::string& file :
           parquet_files_of({arguments.begin() + 3, arguments.end()}, arguments[1], arguments[2]))
        std::puts(file.c_str());
    } else if (arguments[0] == "model") {
      const ModelFiles files = arguments.at(2) == "config"   ? ModelFiles::config
                               : arguments[2] == "tokenizer" ? ModelFiles::tokenizer
                                                             : ModelFiles::all;
      std::puts(fetch_model(arguments.at(1), files, options, notes).c_str());
    } else {
      for (const auto& file :
           fetch_dataset(arguments.at(1), arguments.at(2), arguments.at(3), options, notes))
        std::puts(file.c_str());
    }
    for (const std::string& note : notes) std::puts(note.c_str());
    return 0;
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  } catch (const RunError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
