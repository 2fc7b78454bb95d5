// What a rank prints. Rank 0 speaks plainly; of the others only errors are heard, and their lines
// say which rank. The calling thread's rank is that of its record::Recorder (core/record.h); a
// thread without one speaks as rank 0.
#pragma once
#include <chrono>
#include <optional>
#include <string_view>

namespace picotron::log {

bool speaks();                         // the calling thread is rank 0
void print(std::string_view text);     // a line on stdout, from rank 0 alone
void warn(std::string_view sentence);  // "warning: …" on stderr, from rank 0 alone
void error(std::string_view sentence);  // "error: …" on stderr; from rank R > 0 "[rank R] error: …"
// As it is, to stderr. Here as above, what cannot be written (nobody reads any more) is lost, and
// nothing else.
void raw(std::string_view text);

// One line of stderr for work in progress, written over now and then and wiped out at the end; none
// where stderr is no terminal. Not thread-safe.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  bool is_due() const;  // half a second after it was last shown
  void show(std::string_view text);

 private:
  const bool is_terminal_;
  std::optional<std::chrono::steady_clock::time_point> shown_;
};

}  // namespace picotron::log
