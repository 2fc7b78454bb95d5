// What the sub-commands share of the command line: CLI11 reads flags, its complaints become our
// sentences, and an unknown flag is answered with the nearest known one.
#pragma once
#include <CLI/CLI.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/config.h"
#include "model/architectures.h"

namespace picotron {

// Reads `arguments` into `app`, whose name is the sub-command's. Returns the exit code where the
// command is done with that (--help), else nothing. Throws UserError. `other_flags` ("--dp") are
// known beside the app's own, for they were taken out before: they are suggested too.
std::optional<int> parse(CLI::App& app, const std::vector<std::string>& arguments,
                         std::span<const std::string> other_flags = {});

// The short flags of the configuration's keys, "--dp", and their lines for a --help.
std::vector<std::string> short_flags();
std::string short_flags_help();

// What verify, explain and plan start from: a layout and the model it is for, without its data.
// `file` empty: what the flags say. Checked, environment resolved. Throws UserError.
struct LaidOutModel {
  Config config;
  LlamaConfig architecture;
};
LaidOutModel read_layout(const std::string& file, std::span<const Override> overrides);

}  // namespace picotron
