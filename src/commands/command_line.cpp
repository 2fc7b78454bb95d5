// CLI11 parses; its complaints are taken apart here and said in sentences of ours.
#include "commands/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "core/config_table.h"
#include "core/error.h"
#include "core/log.h"
#include "train/hub_names.h"
#include "train/layout.h"
#include "train/run.h"

namespace picotron {
namespace {

std::string nearest(const std::string& flag, const std::vector<std::string>& known) {
  std::string best;
  int best_distance = std::max(2, static_cast<int>(flag.size()) / 3);
  for (const std::string& candidate : known) {
    const int distance =
        candidate.starts_with(flag) ? 1 : config_table::edit_distance(flag, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

UserError unexpected(const CLI::App& app, const std::string& argument,
                     std::span<const std::string> other_flags) {
  const std::string& command = app.get_name();
  if (!argument.starts_with("-")) {
    return user_error("{}: unexpected argument '{}'; see {} --help", command,
                      argument.substr(0, 100), command);
  }
  const std::string flag = argument.substr(0, std::min<size_t>(argument.find('='), 100));
  std::vector<std::string> known(other_flags.begin(), other_flags.end());
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  }
  const std::string near = nearest(flag, known);
  if (near.empty()) return user_error("{}: unknown flag {}; see {} --help", command, flag, command);
  return user_error("{}: unknown flag {}; did you mean {}?", command, flag, near);
}

}  // namespace

std::optional<int> parse(CLI::App& app, const std::vector<std::string>& arguments,
                         std::span<const std::string> other_flags) {
  app.name("picotron " + app.get_name());
  app.allow_extras();
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(),
                                       arguments.rend()));  // CLI11 takes them from the back
  } catch (const CLI::CallForHelp&) {
    log::print(app.help());
    return 0;
  } catch (const CLI::RequiredError& error) {
    // The flag that is missing may be there with a slip of the pen.
    if (!app.remaining().empty()) throw unexpected(app, app.remaining().front(), other_flags);
    throw user_error("{}: {}; see {} --help", app.get_name(), error.what(), app.get_name());
  } catch (const CLI::ArgumentMismatch& error) {
    const std::string flag(error.what(), std::string_view(error.what()).find(':'));
    throw user_error("{}: {} needs a value; see {} --help", app.get_name(), flag, app.get_name());
  } catch (const CLI::ParseError& error) {
    std::string what = error.what();
    std::replace(what.begin(), what.end(), '\n', ' ');
    throw user_error("{}: {}; see {} --help", app.get_name(), what, app.get_name());
  }
  const std::vector<std::string> extras = app.remaining();
  if (!extras.empty()) throw unexpected(app, extras.front(), other_flags);
  return std::nullopt;
}

std::vector<std::string> short_flags() {
  std::vector<std::string> flags;
  for (const FieldInfo& field : all_fields()) {
    if (!field.flag.empty()) flags.push_back("--" + field.flag);
  }
  return flags;
}

std::string short_flags_help() {
  std::string text =
      "Flags for keys of the configuration (any key may also be given as --section.key VALUE):\n";
  for (const FieldInfo& field : all_fields()) {
    if (!field.flag.empty())
      text +=
          fmt::format("  --{:<26} {} [{}]\n", field.flag, field.description, field.default_text);
  }
  return text;
}

LaidOutModel read_layout(const std::string& file, std::span<const Override> overrides) {
  LaidOutModel result{file.empty() ? config_from_flags(overrides, known_layout_sizes)
                                   : load_config(file, overrides, known_layout_sizes),
                      {}};
  Config& config = result.config;
  resolve_environment(config, [](const char* name) -> const char* { return std::getenv(name); });
  result.architecture = resolve_named_architecture(config, vocabulary_of_data(config));
  check_layout(config, layout_sizes(result.architecture));
  return result;
}

}  // namespace picotron
