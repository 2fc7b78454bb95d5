// builtin:stories, a data set that needs no download and whose best possible loss is known: short
// stories for small children, in the manner of TinyStories (Eldan and Li 2023, arXiv:2305.07759),
// made by a grammar of a few hundred words.
//
//   Once upon a time, there was a brave girl named Mia. … Then Mia met a gray fox by the bench. The
//   fox looked sad and cross. “Why are you so sad?” asked Mia softly. …
//
// Who the hero is, what was lost and how the fox felt recur sentences later, and the reader who
// remembers has no doubt there: a model comes near the floor only when its attention reaches back.
// Row i is drawn from (seed, stream, i) alone; it starts at a story and is cut at seq_length + 1.
// The grammar is data/stories_grammar.cpp; how its entropy is computed is data/grammar.h.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "data/dataset.h"

namespace picotron {

std::string_view story_grammar();  // the text that data/grammar.h reads

enum class StoryStream : uint64_t { train = 1, validation = 2 };

std::unique_ptr<Dataset> open_stories(uint64_t seed, StoryStream stream, int64_t seq_length,
                                      int64_t num_rows);

std::shared_ptr<const Tokenizer> story_tokenizer();

// The words a prompt may use, in columns, for a person to read.
std::string story_vocabulary();

}  // namespace picotron
