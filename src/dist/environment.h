// Who started this process. torchrun, srun and mpirun start the same program many times and tell
// each copy through its environment which rank it is; so does our own launcher.
//
//     torchrun    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
//     srun        SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_NODELIST
//     mpirun      OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE
//
// MASTER_ADDR and MASTER_PORT are used where they are set, whoever started us.
#pragma once
#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace picotron {

enum class Started { single, by_us, torchrun, slurm, open_mpi };

struct LaunchEnvironment {
  Started started = Started::single;
  int rank = 0, world_size = 1;
  int local_rank = 0, local_size = 1;  // on this machine
  std::string master_host = "127.0.0.1";
  int master_port = 0;
  bool store_is_served = false;  // by the one who started us, else by rank 0
  std::string attempt = "0";     // changes when torchrun starts its ranks anew
  pid_t launcher = 0;            // ours
};

// nullptr where a variable is not set, as getenv.
using Getenv = std::function<const char*(const char*)>;

// Throws UserError naming a variable that is malformed, missing or does not fit the others.
LaunchEnvironment read_environment(const Getenv& get);
// The first host of a SLURM list: "gpu[03-05,9],cpu1" → "gpu03".
std::string first_host(const std::string& nodelist);

// What our own launcher sets for a rank, as NAME=value.
std::vector<std::string> environment_for_rank(int rank, int world_size, int port, pid_t launcher);

}  // namespace picotron
