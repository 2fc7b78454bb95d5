// One value of the configuration: from JSON or the command line into its place, and back to text.
// What a key takes is decided by the type of its member (config.h) and its range
// (config_table.cpp); only a key with a form of its own (mesh_order, the token) is known by name.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/config_table.h"
#include "core/error.h"
#include "core/utf8.h"

namespace picotron::config_table {
namespace {

using json_text::Value;

template <class T>
constexpr bool is_optional = false;
template <class T>
constexpr bool is_optional<std::optional<T>> = true;

// The reference writes the section "environment" as strings: "1", "false".
bool is_text_in_file(const Field& field) {
  return field.section == "environment";
}

// A slot only reads here, but its type lets one write.
Slot slot_of_copy(const Field& field, Config& copy) {
  return field.slot(copy);
}

// 1000, 1e3 and 1000.0 are the same whole number; 1.5, 1e400 and 2^63 are none.
std::optional<int64_t> whole_number(const std::string& text) {
  const char* end = text.data() + text.size();
  int64_t whole = 0;
  const auto exact = std::from_chars(text.data(), end, whole);
  if (exact.ec == std::errc() && exact.ptr == end) return whole;
  double real = 0;
  const auto rounded = std::from_chars(text.data(), end, real);
  constexpr double exactly_held = 9007199254740992.0;  // 2^53
  if (rounded.ec != std::errc() || rounded.ptr != end || !(std::abs(real) <= exactly_held) ||
      real != std::floor(real)) {
    return std::nullopt;
  }
  return static_cast<int64_t>(real);
}

std::optional<double> real_number(const std::string& text) {
  const char* end = text.data() + text.size();
  double real = 0;
  const auto read = std::from_chars(text.data(), end, real);
  if (read.ec != std::errc() || read.ptr != end || !std::isfinite(real)) return std::nullopt;
  return real;
}

bool put(const Field& field, const Value& value, int64_t& place) {
  if (value.kind != Value::Kind::number) return false;
  const std::optional<int64_t> number = whole_number(value.text);
  if (!number || !field.range.holds(static_cast<double>(*number))) return false;
  place = *number;
  return true;
}

bool put(const Field& field, const Value& value, double& place) {
  if (value.kind != Value::Kind::number) return false;
  const std::optional<double> number = real_number(value.text);
  if (!number || !field.range.holds(*number)) return false;
  place = *number;
  return true;
}

bool put(const Field&, const Value& value, bool& place) {
  if (value.kind != Value::Kind::boolean) return false;
  place = value.text == "true";
  return true;
}

bool is_permutation_of_axes(const std::string& text) {
  std::vector<std::string> axes;
  size_t begin = 0;
  for (size_t dash = 0; dash != std::string::npos; begin = dash + 1) {
    dash = text.find('-', begin);
    axes.push_back(text.substr(begin, dash - begin));
  }
  std::sort(axes.begin(), axes.end());
  return axes == std::vector<std::string>{"cp", "dp", "pp", "tp"};
}

// A string that is empty by default means "none" when it is empty, so null is taken for it; any
// other must say something.
bool may_be_empty(const Field& field) {
  Config defaults;
  const Slot slot = slot_of_copy(field, defaults);
  const auto* text = std::get_if<std::string*>(&slot);
  return text != nullptr && (*text)->empty();
}

bool put(const Field& field, const Value& value, std::string& place) {
  if (value.kind == Value::Kind::null && may_be_empty(field)) {
    place.clear();
    return true;
  }
  if (value.kind != Value::Kind::string) return false;
  if (value.text.empty() && !may_be_empty(field)) return false;
  if (value.text.find('\0') != std::string::npos) return false;  // no path has one
  if (field.key == "mesh_order" && !is_permutation_of_axes(value.text)) return false;
  place = value.text;
  return true;
}

double number_in(const json_text::Member& member, const Range& range, const std::string& right) {
  const std::optional<double> number =
      member.value.kind == Value::Kind::number ? real_number(member.value.text) : std::nullopt;
  if (!number || !range.holds(*number)) {
    throw user_error("model.rope_scaling.{} is {}; it must be {}", member.key,
                     json_text::describe(member.value), right);
  }
  return *number;
}

bool put(const Field&, const Value& value, std::optional<RopeScalingKeys>& place) {
  if (value.kind == Value::Kind::null) {
    place.reset();
    return true;
  }
  if (value.kind != Value::Kind::object) return false;
  RopeScalingKeys scaling;
  const Range factor{.low = 0, .high = 1e6, .low_included = false};
  const char* const factor_text = "a number above 0, at most 1e6";
  for (const json_text::Member& member : value.members) {
    if (member.key == "rope_type" || member.key == "type") {
      const bool known = member.value.text == "llama3" || member.value.text == "default";
      if (member.value.kind != Value::Kind::string || !known) {
        throw user_error("model.rope_scaling.{} is {}; it must be \"llama3\" or \"default\"",
                         member.key, json_text::describe(member.value));
      }
      scaling.rope_type = member.value.text;
    } else if (member.key == "factor") {
      scaling.factor = number_in(member, factor, factor_text);
    } else if (member.key == "low_freq_factor") {
      scaling.low_freq_factor = number_in(member, factor, factor_text);
    } else if (member.key == "high_freq_factor") {
      scaling.high_freq_factor = number_in(member, factor, factor_text);
    } else if (member.key == "original_max_position_embeddings") {
      const Range positions{.low = 1, .high = 1 << 30};
      const char* const right = "a whole number from 1 to 1073741824";
      number_in(member, positions, right);
      const std::optional<int64_t> whole = whole_number(member.value.text);
      if (!whole) {
        throw user_error("model.rope_scaling.{} is {}; it must be {}", member.key,
                         json_text::describe(member.value), right);
      }
      scaling.original_max_position_embeddings = *whole;
    } else {
      throw user_error(
          "unknown key model.rope_scaling.{}; there are rope_type, factor, low_freq_factor, "
          "high_freq_factor and original_max_position_embeddings",
          member.key);
    }
  }
  if (scaling.low_freq_factor >= scaling.high_freq_factor) {
    throw user_error("model.rope_scaling.low_freq_factor {} must be below high_freq_factor {}",
                     scaling.low_freq_factor, scaling.high_freq_factor);
  }
  place = scaling;
  return true;
}

template <class T>
bool put(const Field& field, const Value& value, std::optional<T>& place) {
  if (value.kind == Value::Kind::null) {
    place.reset();
    return true;
  }
  T inner{};
  if (!put(field, value, inner)) return false;
  if constexpr (std::is_same_v<T, std::string>) {
    if (inner.empty()) return false;
  }
  place = inner;
  return true;
}

bool put(const Field&, const Value& value, const Choice& choice) {
  if (value.kind == Value::Kind::null && choice.nullable) {
    choice.set(std::nullopt);
    return true;
  }
  const auto found = std::find(choice.names.begin(), choice.names.end(), value.text);
  if (value.kind != Value::Kind::string || found == choice.names.end()) return false;
  choice.set(static_cast<size_t>(found - choice.names.begin()));
  return true;
}

// What the file's strings mean: "1" → 1, "false" → false, by the member's type.
Value environment_value(const Field& field, const Value& value) {
  if (value.kind == Value::Kind::string) return from_text(field, value.text, field.name());
  const bool zero_or_one = value.text == "0" || value.text == "1";
  if (value.kind == Value::Kind::number && is_boolean(field) && zero_or_one) {
    return from_text(field, value.text, field.name());
  }
  return value;
}

std::string number_text(double value) {
  std::string text = fmt::format("{}", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

std::string text_of(int64_t value) {
  return fmt::format("{}", value);
}
std::string text_of(double value) {
  return number_text(value);
}
std::string text_of(bool value) {
  return value ? "true" : "false";
}
std::string text_of(const std::string& value) {
  return json_text::quote(value);
}
std::string text_of(const RopeScalingKeys& value) {
  return fmt::format(
      R"({{"rope_type": {}, "factor": {}, "low_freq_factor": {}, "high_freq_factor": {}, )"
      R"("original_max_position_embeddings": {}}})",
      json_text::quote(value.rope_type), number_text(value.factor),
      number_text(value.low_freq_factor), number_text(value.high_freq_factor),
      value.original_max_position_embeddings);
}
template <class T>
std::string text_of(const std::optional<T>& value) {
  return value ? text_of(*value) : "null";
}

std::string one_of(std::span<const std::string_view> names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    const char* joint = i == 0 ? "" : i + 1 == names.size() ? " or " : ", ";
    text += joint + json_text::quote(names[i]);
  }
  return text;
}

// "from 1 to 65536", "above 0", "at least 0"
std::string range_text(const Range& range) {
  std::string text;
  if (std::isfinite(range.low)) {
    text = fmt::format(" {} {}", range.low_included ? "from" : "above", number_text(range.low));
  }
  if (std::isfinite(range.high)) {
    const char* joint = !range.high_included ? "to below"
                        : range.low_included ? "to"
                                             : "and at most";
    if (!range.high_included && !range.low_included) joint = "and below";
    text += fmt::format(" {} {}", joint, number_text(range.high));
  } else if (!text.empty() && range.low_included) {
    text = fmt::format(" of at least {}", number_text(range.low));
  }
  return text;
}

}  // namespace

bool Range::holds(double value) const {
  return (low_included ? value >= low : value > low) &&
         (high_included ? value <= high : value < high);
}

bool is_boolean(const Field& field) {
  Config any;
  const Slot slot = slot_of_copy(field, any);
  return std::holds_alternative<bool*>(slot) || std::holds_alternative<std::optional<bool>*>(slot);
}

bool is_nullable(const Field& field) {
  Config any;
  return std::visit(
      [](const auto& slot) {
        if constexpr (std::is_same_v<std::decay_t<decltype(slot)>, Choice>) {
          return slot.nullable;
        } else {
          return is_optional<std::remove_pointer_t<std::decay_t<decltype(slot)>>>;
        }
      },
      slot_of_copy(field, any));
}

std::string type_name(const Field& field) {
  struct Names {
    std::string operator()(const int64_t*) const { return "whole number"; }
    std::string operator()(const std::optional<int64_t>*) const { return "whole number"; }
    std::string operator()(const double*) const { return "number"; }
    std::string operator()(const std::optional<double>*) const { return "number"; }
    std::string operator()(const bool*) const { return "true or false"; }
    std::string operator()(const std::optional<bool>*) const { return "true or false"; }
    std::string operator()(const std::string*) const { return "string"; }
    std::string operator()(const std::optional<std::string>*) const { return "string"; }
    std::string operator()(const std::optional<RopeScalingKeys>*) const { return "object"; }
    std::string operator()(const Choice& choice) const { return one_of(choice.names); }
  };
  Config any;
  return std::visit(Names{}, slot_of_copy(field, any));
}

std::string requirement(const Field& field) {
  const std::string type = type_name(field);
  std::string text;
  if (field.key == "mesh_order") {
    text = "the four axes joined by dashes, such as \"dp-pp-cp-tp\"";
  } else if (type == "true or false") {
    text = is_text_in_file(field) ? "\"1\" or \"0\", \"true\" or \"false\"" : type;
  } else if (type == "object") {
    text = "an object such as {\"rope_type\": \"llama3\", \"factor\": 8}";
  } else if (type == "string") {
    text = may_be_empty(field) ? "a string" : "a string that is not empty";
  } else if (type == "number" || type == "whole number") {
    text = "a " + type + range_text(field.range);
  } else {
    text = type;
  }
  return is_nullable(field) ? text + ", or null" : text;
}

std::string value_text(const Field& field, const Config& config) {
  if (field.key == "HF_TOKEN") return "null";
  Config copy = config;
  const std::string text = std::visit(
      [](const auto& slot) -> std::string {
        if constexpr (std::is_same_v<std::decay_t<decltype(slot)>, Choice>) {
          const std::optional<size_t> i = slot.get();
          return i ? json_text::quote(slot.names[*i]) : "null";
        } else {
          return text_of(*slot);
        }
      },
      slot_of_copy(field, copy));
  if (!is_text_in_file(field) || text == "null" || text.starts_with('"')) return text;
  if (field.key == "FLASH_ATTEN") return text == "true" ? "\"1\"" : "\"0\"";
  return json_text::quote(text);
}

bool is_default(const Field& field, const Config& config) {
  return value_text(field, config) == value_text(field, Config{});
}

bool set(const Field& field, Config& config, const Value& value) {
  const Value meant = is_text_in_file(field) ? environment_value(field, value) : value;
  return std::visit(
      [&](const auto& slot) {
        if constexpr (std::is_same_v<std::decay_t<decltype(slot)>, Choice>) {
          return put(field, meant, slot);
        } else {
          return put(field, meant, *slot);
        }
      },
      field.slot(config));
}

Value from_text(const Field& field, const std::string& text, const std::string& spelled) {
  // A config.json could not hold it.
  if (!is_utf8(text)) throw user_error("{} is not UTF-8; give a value that is", spelled);
  Value value;
  value.kind = Value::Kind::string;
  value.text = text;
  const std::string type = type_name(field);
  if (text == "null" && (is_nullable(field) || may_be_empty(field))) {
    value.kind = Value::Kind::null;
  } else if (type == "true or false") {
    const bool yes = text == "true" || text == "1", no = text == "false" || text == "0";
    if (yes || no) {
      value.kind = Value::Kind::boolean;
      value.text = yes ? "true" : "false";
    }
  } else if (type == "number" || type == "whole number") {
    if (real_number(text) || whole_number(text)) value.kind = Value::Kind::number;
  } else if (type == "object") {
    return json_text::parse(text, spelled);
  }
  return value;
}

int edit_distance(std::string_view a, std::string_view b) {
  // row[j]: the distance between the prefix of a seen so far and b[0, j)
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = std::exchange(row[0], static_cast<int>(i) + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const int replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

std::string nearest_name(std::string_view name) {
  if (name.size() > 100) return "";  // no key is that long, and the work grows with the product
  const size_t dot = name.find('.');
  const std::string_view section = dot == std::string_view::npos ? "" : name.substr(0, dot);
  const std::string_view key = dot == std::string_view::npos ? name : name.substr(dot + 1);
  const int tolerated = std::max(1, static_cast<int>(key.size()) / 3);
  int best = tolerated * 2 + 1;
  std::string nearest;
  for (const Field& field : table()) {
    int distance = edit_distance(key, field.key);
    if (key == field.flag || (key.size() > 3 && field.key.starts_with(key)))
      distance = std::min(distance, 1);
    if (distance > tolerated) continue;
    // Between equally near keys, the one of the section that was named.
    const int total = 2 * distance + (section == field.section ? 0 : 1);
    if (total < best) {
      best = total;
      nearest = field.name();
    }
  }
  return nearest;
}

}  // namespace picotron::config_table
