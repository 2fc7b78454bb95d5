// The published models whose shapes the program knows, so that training one from random weights
// needs no download. To add a model: an entry in known_architectures.cpp, and its published count
// of parameters in tests/unit/architectures_test.cpp.
// Read next: known_architectures.cpp.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "model/architectures.h"

namespace picotron {

// Keys are hub ids, "HuggingFaceTB/SmolLM-135M"; null when `name` is not in the table.
const LlamaConfig* find_architecture(std::string_view name);
std::vector<std::string> known_architectures();

// The hub id that `name` most resembles, with or without the part before the slash, which people
// forget; "" where nothing is near.
std::string nearest_architecture(std::string_view name);

}  // namespace picotron
