// Three parts: the compiler from a grammar's text to an automaton, the walk that writes stories,
// and the Markov chain that gives their entropy. grammar.h has the language and the formula.
#include "data/grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "core/error.h"
#include "data/random.h"

namespace picotron {
namespace {

struct Line {
  double weight = 0;
  std::vector<Edge> items;
  std::string next;  // the scene that follows
  std::string text;
};

struct Scene {
  std::string name;
  std::vector<Line> lines;
};

// Two edges that say the same thing, wherever they lead: a tree's lines share them.
bool same_item(const Edge& a, const Edge& b) {
  return a.kind == b.kind && a.token == b.token && a.word_class == b.word_class &&
         a.slot == b.slot && a.form == b.form;
}

class Compiler {
 public:
  Automaton compile(std::string_view text) {
    token_of(std::string(story_mark));
    parse(text);
    // A scene's root has the scene's number; the states inside the trees come after all roots.
    grammar_.states.resize(scenes_.size());
    for (size_t scene = 0; scene < scenes_.size(); ++scene) {
      std::vector<Line> lines;
      expand(static_cast<int>(scene), 1.0, 0, lines);
      build_tree(static_cast<int>(scene), lines, 0);
    }
    check_told_apart();
    check_remembered();
    grammar_.num_slots = static_cast<int>(slots_.size());
    return std::move(grammar_);
  }

 private:
  [[noreturn]] static void reject(std::string_view line, std::string_view why) {
    throw BrokenInvariant(fmt::format("grammar, \"{}\": {}", line, why));
  }

  int token_of(const std::string& word) {
    const auto [at, is_new] = tokens_.emplace(word, static_cast<int>(grammar_.vocabulary.size()));
    if (is_new) grammar_.vocabulary.push_back(word);
    return at->second;
  }

  int class_named(const std::string& name, std::string_view line) const {
    for (size_t i = 0; i < grammar_.classes.size(); ++i) {
      if (grammar_.classes[i].name == name) return static_cast<int>(i);
    }
    reject(line, fmt::format("no words \"{}\"", name));
  }

  int scene_named(const std::string& name, std::string_view line) const {
    for (size_t i = 0; i < scenes_.size(); ++i) {
      if (scenes_[i].name == name) return static_cast<int>(i);
    }
    reject(line, fmt::format("no scene [{}]", name));
  }

  static std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
    return parts;
  }

  void parse(std::string_view text) {
    std::istringstream stream{std::string(text)};
    for (std::string line; std::getline(stream, line);) {
      if (line.empty()) continue;
      if (line.starts_with("words ")) {
        parse_words(line);
      } else if (line.front() == '[' && line.back() == ']') {
        scenes_.push_back({line.substr(1, line.size() - 2), {}});
      } else if (scenes_.empty()) {
        reject(line, "a line before the first scene");
      } else {
        scenes_.back().lines.push_back(parse_line(line));
      }
    }
    check(!scenes_.empty(), "a grammar has at least one scene");
  }

  // words NAME [FORM/FORM…]: WORD[/WORD…] …
  void parse_words(const std::string& line) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) reject(line, "words without a colon");
    std::istringstream head(line.substr(0, colon)), body(line.substr(colon + 1));
    WordClass words;
    std::string keyword, forms;
    head >> keyword >> words.name >> forms;
    words.forms = forms.empty() ? std::vector<std::string>{""} : split(forms, '/');
    for (std::string entry; body >> entry;) {
      std::vector<int32_t> tokens;
      for (const std::string& form : split(entry, '/')) tokens.push_back(token_of(form));
      if (tokens.size() != words.forms.size()) reject(line, "\"" + entry + "\" lacks a form");
      words.entries.push_back(tokens);
    }
    if (words.entries.empty()) reject(line, "no words");
    grammar_.classes.push_back(words);
  }

  // WEIGHT ITEM… > SCENE
  Line parse_line(const std::string& text) {
    std::istringstream stream(text);
    Line line;
    line.text = text;
    if (!(stream >> line.weight) || line.weight <= 0) reject(text, "no weight");
    for (std::string item; stream >> item;) {
      if (item == ">") {
        stream >> line.next;
        break;
      }
      line.items.push_back(item.front() == '{' ? parse_braces(item, text)
                                               : Edge{.token = token_of(item)});
    }
    if (line.next.empty()) reject(text, "no scene follows");
    return line;
  }

  // {?class} {slot=class} {slot} {slot.form}
  Edge parse_braces(const std::string& item, std::string_view line) {
    if (item.back() != '}') reject(line, "no } after " + item);
    const std::string inner = item.substr(1, item.size() - 2);
    if (inner.front() == '?') {
      return {.kind = Edge::Kind::draw, .word_class = class_named(inner.substr(1), line)};
    }
    if (const size_t equals = inner.find('='); equals != std::string::npos) {
      const int slot = slot_named(inner.substr(0, equals));
      const int word_class = class_named(inner.substr(equals + 1), line);
      slot_classes_[slot].insert(word_class);
      return {.kind = Edge::Kind::draw, .word_class = word_class, .slot = slot};
    }
    const size_t dot = inner.find('.');
    const int slot = slot_named(inner.substr(0, dot));
    return {.kind = Edge::Kind::recall,
            .slot = slot,
            .form = dot == std::string::npos ? 0 : form_named(slot, inner.substr(dot + 1), line)};
  }

  int slot_named(const std::string& name) {
    const auto [at, is_new] = slots_.emplace(name, static_cast<int>(slots_.size()));
    if (is_new) slot_classes_.emplace_back();
    return at->second;
  }

  // All classes of a slot have that form in one place: an edge need not know which was drawn.
  int form_named(int slot, const std::string& name, std::string_view line) const {
    int form = -1;
    for (const int word_class : slot_classes_[slot]) {
      const auto& forms = grammar_.classes[word_class].forms;
      const int here = static_cast<int>(std::ranges::find(forms, name) - forms.begin());
      if (here == static_cast<int>(forms.size()) || (form >= 0 && here != form)) form = -2;
      if (form != -2) form = here;
    }
    if (form < 0) reject(line, fmt::format("no common form \"{}\"", name));
    return form;
  }

  // The lines of a scene, with those that go on at once replaced by the lines of where they go.
  void expand(int scene, double weight, size_t depth, std::vector<Line>& out) const {
    const Scene& from = scenes_[scene];
    if (depth > scenes_.size()) reject(from.name, "goes on at once, forever");
    double total = 0;
    for (const Line& line : from.lines) total += line.weight;
    for (const Line& line : from.lines) {
      const double share = weight * line.weight / total;
      if (line.items.empty()) {
        expand(scene_named(line.next, line.text), share, depth + 1, out);
      } else {
        out.push_back(line);
        out.back().weight = share;
      }
    }
  }

  // Gives `state` one edge for each different item at `depth` of `lines`, and builds what follows.
  void build_tree(int state, const std::vector<Line>& lines, size_t depth) {
    double total = 0;
    for (const Line& line : lines) total += line.weight;
    std::vector<Edge> edges;
    std::vector<std::vector<Line>> groups;
    for (const Line& line : lines) {
      const Edge& item = line.items[depth];
      size_t i = 0;
      while (i < edges.size() && !same_item(edges[i], item)) ++i;
      if (i == edges.size()) {
        edges.push_back(item);
        groups.emplace_back();
      }
      edges[i].probability += line.weight / total;
      groups[i].push_back(line);
    }
    for (size_t i = 0; i < edges.size(); ++i) {
      const Line& first = groups[i].front();
      if (depth + 1 < first.items.size()) {
        edges[i].target = static_cast<int>(grammar_.states.size());
        grammar_.states.emplace_back();
        for (const Line& line : groups[i]) {
          if (line.items.size() <= depth + 1) reject(line.text, "is the beginning of another line");
        }
        build_tree(edges[i].target, groups[i], depth + 1);
      } else {
        if (groups[i].size() > 1) reject(first.text, "cannot be told from another line");
        edges[i].target = scene_named(first.next, first.text);
      }
    }
    grammar_.states[state] = std::move(edges);
  }

  std::set<int> tokens_of(const Edge& edge) const {
    std::set<int> tokens;
    const auto add = [&](int word_class) {
      for (const auto& entry : grammar_.classes[word_class].entries)
        tokens.insert(entry[edge.form]);
    };
    if (edge.kind == Edge::Kind::literal) tokens.insert(edge.token);
    if (edge.kind == Edge::Kind::draw) add(edge.word_class);
    if (edge.kind == Edge::Kind::recall) std::ranges::for_each(slot_classes_[edge.slot], add);
    return tokens;
  }

  void check_told_apart() const {
    for (const auto& edges : grammar_.states) {
      std::set<int> seen;
      for (const Edge& edge : edges) {
        const std::set<int> tokens = tokens_of(edge);
        if (edge.kind == Edge::Kind::draw) {
          if (tokens.size() != grammar_.classes[edge.word_class].entries.size()) {
            reject(grammar_.classes[edge.word_class].name, "draws a word that is there twice");
          }
        }
        for (const int token : tokens) {
          if (!seen.insert(token).second) {
            reject(grammar_.vocabulary[token], "may continue a line in two ways");
          }
        }
      }
    }
  }

  // What is remembered in each state on every path to it, to a fixed point from "everything" down.
  void check_remembered() const {
    std::set<int> all;
    for (size_t slot = 0; slot < slots_.size(); ++slot) all.insert(static_cast<int>(slot));
    std::vector<std::set<int>> known(grammar_.states.size(), all);
    known[0].clear();  // a story starts with nothing
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t state = 0; state < grammar_.states.size(); ++state) {
        for (const Edge& edge : grammar_.states[state]) {
          std::set<int> after = known[state];
          if (edge.kind == Edge::Kind::draw && edge.slot >= 0) after.insert(edge.slot);
          changed |=
              std::erase_if(known[edge.target], [&](int s) { return !after.contains(s); }) > 0;
        }
      }
    }
    for (size_t state = 0; state < grammar_.states.size(); ++state) {
      for (const Edge& edge : grammar_.states[state]) {
        if (edge.kind != Edge::Kind::recall || known[state].contains(edge.slot)) continue;
        for (const auto& [name, slot] : slots_) {
          if (slot == edge.slot) reject(name, "is used on a path that never set it");
        }
      }
    }
  }

  Automaton grammar_;
  std::vector<Scene> scenes_;
  std::map<std::string, int> tokens_;
  std::map<std::string, int> slots_;
  std::vector<std::set<int>> slot_classes_;  // [slot] → the classes that are drawn into it
};

}  // namespace

Automaton compile_grammar(std::string_view text) {
  return Compiler().compile(text);
}

void generate_stories(const Automaton& grammar, uint64_t key, std::span<int32_t> out) {
  CounterRandom random(key);
  std::vector<const std::vector<int32_t>*> memory(grammar.num_slots, nullptr);
  int state = 0;
  if (!out.empty()) out[0] = 0;
  for (size_t i = 1; i < out.size(); ++i) {
    const std::vector<Edge>& edges = grammar.states[state];
    size_t choice = 0;
    if (edges.size() > 1) {
      double u = random.uniform() - edges[0].probability;
      while (u >= 0 && choice + 1 < edges.size()) u -= edges[++choice].probability;
    }
    const Edge& edge = edges[choice];
    switch (edge.kind) {
      case Edge::Kind::literal:
        out[i] = edge.token;
        break;
      case Edge::Kind::draw: {
        const auto& entries = grammar.classes[edge.word_class].entries;
        const auto& entry = entries[random.below(static_cast<uint32_t>(entries.size()))];
        if (edge.slot >= 0) memory[edge.slot] = &entry;
        out[i] = entry[edge.form];
        break;
      }
      case Edge::Kind::recall:
        out[i] = (*memory[edge.slot])[edge.form];
        break;
    }
    state = edge.target;
  }
}

double entropy_per_token(const Automaton& grammar, int64_t num_targets) {
  const size_t num_states = grammar.states.size();
  std::vector<double> entropy(num_states, 0.0);  // of the token that leaves the state
  for (size_t state = 0; state < num_states; ++state) {
    for (const Edge& edge : grammar.states[state]) {
      double surprisal = -std::log(edge.probability);
      if (edge.kind == Edge::Kind::draw) {
        surprisal += std::log(static_cast<double>(grammar.classes[edge.word_class].entries.size()));
      }
      entropy[state] += edge.probability * surprisal;
    }
  }
  std::vector<double> here(num_states, 0.0), after(num_states);
  here[0] = 1;
  double total = 0;
  for (int64_t i = 0; i < num_targets; ++i) {
    std::ranges::fill(after, 0.0);
    for (size_t state = 0; state < num_states; ++state) {
      if (here[state] == 0) continue;
      total += here[state] * entropy[state];
      for (const Edge& edge : grammar.states[state]) {
        after[edge.target] += here[state] * edge.probability;
      }
    }
    std::swap(here, after);
  }
  return total / static_cast<double>(num_targets);
}

}  // namespace picotron
