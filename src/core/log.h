// What a rank prints. Rank 0 speaks plainly; of the others only errors are heard, and their lines
// say which rank. The calling thread's rank is that of its record::Recorder (core/record.h); a
// thread without one speaks as rank 0.
#pragma once
#include <string_view>

namespace picotron::log {

bool speaks();                         // the calling thread is rank 0
void print(std::string_view text);     // a line on stdout, from rank 0 alone
void warn(std::string_view sentence);  // "warning: …" on stderr, from rank 0 alone
void error(std::string_view sentence);  // "error: …" on stderr; from rank R > 0 "[rank R] error: …"

}  // namespace picotron::log
