#include "commands/commands.h"
#include "core/error.h"
namespace picotron {
int bench_command(const std::vector<std::string>&) {
  throw user_error("bench");
}
}  // namespace picotron
