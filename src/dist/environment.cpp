// Reading RANK, WORLD_SIZE and their cousins: each is checked, alone and against the others, for a
// wrong one would otherwise show as ranks that wait for ever.
#include "dist/environment.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <string_view>

#include "core/error.h"

namespace picotron {
namespace {

constexpr int kDefaultPort = 29500;  // c10d's

std::optional<std::string> text(const Getenv& get, const char* name) {
  const char* value = get(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

std::optional<int> number(const Getenv& get, const char* name, int low, int high) {
  const std::optional<std::string> value = text(get, name);
  if (!value) return std::nullopt;
  int result = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), result);
  if (error != std::errc() || end != value->data() + value->size() || result < low ||
      result > high) {
    throw user_error("the environment variable {}=\"{}\" is not a number from {} to {}", name,
                     *value, low, high);
  }
  return result;
}

constexpr int kMostRanks = 1'000'000;

// "2(x3),1": the first machine runs two.
std::optional<int> first_count(const Getenv& get, const char* name) {
  const std::optional<std::string> value = text(get, name);
  int result = 0;
  if (!value) return std::nullopt;
  std::from_chars(value->data(), value->data() + value->size(), result);
  return result > 0 ? std::optional(result) : std::nullopt;
}

struct Names {
  Started started;
  const char *rank, *world_size, *local_rank, *local_size;
};
constexpr Names kNames[] = {
    {Started::by_us, "PICOTRON_RANK", "PICOTRON_WORLD_SIZE", "PICOTRON_RANK",
     "PICOTRON_WORLD_SIZE"},
    {Started::torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {Started::slurm, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr},
    {Started::open_mpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
};

void find_master(const Getenv& get, LaunchEnvironment& found) {
  const std::optional<std::string> host = text(get, "MASTER_ADDR");
  const std::optional<int> port = number(get, "MASTER_PORT", 1, 65535);
  if (found.started == Started::torchrun && (!host || !port)) {
    throw user_error("RANK and WORLD_SIZE are set but {} is not; set it, or unset both",
                     host ? "MASTER_PORT" : "MASTER_ADDR");
  }
  found.master_port = port.value_or(kDefaultPort);
  if (host) {
    found.master_host = *host;
  } else if (found.started == Started::slurm) {
    std::optional<std::string> list = text(get, "SLURM_STEP_NODELIST");
    if (!list) list = text(get, "SLURM_NODELIST");
    if (!list) list = text(get, "SLURM_JOB_NODELIST");
    // Ranks of one machine meet there by whatever name; its own may not resolve.
    if (list && found.local_size < found.world_size) found.master_host = first_host(*list);
  } else if (found.local_size < found.world_size) {
    throw user_error("mpirun started ranks on several machines; set MASTER_ADDR to the first one");
  }
  if (!port && found.started == Started::slurm) {
    // Jobs that share a machine should not meet by accident.
    const int job = number(get, "SLURM_JOB_ID", 0, 2'000'000'000).value_or(0);
    if (job > 0) found.master_port = 20'000 + job % 20'000;
  }
}

}  // namespace

std::string first_host(const std::string& nodelist) {
  std::string host;
  for (size_t i = 0; i < nodelist.size() && nodelist[i] != ','; ++i) {
    if (nodelist[i] != '[') {
      host += nodelist[i];
      continue;
    }
    const size_t close = nodelist.find(']', i);
    host += nodelist.substr(i + 1, nodelist.find_first_of("-,]", i + 1) - i - 1);
    if (close == std::string::npos) break;
    i = close;
  }
  return host;
}

LaunchEnvironment read_environment(const Getenv& get) {
  for (const Names& names : kNames) {
    const auto rank = number(get, names.rank, 0, kMostRanks);
    const auto world_size = number(get, names.world_size, 1, kMostRanks);
    if (!rank || !world_size) continue;
    // A SLURM allocation of one task is a machine like any other: the config's ranks start on it.
    if (names.started == Started::slurm && *world_size == 1) continue;
    LaunchEnvironment found{.started = names.started, .rank = *rank, .world_size = *world_size};
    if (found.rank >= found.world_size) {
      throw user_error("{}={} must be below {}={}", names.rank, found.rank, names.world_size,
                       found.world_size);
    }
    found.local_rank = number(get, names.local_rank, 0, kMostRanks).value_or(found.rank);
    found.local_size =
        (names.local_size != nullptr              ? number(get, names.local_size, 1, kMostRanks)
         : text(get, "SLURM_STEP_TASKS_PER_NODE") ? first_count(get, "SLURM_STEP_TASKS_PER_NODE")
                                                  : first_count(get, "SLURM_TASKS_PER_NODE"))
            .value_or(found.world_size);
    if (names.started == Started::by_us) {
      found.launcher = number(get, "PICOTRON_LAUNCHER", 1, 1 << 30).value_or(0);
      found.master_port = number(get, "PICOTRON_PORT", 1, 65535).value_or(0);
      found.store_is_served = true;
      return found;
    }
    find_master(get, found);
    found.store_is_served = text(get, "TORCHELASTIC_USE_AGENT_STORE") == "True";
    found.attempt = text(get, "TORCHELASTIC_RESTART_COUNT").value_or("0");
    return found;
  }
  return {};
}

std::vector<std::string> environment_for_rank(int rank, int world_size, int port, pid_t launcher) {
  return {fmt::format("PICOTRON_RANK={}", rank), fmt::format("PICOTRON_WORLD_SIZE={}", world_size),
          fmt::format("PICOTRON_PORT={}", port), fmt::format("PICOTRON_LAUNCHER={}", launcher)};
}

}  // namespace picotron
