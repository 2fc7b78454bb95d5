// The table as a person reads it: config.json, --help, `picotron config --explain`,
// docs/configuration.md.
#include <fmt/format.h>

#include <algorithm>

#include "core/config_table.h"
#include "core/error.h"

namespace picotron {
namespace {

using config_table::Field;
using config_table::Origin;

std::string section_sentence(std::string_view section) {
  static constexpr std::pair<std::string_view, std::string_view> sentences[] = {
      {"distributed",
       "How the ranks share the work. World size = dp_size · pp_size · cp_size · tp_size."},
      {"model", "What is trained. Shape keys override what the named model says."},
      {"training", "Steps, batches, the optimizer and its schedule."},
      {"dataset", "What it is trained on."},
      {"checkpoint", "What is written, where, and what a run goes on from."},
      {"logging", "Where metrics go beside the terminal and metrics.jsonl."},
      {"environment",
       "Variables that the program obeys; set in the process environment they win over the file."},
      {"kernels", "Which bodies the operators have."},
  };
  for (const auto& [name, sentence] : sentences) {
    if (name == section) return std::string(sentence);
  }
  return "";
}

std::string default_text(const Field& field) {
  return config_table::value_text(field, Config{});
}

// Everything there is to say about a key but its name and default.
std::string sentences(const Field& field) {
  std::string text(field.description);
  if (!field.null_means.empty()) text += fmt::format(" null: {}.", field.null_means);
  return field.built() ? text : fmt::format("{} It has no effect: {}.", text, field.instead);
}

std::string explained(const Field& field) {
  std::string text =
      fmt::format("{} = {}\n  {}\n  It must be {}.\n", field.name(), default_text(field),
                  sentences(field), config_table::requirement(field));
  text += fmt::format(
      "  {}; on the command line --{}",
      field.origin == Origin::reference ? "A key of the reference" : "A key of ours", field.name());
  if (!field.flag.empty()) text += fmt::format(" or --{}", field.flag);
  return text + ".\n";
}

std::string escaped_for_table(std::string text) {
  for (size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2))
    text.insert(at, "\\");
  return text;
}

// Calls begin(section) and each(field) in the table's order.
template <class Begin, class Each>
void walk(Begin begin, Each each) {
  std::string_view section;
  for (const Field& field : config_table::table()) {
    if (field.section != section) begin(section = field.section);
    each(field);
  }
}

}  // namespace

std::string to_json(const Config& config) {
  std::string text = "{", joint;
  walk(
      [&](std::string_view section) {
        text += fmt::format("{}\n  \"{}\": {{", text == "{" ? "" : "\n  },", section);
        joint = "\n";
      },
      [&](const Field& field) {
        text += fmt::format("{}    \"{}\": {}", joint, field.key,
                            config_table::value_text(field, config));
        joint = ",\n";
      });
  return text + "\n  }\n}\n";
}

std::string explain(std::string_view key) {
  if (const Field* field = config_table::find(key)) return explained(*field);
  std::string text;
  walk([](std::string_view) {},
       [&](const Field& field) {
         if (key.empty() || key == field.section || key == field.key)
           text += (text.empty() ? "" : "\n") + explained(field);
       });
  if (!text.empty()) return text;
  const std::string near = config_table::nearest_name(key);
  throw user_error("unknown key {}; {}", key,
                   near.empty() ? "`picotron config --explain` lists the keys there are"
                                : fmt::format("did you mean {}?", near));
}

std::string config_markdown() {
  std::string text = R"(# Configuration

Printed by `picotron config --markdown` from the table in `src/core/config_table.cpp`; a test
compares.

A run is described by one `config.json`. Every key may be left out; `//` and `/* */` comments are
accepted. Any key can be given on the command line:
`picotron train --config C --training.learning_rate 1e-3`, and the short flag, where there is one,
does the same. A configuration that names neither a `model` nor a `dataset` is laid over
`configs/stories.json`, so `{}` trains. In every other one an absent key has the default below,
which is the reference's where the key is the reference's, but for what the machine decides
(`use_cpu`, `backend`, `dtype`, `OMP_NUM_THREADS`), the model's shape, which is the named model's
own, and `dataset.name`.

Sizes: the global batch has `micro_batch_size` · `gradient_accumulation_steps` · `dp_size`
sequences; `global_batch_size` fixes it and the accumulation follows. `tp_size` divides
`num_attention_heads`, and divides `num_key_value_heads` or is a multiple of it. `seq_length` is
divisible by 2 · `cp_size` where that is above 1, and by `tp_size` too under `sequence_parallel`.
)";
  walk(
      [&](std::string_view section) {
        text += fmt::format(
            "\n## {}\n{}\n\n| key | default | must be | short flag | from | meaning |\n"
            "| --- | --- | --- | --- | --- | --- |\n",
            section, section_sentence(section));
      },
      [&](const Field& field) {
        text += fmt::format("| `{}` | `{}` | {} | {} | {} | {} |\n", field.key, default_text(field),
                            escaped_for_table(config_table::requirement(field)),
                            field.flag.empty() ? "" : fmt::format("`--{}`", field.flag),
                            field.origin == Origin::reference ? "reference" : "ours",
                            escaped_for_table(sentences(field)));
      });
  return text;
}

std::vector<FieldInfo> all_fields() {
  std::vector<FieldInfo> all;
  for (const Field& field : config_table::table()) {
    all.push_back({.section = std::string(field.section),
                   .key = std::string(field.key),
                   .type = config_table::type_name(field),
                   .default_text = default_text(field),
                   .requirement = config_table::requirement(field),
                   .description = sentences(field),
                   .flag = std::string(field.flag),
                   .in_reference = field.origin == Origin::reference,
                   .built = field.built()});
  }
  return all;
}

}  // namespace picotron
