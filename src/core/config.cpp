// From text to Config: read, find each key in the table, put its value in place, then the
// overrides, then the checks. Every mistake in the values is found before any is reported, so that
// a person mends a file once.
#include "core/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "core/config_table.h"
#include "core/error.h"
#include "core/utf8.h"

namespace picotron {
namespace {

using config_table::Field;
using json_text::Value;

constexpr std::streamsize largest_file = 1 << 20;  // a config has a few kilobytes

std::string read_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw user_error("{} is a folder; name a config.json in it", path);
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw user_error("{}: cannot read the configuration ({}); check --config", path,
                     std::strerror(errno));
  }
  std::string text, piece(1 << 16, '\0');
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    text.append(piece.data(), static_cast<size_t>(file.gcount()));
    if (static_cast<std::streamsize>(text.size()) > largest_file) {
      throw user_error("{}: larger than 1 MiB, which no configuration is; check --config", path);
    }
  }
  return text;
}

std::string suggestion(std::string_view unknown) {
  const std::string near = config_table::nearest_name(unknown);
  if (!near.empty()) return fmt::format("did you mean {}?", near);
  return "`picotron config --explain` lists the keys there are";
}

bool is_section(std::string_view name) {
  return std::any_of(config_table::table().begin(), config_table::table().end(),
                     [&](const Field& field) { return field.section == name; });
}

std::string section_suggestion(std::string_view unknown) {
  for (const Field& field : config_table::table()) {
    if (unknown.size() < 100 && config_table::edit_distance(unknown, field.section) <= 2) {
      return fmt::format("did you mean \"{}\"?", field.section);
    }
  }
  const std::string near = config_table::nearest_name(unknown);
  if (!near.empty()) return fmt::format("did you mean {}?", near);
  return "the sections are distributed, model, training, dataset, checkpoint, logging, environment "
         "and kernels";
}

// A Config in the making: which keys were given, and what was wrong.
class Builder {
 public:
  void apply(const Value& document, const std::string& name) {
    if (document.kind != Value::Kind::object) {
      throw user_error("{}: the configuration is {}; it must be an object, {{…}}", name,
                       json_text::describe(document));
    }
    for (const json_text::Member& section : document.members) {
      const std::string at =
          fmt::format("{}:{}:{}", name, section.place.line, section.place.column);
      if (!is_section(section.key)) {
        problem("{}: unknown section {}; {}", at, json_text::quote(shortened(section.key)),
                is_shown() ? section_suggestion(section.key) : "");
      } else if (section.value.kind != Value::Kind::object) {
        problem("{}: \"{}\" is {}; it must be an object, {{…}}", at, section.key,
                json_text::describe(section.value));
      } else {
        for (const json_text::Member& member : section.value.members) {
          apply_key(section.key + "." + member.key, member, name);
        }
      }
    }
  }

  void apply(const Override& given) {
    const Field* field = config_table::find(given.key);
    if (field == nullptr) {
      problem("unknown key {}; {}", given.spelled, suggestion(given.key));
      return;
    }
    try {
      put(*field, config_table::from_text(*field, given.value, given.spelled), given.spelled);
    } catch (const UserError& error) {
      problems_.push_back(error.what());
    }
  }

  Config finish() {
    // Weights to start from imply their architecture, unless another was named.
    if (config_.model.init_from && !given_.contains(config_table::find("model.name"))) {
      config_.model.name.reset();
    }
    if (!problems_.empty()) throw user_errors(problems_);
    return std::move(config_);
  }

 private:
  template <class... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    problems_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  // user_errors counts the others: a search for what each may have meant would take a while.
  bool is_shown() const { return problems_.size() < 3; }

  static std::string shortened(const std::string& text) {
    return text.size() > 60 ? fmt::format("{}…", utf8_prefix(text, 60)) : text;
  }

  void apply_key(const std::string& dotted, const json_text::Member& member,
                 const std::string& name) {
    const json_text::Place& place = member.value.place;
    const Field* field = config_table::find(dotted);
    if (field == nullptr) {
      problem("{}:{}:{}: unknown key {}; {}", name, member.place.line, member.place.column,
              shortened(dotted), is_shown() ? suggestion(dotted) : "");
      return;
    }
    const std::string at = fmt::format("{}:{}:{}: ", name, place.line, place.column);
    try {
      put(*field, member.value, at + dotted);
    } catch (const UserError& error) {
      problem("{}{}", at, error.what());
    }
  }

  void put(const Field& field, const Value& value, const std::string& what) {
    given_.insert(&field);
    if (!config_table::set(field, config_, value)) {
      const bool secret = field.key == "HF_TOKEN";
      problem("{} is {}; it must be {}", what, secret ? "not a token" : json_text::describe(value),
              config_table::requirement(field));
    }
  }

  Config config_;
  std::set<const Field*> given_;
  std::vector<std::string> problems_;
};

bool names_model_or_data(const Value& document) {
  return std::any_of(
      document.members.begin(), document.members.end(),
      [](const json_text::Member& m) { return m.key == "model" || m.key == "dataset"; });
}

// On the command line, naming another model or other data leaves the stories; a key like
// model.num_hidden_layers adjusts them.
bool names_model_or_data(std::span<const Override> overrides) {
  return std::any_of(overrides.begin(), overrides.end(), [](const Override& given) {
    return given.key == "model.name" || given.key == "model.init_from" ||
           given.key == "dataset.name";
  });
}

bool looks_like_flag(const std::string& argument) {
  return argument.starts_with("--");
}

}  // namespace

std::vector<Override> take_overrides(std::vector<std::string>& arguments, Flags flags) {
  std::vector<Override> taken;
  std::vector<std::string> rest;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const size_t equals = argument.find('=');
    const std::string spelled = argument.substr(0, equals);
    const std::string name = looks_like_flag(spelled) ? spelled.substr(2) : "";
    const bool dotted = name.find('.') != std::string::npos;
    const Field* field = dotted ? config_table::find(name) : nullptr;
    if (!dotted && flags == Flags::dotted_and_short) field = config_table::find_flag(name);
    if (field == nullptr) {
      if (dotted) throw user_error("unknown key {}; {}", spelled, suggestion(name));
      rest.push_back(argument);
      continue;
    }
    Override given{.key = field->name(), .value = "", .spelled = spelled};
    const bool has_next = i + 1 < arguments.size();
    if (equals != std::string::npos) {
      given.value = argument.substr(equals + 1);
    } else if (config_table::is_boolean(*field)) {
      static const std::set<std::string> words = {"true", "false", "0", "1", "null"};
      given.value = has_next && words.contains(arguments[i + 1]) ? arguments[++i] : "true";
    } else if (has_next && !looks_like_flag(arguments[i + 1])) {
      given.value = arguments[++i];
    } else {
      throw user_error("{} needs a value: {}", spelled, config_table::requirement(*field));
    }
    // As in the reference, the short flag --use_cpu also takes gloo, whatever the file says.
    if (!dotted && given.key == "distributed.use_cpu" && given.value == "true") {
      taken.insert(taken.begin(),
                   {.key = "distributed.backend", .value = "gloo", .spelled = spelled});
    }
    taken.push_back(std::move(given));
  }
  arguments = std::move(rest);
  return taken;
}

Config parse_config(std::string_view text, const std::string& name,
                    std::span<const Override> overrides, const SizesOf& sizes_of) {
  const Value document = json_text::parse(text, name);
  Builder builder;
  if (!names_model_or_data(document) && !names_model_or_data(overrides)) {
    const std::string stories = "configs/stories.json";
    builder.apply(json_text::parse(stories_json(), stories), stories);
  }
  builder.apply(document, name);
  for (const Override& given : overrides) builder.apply(given);
  Config config = builder.finish();
  config.source = name;
  check(config, sizes_of ? sizes_of(config.model) : std::nullopt);
  return config;
}

Config load_config(const std::string& path, std::span<const Override> overrides,
                   const SizesOf& sizes_of) {
  return parse_config(read_file(path), path, overrides, sizes_of);
}

Config config_from_flags(std::span<const Override> overrides, const SizesOf& sizes_of) {
  std::vector<Override> all(overrides.begin(), overrides.end());
  if (names_model_or_data(overrides)) {
    // create_config.py writes micro_batch_size 1 where --mbs is not given.
    all.insert(all.begin(), {.key = "training.micro_batch_size", .value = "1", .spelled = "--mbs"});
  }
  return parse_config("{}", "", all, sizes_of);
}

}  // namespace picotron
