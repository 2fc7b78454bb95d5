// Requests to a hub, over libcurl: what may fail for a while is tried again, and a secret goes to
// nobody else.
//
//   redirects    followed by hand: the Authorization header is for the host that was asked, and a
//                hub sends large files' readers on to a storage of another name
//   tries        five, after a broken connection, 429 (too many requests) and 5xx; between them
//                0.25 s, 0.5 s, 1 s, …, or what Retry-After says, up to a minute
//   a stall      less than 1 byte/s for 30 s is a broken connection
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>

namespace picotron::http {

struct Request {
  std::string url;
  std::string token = {};  // "": none; never part of a message
  bool head = false;       // headers only
  bool leave = true;       // follow a redirect to another host; else it is the answer
  int64_t from = 0;        // the first byte that is wanted
  // Takes the body as it comes, and the place of its first byte in the file; without it, it is in
  // Response::body. Called again from an earlier place where a server ignores `from`.
  std::function<void(std::span<const char>, int64_t offset)> take = {};
};

struct Response {
  int64_t status = 0;
  std::map<std::string, std::string> headers;  // names in lower case; of all answers, first wins
  std::string body;

  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

// RunError naming the host where no answer came, however often it was asked. Every status is an
// answer, 429 and 5xx only after the last try. A `take` that has begun is asked to go on where it
// was. Thread-safe.
Response fetch(const Request& request);

}  // namespace picotron::http
