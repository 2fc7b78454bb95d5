// picotron: the table of sub-commands, and the one place where errors are caught.
#include <csignal>
#include <cstdio>
#include <exception>

#include "commands/commands.h"
#include "core/error.h"
#include "core/log.h"

namespace {

constexpr picotron::Command kCommands[] = {
    {"train", "train a model: --config FILE, or short flags, or nothing at all",
     picotron::train_command},
    {"prepare-data", "make tokens of text, once, for many runs", picotron::prepare_data_command},
    {"generate", "let a trained model write", picotron::generate_command},
    {"evaluate", "measure the loss of a trained model on a data set", picotron::evaluate_command},
    {"create-config", "write a config.json from flags", picotron::create_config_command},
    {"config", "explain the keys of a configuration, or print one in full",
     picotron::config_command},
    {"checkpoint", "list, show, verify, export, compare and prune checkpoints",
     picotron::checkpoint_command},
    {"export", "write a checkpoint as a Hugging Face folder", picotron::export_command},
    {"plan", "say, before anything runs, who holds what, memory, bytes and waiting; or --search",
     picotron::plan_command},
    {"verify", "prove that a layout trains the model that one rank trains",
     picotron::verify_command},
    {"explain", "tell one training step of a layout, line by line of the source",
     picotron::explain_command},
    {"bench", "measure training speed against the machine's own matrix products",
     picotron::bench_command},
};

void print_help() {
  std::puts(
      "picotron: pre-trains Llama-like language models with 4D parallelism\n\n"
      "usage: picotron COMMAND [--help]\n");
  for (const picotron::Command& command : kCommands)
    std::printf("  %-14s %s\n", command.name, command.summary);
}

int run(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h" ||
      arguments[0] == "help") {
    print_help();
    return arguments.empty() ? 2 : 0;
  }
  std::string known;
  for (const picotron::Command& command : kCommands) {
    if (arguments[0] == command.name) return command.run({arguments.begin() + 1, arguments.end()});
    known += (known.empty() ? "" : ", ") + std::string(command.name);
  }
  throw picotron::user_error("there is no command '{}'; the commands are {}", arguments[0], known);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // beyond `ulimit -f` a write then fails, as on a full disk
  try {
    return run(argc, argv);
  } catch (const picotron::UserError& error) {
    picotron::log::error(error.what());
    return 2;
  } catch (const std::exception& error) {
    picotron::log::error(picotron::plain_sentence(error.what()));
    return 1;
  }
}
