// Faults on purpose, each called by its name: tests/faults/test_fuzz.py sees that the net holds
// them. It is no reader's target, has no corpus, and ./run fuzz leaves it out unless it is named.
#include <limits>
#include <thread>
#include <vector>

#include "data/token_files.h"
#include "support.h"

namespace picotron::fuzz {
namespace {

// What the optimizer cannot see through.
volatile int64_t one = 1;
void* volatile kept = nullptr;

void commit_fault(std::string_view name) {
  const ScratchFile file("canary");
  file.write(name);
  if (name == "read beyond a mapping") {
    const MappedFile mapped(file.path());
    sum_of({mapped.bytes().data(), mapped.bytes().size() + static_cast<size_t>(one)});
  } else if (name == "overflow") {
    one = std::numeric_limits<int64_t>::max() + one;
  } else if (name == "another exception") {
    throw std::out_of_range("map::at");
  } else if (name == "a message that commands the terminal") {
    takes([] { throw UserError("\x1b[2J"); });
  } else if (name == "a message as long as the file") {
    takes([] { throw UserError(std::string(100'000, 'x')); });
  } else if (name == "memory") {
    kept = std::vector<char>(size_t{1} << 30, 'x').data();
  } else if (name == "a leak") {
    // In a thread that has ended: no old pointer lies in a register or on a stack.
    std::thread([] {
      for (int i = 0; i < 10; ++i) kept = new std::vector<int>(100);
      kept = nullptr;
    }).join();
  } else if (name == "time") {
    while (one == 1) continue;
  }
}

}  // namespace
}  // namespace picotron::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  picotron::fuzz::commit_fault(picotron::fuzz::text_of(data, size));
  return 0;
}
