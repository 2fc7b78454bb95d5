#include "core/error.h"
#include "commands/commands.h"
namespace picotron { int bench_command(const std::vector<std::string>&) { throw user_error("bench"); } }
