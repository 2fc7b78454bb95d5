// builtin:stories against a second, slower reading of the same grammar text. Here nothing is merged
// into a tree and no entropy is derived: the model keeps every way the text so far can have been
// made (scene, line, place in the line, words remembered), each with its probability, and predicts
// by summing over them. That is exact for any grammar, ambiguous ones included, so that agreement
// with the floor says that the automaton, its probabilities and its entropy are all right.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "core/error.h"
#include "data/grammar.h"
#include "data/stories.h"

namespace picotron {
namespace {

class ExactModel {
 public:
  explicit ExactModel(std::string_view text, const std::vector<std::string>& vocabulary) {
    for (size_t i = 0; i < vocabulary.size(); ++i) tokens_[vocabulary[i]] = static_cast<int32_t>(i);
    std::istringstream stream{std::string(text)};
    std::string scene;
    for (std::string line; std::getline(stream, line);) {
      std::istringstream words(line);
      std::vector<std::string> parts;
      for (std::string part; words >> part;) parts.push_back(part);
      if (parts.empty()) continue;
      if (parts[0] == "words") {
        read_class(parts);
      } else if (parts[0][0] == '[') {
        scene = parts[0].substr(1, parts[0].size() - 2);
        if (first_scene_.empty()) first_scene_ = scene;
      } else {
        scenes_[scene].push_back(
            {std::stod(parts[0]), {parts.begin() + 1, parts.end() - 2}, parts.back()});
      }
    }
    restart();
  }

  void restart() {
    ways_.clear();
    enter(first_scene_, 1.0, {});
  }

  // token → probability, over every token that may follow.
  std::map<int32_t, double> predict() const {
    std::map<int32_t, double> out;
    for (const Way& way : ways_) {
      for (const auto& [token, probability, memory] : emissions(way)) {
        out[token] += way.probability * probability;
      }
    }
    return out;
  }

  void observe(int32_t seen) {
    std::vector<Way> before;
    std::swap(before, ways_);
    double total = 0;
    for (const Way& way : before) {
      for (const auto& [token, probability, memory] : emissions(way)) {
        if (token != seen) continue;
        const double joint = way.probability * probability;
        total += joint;
        if (way.item + 1 < way.line->items.size()) {
          ways_.push_back({joint, way.line, way.item + 1, memory});
        } else {
          enter(way.line->next, joint, memory);
        }
      }
    }
    for (Way& way : ways_) way.probability /= total;
  }

 private:
  using Entry = std::map<std::string, int32_t>;  // form → token
  using Memory = std::map<std::string, const Entry*>;
  struct Line {
    double weight;
    std::vector<std::string> items;
    std::string next;
  };
  struct Way {
    double probability;
    const Line* line;
    size_t item;
    Memory memory;
  };
  struct Emission {
    int32_t token;
    double probability;
    Memory memory;
  };

  static std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts(1);
    for (const char c : text) {
      if (c == '/')
        parts.emplace_back();
      else
        parts.back() += c;
    }
    return parts;
  }

  void read_class(std::vector<std::string> parts) {
    std::vector<std::string> forms{""};
    size_t first = 2;
    if (parts[1].back() != ':') {
      forms = split(parts[2].substr(0, parts[2].size() - 1));
      first = 3;
    } else {
      parts[1].pop_back();
    }
    for (size_t i = first; i < parts.size(); ++i) {
      Entry entry;
      const auto spelled = split(parts[i]);
      for (size_t form = 0; form < forms.size(); ++form) {
        entry[forms[form]] = tokens_.at(spelled[form]);
      }
      entry[""] = tokens_.at(spelled[0]);
      classes_[parts[1]].push_back(entry);
    }
  }

  void enter(const std::string& scene, double probability, const Memory& memory) {
    double total = 0;
    for (const Line& line : scenes_.at(scene)) total += line.weight;
    for (const Line& line : scenes_.at(scene)) {
      const double share = probability * line.weight / total;
      if (line.items.empty()) {
        enter(line.next, share, memory);
      } else {
        ways_.push_back({share, &line, 0, memory});
      }
    }
  }

  std::vector<Emission> emissions(const Way& way) const {
    const std::string& item = way.line->items[way.item];
    if (item[0] != '{') return {{tokens_.at(item), 1.0, way.memory}};
    const std::string inner = item.substr(1, item.size() - 2);
    const size_t equals = inner.find('=');
    if (inner[0] == '?' || equals != std::string::npos) {
      const std::string slot = inner[0] == '?' ? "" : inner.substr(0, equals);
      const auto& entries = classes_.at(inner.substr(inner[0] == '?' ? 1 : equals + 1));
      std::vector<Emission> out;
      for (const Entry& entry : entries) {
        Memory memory = way.memory;
        if (!slot.empty()) memory[slot] = &entry;
        out.push_back({entry.at(""), 1.0 / static_cast<double>(entries.size()), memory});
      }
      return out;
    }
    const size_t dot = inner.find('.');
    const Entry& entry = *way.memory.at(inner.substr(0, dot));
    return {{entry.at(dot == std::string::npos ? "" : inner.substr(dot + 1)), 1.0, way.memory}};
  }

  std::map<std::string, int32_t> tokens_;
  std::map<std::string, std::vector<Entry>> classes_;
  std::map<std::string, std::vector<Line>> scenes_;
  std::string first_scene_;
  std::vector<Way> ways_;
};

std::vector<int32_t> row_of(const Dataset& dataset, int64_t row) {
  std::vector<int32_t> out(dataset.seq_length() + 1);
  dataset.read_row(row, out);
  return out;
}

TEST(Stories, AnExactModelReachesTheFloorAndNoLower) {
  constexpr int64_t seq = 128, rows = 8000;  // 1,024,000 targets
  const auto stories = open_stories(7, StoryStream::train, seq, rows);
  ExactModel model(story_grammar(), compile_grammar(story_grammar()).vocabulary);
  double surprisal = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const auto tokens = row_of(*stories, row);
    ASSERT_EQ(tokens[0], 0);
    model.restart();
    for (int64_t i = 1; i <= seq; ++i) {
      const auto next = model.predict();
      const auto found = next.find(tokens[i]);
      ASSERT_NE(found, next.end()) << "row " << row << ", token " << i << " cannot be there";
      surprisal -= std::log(found->second);
      if ((row * seq + i) % 997 == 0) {
        double sum = 0;
        for (const auto& [token, probability] : next) sum += probability;
        EXPECT_NEAR(sum, 1.0, 1e-12);
      }
      model.observe(tokens[i]);
    }
  }
  const double mean = surprisal / static_cast<double>(rows * seq);
  fmt::print("exact model {:.5f}, floor {:.5f} nats per token\n", mean, *stories->floor());
  EXPECT_NEAR(mean / *stories->floor(), 1.0, 0.005);
}

TEST(Stories, FloorOfATinyGrammarIsThatOfTheHand) {
  // Two lines of equal weight; "a" then draws one of two and says it again.
  const Automaton grammar =
      compile_grammar("words w: x y\n[s]\n1 a {k=w} {k} > e\n1 b > e\n[e]\n1 <story> > s\n");
  const double ln2 = std::log(2.0);
  EXPECT_NEAR(entropy_per_token(grammar, 1), ln2, 1e-15);                    // a or b
  EXPECT_NEAR(entropy_per_token(grammar, 2), (ln2 + 0.5 * ln2) / 2, 1e-15);  // x or y after a
  // Token 3: the copy after "a x" is certain; after "b <story>" again a or b.
  EXPECT_NEAR(entropy_per_token(grammar, 3), (ln2 + 0.5 * ln2 + 0.5 * ln2) / 3, 1e-15);
}

TEST(Stories, RowsDependOnSeedStreamAndRowAlone) {
  const auto a = open_stories(1, StoryStream::train, 64, 100);
  const auto again = open_stories(1, StoryStream::train, 64, 400000);
  const auto longer = open_stories(1, StoryStream::train, 256, 100);
  const auto seed = open_stories(2, StoryStream::train, 64, 100);
  const auto other = open_stories(1, StoryStream::validation, 64, 100);
  std::set<std::vector<int32_t>> seen;
  for (const int64_t row : {99, 0, 50}) {
    const auto tokens = row_of(*a, row);
    EXPECT_EQ(tokens, row_of(*again, row));
    auto prefix = row_of(*longer, row);
    prefix.resize(65);
    EXPECT_EQ(tokens, prefix);
    EXPECT_NE(tokens, row_of(*seed, row));
    EXPECT_NE(tokens, row_of(*other, row));
    EXPECT_TRUE(seen.insert(tokens).second);
  }
  EXPECT_EQ(a->num_rows(), 100);
  EXPECT_EQ(a->vocab_size(), a->tokenizer()->vocab_size());
}

TEST(Stories, TextReadsAsTextAndGoesBackToTokens) {
  const auto tokenizer = story_tokenizer();
  const std::string text =
      "Once upon a time, there was a brave girl named Mia. “Why are you so sad?” asked Mia softly. "
      "“I am hungry,” said the fox gently.\n\nThere once was a shy boy named Tom.";
  const auto tokens = tokenizer->encode(text);
  EXPECT_EQ(tokenizer->decode(tokens), text);
  EXPECT_EQ(
      tokenizer->encode("ONCE upon a time , there was a brave girl named mia. \"why are you so "
                        "sad?\" asked mia softly. \"i am hungry,\" said the fox gently. "
                        "<story> there once was a shy boy named Tom."),
      tokens);
  const auto stories = open_stories(3, StoryStream::train, 256, 200);
  for (int64_t row = 0; row < 200; ++row) {
    auto made = row_of(*stories, row);
    made.erase(made.begin());
    const std::string decoded = tokenizer->decode(made);
    ASSERT_EQ(tokenizer->encode(decoded), made) << decoded;
    ASSERT_EQ(decoded.find(" ."), std::string::npos) << decoded;
  }
  EXPECT_EQ(*tokenizer->bos(), 0);
}

TEST(Stories, ArticlesAgree) {
  const auto stories = open_stories(5, StoryStream::train, 256, 500);
  for (int64_t row = 0; row < 500; ++row) {
    const std::string text = stories->tokenizer()->decode(row_of(*stories, row));
    for (const char vowel : std::string("aeio")) {
      ASSERT_EQ(text.find(std::string(" a ") + vowel), std::string::npos) << text;
    }
  }
}

TEST(Stories, UnknownWordIsNamedWithNearOnes) {
  try {
    story_tokenizer()->encode("Once upon a time, there was a hapy girl.");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("\"hapy\""), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("near ones are happy"), std::string::npos)
        << error.what();
  }
  EXPECT_THROW(story_tokenizer()->encode("Zoë"), UserError);
  EXPECT_THROW(story_tokenizer()->encode(std::string(100000, 'x')), UserError);
  EXPECT_THROW(story_tokenizer()->encode("a;b"), UserError);
  EXPECT_THROW(story_tokenizer()->decode(std::vector<int32_t>{100000}), UserError);
  EXPECT_THROW(story_tokenizer()->decode(std::vector<int32_t>{-1}), UserError);
}

TEST(Stories, VocabularyIsPrintedInColumns) {
  const std::string printed = story_vocabulary();
  std::istringstream lines(printed);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 110u);
  for (const std::string& word : compile_grammar(story_grammar()).vocabulary) {
    if (word == story_mark) continue;
    EXPECT_NE(printed.find(word), std::string::npos) << word;
  }
}

TEST(Grammar, RejectsWhatItCannotTellApart) {
  const std::string end = "[e]\n1 <story> > s\n";
  EXPECT_NO_THROW(compile_grammar("[s]\n1 a b > e\n2 a c > e\n" + end));
  const std::vector<std::string> bad{
      "",                                                    // no scene
      "[s]\n1 a > e\n1 a > s\n" + end,                       // the same line twice
      "[s]\n1 a > e\n1 a b > e\n" + end,                     // a line begins another
      "words w: a b\n[s]\n1 a c > e\n1 {?w} d > e\n" + end,  // a word and a class with it
      "words w: a b\n[s]\n1 {k} > e\n1 {k=w} > e\n" + end,   // never set, and not apart
      "words w: a b\n[s]\n1 {k=w} > t\n1 c > t\n[t]\n1 {k} . > e\n" + end,  // set on one path
      "words w: a b\n[s]\n1 {k=w} {k.past} > e\n" + end,                    // no such form
      "words w base/past: a/b c\n[s]\n1 {?w} > e\n" + end,                  // a form is missing
      "words w: a a\n[s]\n1 {?w} > e\n" + end,                              // a word twice
      "[s]\n1 a > nowhere\n" + end,
      "[s]\na > e\n" + end,       // no weight
      "[s]\n1 a\n" + end,         // no next scene
      "[s]\n1 > s\n" + end,       // goes on forever
      "[s]\n1 {?w} > e\n" + end,  // no such class
  };
  for (const std::string& text : bad) EXPECT_THROW(compile_grammar(text), BrokenInvariant) << text;
}

}  // namespace
}  // namespace picotron
