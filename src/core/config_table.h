// The table behind the configuration: one Field per key. core/config.h is what the program uses;
// this header is for the files that parse, check and print the table.
#pragma once
#include <array>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "core/config.h"
#include "core/json_text.h"

namespace picotron::config_table {

// An enum of Config seen as one of several names; nullopt is null.
struct Choice {
  std::span<const std::string_view> names;
  bool nullable = false;
  std::function<std::optional<size_t>()> get;
  std::function<void(std::optional<size_t>)> set;
};

// Where in a Config the value of a key lies.
using Slot = std::variant<int64_t*, double*, bool*, std::string*, std::optional<int64_t>*,
                          std::optional<double>*, std::optional<bool>*, std::optional<std::string>*,
                          std::optional<RopeScalingKeys>*, Choice>;

struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_included = true;
  bool high_included = true;
  bool holds(double value) const;
};

enum class Origin { reference, ours };

struct Field {
  std::string_view section, key;
  Slot (*slot)(Config&);
  Origin origin;
  std::string_view description;      // one sentence, with its unit
  Range range = {};                  // of numbers
  std::string_view null_means = {};  // of a key that may be null
  std::string_view flag = {};  // the short flag, as the reference's create_config spells it: "dp"
  std::string_view instead = {};  // of a feature that is not built: what a run does without it
  bool built() const { return instead.empty(); }
  std::string name() const { return std::string(section) + "." + std::string(key); }
};

std::span<const Field> table();
const Field* find(std::string_view dotted_name);
const Field* find_flag(std::string_view flag);

bool is_boolean(const Field& field);
bool is_nullable(const Field& field);
std::string type_name(const Field& field);    // "whole number", "number or null"
std::string requirement(const Field& field);  // "a whole number from 1 to 65536, or null"

// The value as JSON text. A token is null.
std::string value_text(const Field& field, const Config& config);
bool is_default(const Field& field, const Config& config);

// Put a value in its place; false, with nothing changed, where it does not fit (then `requirement`
// says what would). What is wrong inside an object is thrown as UserError.
bool set(const Field& field, Config& config, const json_text::Value& value);
// The value of a command line or an environment variable, read by the field's type.
json_text::Value from_text(const Field& field, const std::string& text, const std::string& spelled);

// The nearest of the known names, "training.seq_length", or "" where nothing is near. `name` may
// lack its section.
std::string nearest_name(std::string_view name);
int edit_distance(std::string_view a, std::string_view b);

}  // namespace picotron::config_table
