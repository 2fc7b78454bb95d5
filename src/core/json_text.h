// JSON as a person writes it in a configuration: with // and /* */ comments, and with the place of
// every value kept, so that a message can say `config.json:12:22`.
//
//     {"training": {"seed": 42}}   ─▶   object ─ "training" ─ object ─ "seed" ─ number "42" (1:23)
//
// Numbers stay as they are written: whether 1e400 or 9223372036854775808 fits is for the reader of
// the key to say. What differs from a general JSON library (we use nlohmann's for files that
// programs write) is the message: one sentence with the place and what was expected there.
// Duplicate keys are refused. RFC 8259; read next: config.cpp.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace picotron::json_text {

struct Place {
  int line = 1, column = 1;  // both from 1; columns count bytes
};

struct Member;

struct Value {
  enum class Kind { null, boolean, number, string, array, object };
  Kind kind = Kind::null;
  std::string text;  // "true" or "false"; the number as written; the string decoded
  std::vector<Value> elements;
  std::vector<Member> members;
  Place place;
};

struct Member {
  std::string key;
  Place place;  // of the key
  Value value;
};

// Throws UserError: `name:line:column: expected ',' or '}' after a value, found "foo"`.
Value parse(std::string_view text, const std::string& name);

// "a string", "a number", …: for messages.
std::string describe(const Value& value);
// With quotes, escaped; bytes that are not ASCII stay as they are.
std::string quote(std::string_view text);

}  // namespace picotron::json_text
