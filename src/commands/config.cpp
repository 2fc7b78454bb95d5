// picotron config: what a configuration means, key by key, and what a given one comes to with every
// default filled in.
#include "core/config.h"

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/log.h"

namespace picotron {

int config_command(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  const std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Print a configuration with every default filled in, or explain its keys.",
               "config");
  std::string file, key;
  bool markdown = false;
  app.add_option("--config", file,
                 "The config.json to read; without one, what the flags alone say");
  CLI::Option* explain_option =
      app.add_option("--explain", key, "Explain a key or a section; without one, every key")
          ->expected(0, 1);
  app.add_flag("--markdown", markdown, "Print docs/configuration.md");
  app.footer(short_flags_help());
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;

  std::string text;
  if (markdown) {
    text = config_markdown();
  } else if (explain_option->count() > 0) {
    text = explain(key);
  } else {
    const Config config =
        file.empty() ? config_from_flags(overrides) : load_config(file, overrides);
    for (const std::string& sentence : warnings(config)) log::warn(sentence);
    text = to_json(config);
  }
  text.pop_back();  // print ends the line
  log::print(text);
  return 0;
}

}  // namespace picotron
