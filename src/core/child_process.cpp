// See child_process.h.
#include "core/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "core/error.h"

namespace picotron {

ChildProcess::ChildProcess(pid_t pid, int to_child, int from_child)
    : pid_(pid), input_(fdopen(to_child, "w")), output_(fdopen(from_child, "r")) {}

ChildProcess ChildProcess::fork(const std::function<int()>& body) {
  std::array<int, 2> to_child{}, from_child{};
  if (pipe2(to_child.data(), O_CLOEXEC) != 0 || pipe2(from_child.data(), O_CLOEXEC) != 0)
    throw run_error("cannot open a pipe to another process: {}", strerror(errno));
  std::fflush(nullptr);  // or the child would print again what waits in our buffers
  const pid_t parent = getpid();
  const pid_t pid = ::fork();
  if (pid < 0) throw run_error("cannot start another process: {}", strerror(errno));
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // no child outlives the one who asks
    if (getppid() != parent) _exit(1);
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    // A second child must not hold the first one's pipe open.
    close_range(3, ~0U, 0);
    const int code = body();
    std::fflush(nullptr);
    _exit(code);
  }
  close(to_child[0]);
  close(from_child[1]);
  return {pid, to_child[1], from_child[0]};
}

ChildProcess ChildProcess::start(const std::string& program,
                                 const std::vector<std::string>& arguments) {
  return fork([&] {
    std::vector<char*> argv = {const_cast<char*>(program.c_str())};
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execvp(program.c_str(), argv.data());
    return 127;
  });
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      input_(std::exchange(other.input_, nullptr)),
      output_(std::exchange(other.output_, nullptr)) {}

ChildProcess::~ChildProcess() {
  if (pid_ < 0) return;
  std::fclose(input_);
  std::fclose(output_);
  waitpid(pid_, nullptr, 0);
}

bool ChildProcess::write_line(const std::string& line) {
  // A child that has ended is an answer that is missing, not a signal that ends us.
  const auto before = signal(SIGPIPE, SIG_IGN);
  const bool written = std::fprintf(input_, "%s\n", line.c_str()) >= 0 && std::fflush(input_) == 0;
  signal(SIGPIPE, before);
  return written;
}

std::optional<std::string> ChildProcess::read_line() {
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t length = getline(&line, &capacity, output_);
  std::optional<std::string> result;
  if (length > 0)
    result = std::string(line, static_cast<size_t>(length - (line[length - 1] == '\n')));
  free(line);
  return result;
}

}  // namespace picotron
