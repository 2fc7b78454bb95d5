// Several data sets in one, each with a share of the rows: "0.7 code/ 0.3 stories.npy". Which row
// is whose is a formula, so nobody keeps a count and every layout reads the same:
//
//     share 0.3     n rows of the mixture hold ⌊0.3 n⌋ of it: row r is one of them where
//                   ⌊0.3 (r + 1)⌋ > ⌊0.3 r⌋, and it is the data set's row ⌊0.3 r⌋
//     the others    share the rows that are left, by the same rule among themselves
//
// So after any n rows each has given its share of them, to within as many rows as there are data
// sets. The mixture ends when the data set that lasts longest has been read once; those that end
// before begin anew, as often as it takes.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace picotron {

struct Ingredient {
  double weight = 1;
  std::string name;
};
// "0.7 a 0.3 b" → its parts; a name that is no list of weights and names → itself alone. Weights
// are positive and need no sum. UserError where a weight is none.
std::vector<Ingredient> parse_mixture(const std::string& name);

// `sources`, of one seq_length, with the weights of `ingredients`. Its vocabulary and tokenizer are
// those of the first that has one: .npy files have none. UserError where vocabularies differ.
std::unique_ptr<Dataset> mix(const std::string& name, const std::vector<Ingredient>& ingredients,
                             std::vector<std::shared_ptr<const Dataset>> sources);

// How often an epoch of the mixture reads each: "an epoch of the mixture is 400 rows: the 100 rows
// of code/ 1.00 times, the 30 rows of stories.npy 10.00 times".
std::string describe_epoch(const Dataset& mixture, const std::vector<Ingredient>& ingredients,
                           const std::vector<std::shared_ptr<const Dataset>>& sources);

}  // namespace picotron
