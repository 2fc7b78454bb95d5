// A grammar whose entropy is known exactly.
//
// The text of a grammar is word classes and a plot of numbered choices:
//
//   words toy: ball kite doll              a class; every entry is one token
//   words act base/past: run/ran sing/sang a class whose entries have several forms
//   [trouble]                              a scene: one of its lines is taken, by weight
//   2 but the wind blew the {toy} away . > sorrow
//   1 > sorrow                             a line without words goes on at once
//
//   {?toy}      a toy, each equally likely      {mine=toy}   the same, remembered as "mine"
//   {mine}      the word remembered             {verb.past}  another form of it
//
// The lines of a scene are merged into a tree by their common beginnings (a trie), so that the
// whole is an automaton in which a token and a state give the next state: the text so far tells
// where we are. And as every word is one token and no choice depends on a remembered word, where we
// are after i tokens is a Markov chain over states, whatever the words were. With d_i its
// distribution and h(s) the entropy of the token that leaves s,
//
//   d_{i+1}(t) = Σ_s d_i(s) P(s→t),      entropy of token i+1 given tokens 0…i  =  Σ_s d_i(s) h(s)
//
// exactly (Shannon 1948, section 7), with no sampling. Next: data/stories.h.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace picotron {

struct WordClass {
  std::string name;
  std::vector<std::string> forms;
  std::vector<std::vector<int32_t>> entries;  // [entry][form] → token
};

struct Edge {
  enum class Kind { literal, draw, recall };
  Kind kind = Kind::literal;
  int token = -1;          // literal
  int word_class = -1;     // draw
  int slot = -1;           // recall; draw: where the entry is remembered, -1 for nowhere
  int form = 0;            // draw, recall
  double probability = 0;  // of this edge among those of its state
  int target = -1;         // the state after it
};

struct Automaton {
  std::vector<std::string> vocabulary;  // token 0 is story_mark
  std::vector<WordClass> classes;
  std::vector<std::vector<Edge>> states;  // after token 0 the state is 0
  int num_slots = 0;
};

inline constexpr std::string_view story_mark = "<story>";

// Throws BrokenInvariant, naming the line, where the text is malformed, where two lines of a scene
// cannot be told apart by their next token, or where a word is used that some path never set.
Automaton compile_grammar(std::string_view text);

// Fills `out` with stories one after the other, from token 0, drawing only from `key`: the same key
// gives the same tokens, and a shorter span gives their beginning.
void generate_stories(const Automaton& grammar, uint64_t key, std::span<int32_t> out);

// The mean entropy, in nats, of tokens 1…num_targets of that text, each given those before it.
double entropy_per_token(const Automaton& grammar, int64_t num_targets);

}  // namespace picotron
