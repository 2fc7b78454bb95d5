// The only file that includes ProcessGroupGloo: Debian's Gloo headers are older than the Gloo
// inside LibTorch, so nothing of Gloo's own types may be used but what c10d passes through.
#include "dist/gloo.h"

#include <sys/resource.h>

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace picotron {
namespace {

// Each pair of ranks in a group is a socket; the soft limit is often far below the hard one.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // where it is refused, the soft limit stands
}

}  // namespace

BackendFactory gloo_backend(const std::string& address) {
  raise_descriptor_limit();
  auto device = c10d::ProcessGroupGloo::createDeviceForHostname(address);
  return [device](const BackendRequest& request) -> c10::intrusive_ptr<c10d::Backend> {
    auto options = c10d::ProcessGroupGloo::Options::create(request.timeout);
    options->devices = {device};
    // Collectives are built from send and receive, which the device's thread moves.
    options->threads = 1;
    return c10::make_intrusive<c10d::ProcessGroupGloo>(request.store, request.rank, request.size,
                                                       options);
  };
}

}  // namespace picotron
