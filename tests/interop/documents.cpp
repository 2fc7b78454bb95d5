// What tests/interop/test_documents.py asks:   documents NAME COLUMN [FILE RECORD]
// Each document's text on stdout, a uint32 length and its bytes, from that place on; the peak of
// memory, in bytes, on stderr.
#include <sys/resource.h>

#include <cstdio>

#include "core/error.h"
#include "data/documents.h"

int main(int argc, char** argv) {
  using namespace picotron;
  try {
    DocumentPlace place;
    if (argc > 4) place = {std::stoll(argv[3]), std::stoll(argv[4])};
    DocumentReader reader(find_text_files(argv[1]), argv[2], place);
    for (Record record; reader.next(record);) {
      const std::string text = reader.text_of(record);
      const auto size = static_cast<uint32_t>(text.size());
      std::fwrite(&size, sizeof size, 1, stdout);
      std::fwrite(text.data(), 1, text.size(), stdout);
    }
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(stderr, "%ld\n", usage.ru_maxrss * 1024);
  return 0;
}
