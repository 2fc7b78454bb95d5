// Ranks as threads of the test: every rank meets the others over a HashStore, as `--ranks threads`
// does.
#pragma once
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "core/record.h"
#include "dist/mesh.h"

namespace picotron::testing {

// Runs `body` in `world_size` threads at once and rethrows the first exception.
inline void run_ranks(int world_size, const std::function<void(const Rendezvous&)>& body) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors(static_cast<size_t>(world_size));
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      record::Recorder recorder(rank);
      const record::Attach attached(&recorder);
      try {
        Rendezvous rendezvous;
        rendezvous.global_rank = rank;
        rendezvous.world_size = world_size;
        rendezvous.store = store;
        rendezvous.timeout = std::chrono::seconds(20);
        body(rendezvous);
      } catch (...) {
        errors[static_cast<size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace picotron::testing
