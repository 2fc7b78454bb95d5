// Another process, spoken to in lines: what is to be measured undisturbed, or is not C++, runs in a
// process of its own, reads a request from its standard input and answers with one line.
//
//     this process  ── "steps 5" ─▶ stdin  child  stdout ── "[0.91, 0.90, …]" ─▶  this process
#pragma once
#include <sys/types.h>

#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace picotron {

class ChildProcess {
 public:
  // Starts `program` (PATH is searched) with these arguments. RunError where no process can be
  // made; a program that does not exist is a child whose first answer is missing.
  static ChildProcess start(const std::string& program, const std::vector<std::string>& arguments);
  // Runs `body` in a copy of this process, with its standard input and output connected to this
  // one; the child ends with the exit code that body returns. Only before this process has started
  // threads.
  static ChildProcess fork(const std::function<int()>& body);

  ~ChildProcess();  // closes its input and waits for its end
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Sends a line; false where the child has ended.
  bool write_line(const std::string& line);
  // Its next line, without the newline; nothing where it has ended.
  std::optional<std::string> read_line();

 private:
  ChildProcess(pid_t pid, int to_child, int from_child);
  pid_t pid_;
  FILE* input_;
  FILE* output_;
};

}  // namespace picotron
