// One transfer, redirects, and tries.
#include "hub/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <memory>
#include <string_view>
#include <thread>

#include "core/error.h"

namespace picotron::http {
namespace {

using std::chrono::milliseconds;

constexpr int kTries = 5, kRedirects = 8;
constexpr milliseconds kFirstWait{250}, kLongestWait{60'000};

std::string host_of(const std::string& url) {
  const size_t begin = url.find("://");
  const size_t from = begin == std::string::npos ? 0 : begin + 3;
  return url.substr(from, url.find_first_of("/?#", from) - from);
}

// Of a Location header, which may leave out the host.
std::string absolute(const std::string& location, const std::string& base) {
  if (location.find("://") != std::string::npos) return location;
  const size_t host = base.find("://") + 3;
  return base.substr(0, base.find('/', host)) + location;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return result;
}

// One answer: libcurl calls back with its headers, then its body.
struct Transfer {
  const Request& request;
  int64_t& received;  // of the file, over all tries
  int64_t status = 0, offset = 0;
  std::map<std::string, std::string> headers = {};
  std::string body = {};
  std::exception_ptr failure = {};

  void take_header(std::string_view line) {
    if (line.starts_with("HTTP/")) {
      headers.clear();
      const size_t space = line.find(' ');
      status = space == std::string_view::npos ? 0 : std::atoll(line.data() + space + 1);
      // A part, if that is what came; else the whole from its beginning.
      offset = status == 206 ? received : 0;
      return;
    }
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) return;
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && std::string_view(" \r\n").find(value.front()) != value.npos)
      value.remove_prefix(1);
    while (!value.empty() && std::string_view(" \r\n").find(value.back()) != value.npos)
      value.remove_suffix(1);
    headers.emplace(lower(line.substr(0, colon)), value);
  }

  bool take_body(std::span<const char> bytes) {
    if (!request.take || (status != 200 && status != 206)) {
      body.append(bytes.data(), bytes.size());
      return true;
    }
    try {
      request.take(bytes, offset);
    } catch (...) {
      failure = std::current_exception();
      return false;
    }
    offset += std::ssize(bytes);
    received = offset;
    return true;
  }
};

size_t on_header(char* data, size_t size, size_t count, void* transfer) {
  static_cast<Transfer*>(transfer)->take_header({data, size * count});
  return size * count;
}
size_t on_body(char* data, size_t size, size_t count, void* transfer) {
  return static_cast<Transfer*>(transfer)->take_body({data, size * count}) ? size * count : 0;
}

// → libcurl's complaint, "" where an answer came.
// is_known: whether the host has an address.
std::string perform(const std::string& url, bool with_token, Transfer& transfer, bool& is_known) {
  static const CURLcode begun = curl_global_init(CURL_GLOBAL_DEFAULT);
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(),
                                                                 curl_easy_cleanup);
  check(begun == CURLE_OK && curl != nullptr, "libcurl begins");
  const auto set = [&](CURLoption option, auto value) {
    check(curl_easy_setopt(curl.get(), option, value) == CURLE_OK, "libcurl knows the option");
  };
  const Request& request = transfer.request;
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(nullptr, curl_slist_free_all);
  if (with_token && !request.token.empty())
    headers.reset(curl_slist_append(nullptr, ("Authorization: Bearer " + request.token).c_str()));
  set(CURLOPT_URL, url.c_str());
  set(CURLOPT_HTTPHEADER, headers.get());
  set(CURLOPT_NOBODY, request.head ? 1L : 0L);
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_USERAGENT, "picotron");
  set(CURLOPT_CONNECTTIMEOUT_MS, 10'000L);
  set(CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(CURLOPT_LOW_SPEED_TIME, 30L);
  set(CURLOPT_HEADERFUNCTION, on_header);
  set(CURLOPT_HEADERDATA, &transfer);
  set(CURLOPT_WRITEFUNCTION, on_body);
  set(CURLOPT_WRITEDATA, &transfer);
  const std::string range = std::to_string(transfer.received) + "-";
  if (transfer.received > 0 && !request.head) set(CURLOPT_RANGE, range.c_str());
  const CURLcode code = curl_easy_perform(curl.get());
  is_known = code != CURLE_COULDNT_RESOLVE_HOST;
  if (transfer.failure) std::rethrow_exception(transfer.failure);
  return code == CURLE_OK ? "" : curl_easy_strerror(code);
}

bool is_passing(int64_t status) {
  return status == 429 || status >= 500;
}

milliseconds wait_of(int tried, const Response& response) {
  const std::string after = response.header("retry-after");
  const milliseconds asked =
      after.empty() ? kFirstWait * (1 << tried) : milliseconds(1000 * std::atoll(after.c_str()));
  return std::clamp(asked, milliseconds(0), kLongestWait);
}

}  // namespace

Response fetch(const Request& request) {
  std::signal(SIGPIPE, SIG_IGN);  // a host that is gone is an error to try again after
  int64_t received = request.from;
  for (int tried = 0;; ++tried) {
    Response response;
    std::string url = request.url, complaint;
    bool is_known = true;  // by name
    for (int hop = 0; hop <= kRedirects; ++hop) {
      Transfer transfer{request, received};
      complaint = perform(url, host_of(url) == host_of(request.url), transfer, is_known);
      response.status = transfer.status;
      response.headers.merge(transfer.headers);
      response.body = std::move(transfer.body);
      const std::string next = response.header("location");
      const bool is_redirect = response.status >= 300 && response.status < 400 && !next.empty();
      if (!complaint.empty() || !is_redirect) break;
      const std::string target = absolute(next, url);
      const bool leaves = host_of(target) != host_of(request.url);
      if (leaves && !request.leave) break;
      url = target;
      // What the hub says of a file, it says where it sends on to the storage.
      if (leaves) {
        response.headers.erase("location");
      } else {
        response.headers.clear();
      }
    }
    if (complaint.empty() && !is_passing(response.status)) return response;
    if (!is_known) throw run_error("{} cannot be found: {}", host_of(url), complaint);
    if (tried + 1 == kTries) {
      if (complaint.empty()) return response;
      throw run_error("{} does not answer: {}; it was asked {} times", host_of(url), complaint,
                      kTries);
    }
    std::this_thread::sleep_for(wait_of(tried, response));
  }
}

}  // namespace picotron::http
