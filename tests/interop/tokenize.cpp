// What the Python judges of tests/interop and bench/tokenize_text.py ask of tokenizers:
//   encode TOKENIZER           texts on stdin, each a uint32 length and its bytes;
//                              their ids on stdout, each list a uint32 count and int32 values
//   decode TOKENIZER           the other way round
//   time TOKENIZER FILE N      encodes the file on N threads; prints seconds and tokens
//   eos TOKENIZER              the token that ends a document
#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>

#include "core/error.h"
#include "data/tokenizer.h"

namespace picotron {
namespace {

template <class Element>
bool read_list(std::vector<Element>& out) {
  uint32_t count = 0;
  if (std::fread(&count, sizeof count, 1, stdin) != 1) return false;
  out.resize(count);
  check(std::fread(out.data(), sizeof(Element), count, stdin) == count, "a list is whole");
  return true;
}

template <class Container>
void write_list(const Container& list) {
  const auto count = static_cast<uint32_t>(list.size());
  std::fwrite(&count, sizeof count, 1, stdout);
  std::fwrite(list.data(), sizeof list[0], count, stdout);
}

// Pieces of about 10 kB that end at an empty line.
std::vector<std::string_view> documents_of(std::string_view text) {
  std::vector<std::string_view> documents;
  while (!text.empty()) {
    const size_t end = text.find("\n\n", std::min<size_t>(text.size(), 10'000));
    documents.push_back(text.substr(0, end == std::string_view::npos ? end : end + 2));
    text.remove_prefix(documents.back().size());
  }
  return documents;
}

void time(const Tokenizer& tokenizer, const std::string& file, int threads) {
  std::ifstream in(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const std::vector<std::string_view> documents = documents_of(text);
  std::atomic<size_t> next = 0, tokens = 0;
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::jthread> workers;
  for (int i = 0; i < threads; ++i) {
    workers.emplace_back([&] {
      for (size_t d = next++; d < documents.size(); d = next++)
        tokens += tokenizer.encode(documents[d]).size();
    });
  }
  workers.clear();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  fmt::print("{} {}\n", seconds.count(), tokens.load());
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() < 2) throw user_error("usage: tokenize encode|decode|time|eos TOKENIZER …");
  const std::string& command = arguments[0];
  const auto tokenizer = open_tokenizer(arguments[1]);
  if (command == "encode") {
    for (std::vector<char> text; read_list(text);)
      write_list(tokenizer->encode({text.data(), text.size()}));
  } else if (command == "decode") {
    for (std::vector<int32_t> tokens; read_list(tokens);) write_list(tokenizer->decode(tokens));
  } else if (command == "time" && arguments.size() == 4) {
    time(*tokenizer, arguments[2], std::stoi(arguments[3]));
  } else if (command == "eos") {
    fmt::print("{}\n", eos_of(*tokenizer, arguments[1], arguments.size() > 2 ? arguments[2] : ""));
  } else {
    throw user_error("no command {}", command);
  }
  return 0;
}

}  // namespace
}  // namespace picotron

int main(int argc, char** argv) {
  try {
    return picotron::run({argv + 1, argv + argc});
  } catch (const picotron::UserError& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}
