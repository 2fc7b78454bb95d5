// What torchrun, srun, mpirun and our launcher tell a rank, and what is said where that makes no
// sense.
#include "dist/environment.h"

#include <gtest/gtest.h>

#include <map>

#include "core/error.h"

namespace picotron {
namespace {

LaunchEnvironment read(const std::map<std::string, std::string>& variables) {
  return read_environment([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(ReadEnvironment, NothingSetIsOneProcess) {
  EXPECT_EQ(read({}).started, Started::single);
  EXPECT_EQ(read({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}).started, Started::single);
}

TEST(ReadEnvironment, Torchrun) {
  const LaunchEnvironment found = read({{"RANK", "5"},
                                        {"WORLD_SIZE", "8"},
                                        {"LOCAL_RANK", "1"},
                                        {"LOCAL_WORLD_SIZE", "4"},
                                        {"MASTER_ADDR", "node7"},
                                        {"MASTER_PORT", "1234"},
                                        {"TORCHELASTIC_USE_AGENT_STORE", "True"}});
  EXPECT_EQ(found.started, Started::torchrun);
  EXPECT_EQ(found.rank, 5);
  EXPECT_EQ(found.world_size, 8);
  EXPECT_EQ(found.local_rank, 1);
  EXPECT_EQ(found.local_size, 4);
  EXPECT_EQ(found.master_host, "node7");
  EXPECT_EQ(found.master_port, 1234);
  EXPECT_TRUE(found.store_is_served);
}

TEST(ReadEnvironment, SlurmMeetsOnTheFirstHost) {
  const LaunchEnvironment found = read({{"SLURM_PROCID", "3"},
                                        {"SLURM_NTASKS", "4"},
                                        {"SLURM_LOCALID", "1"},
                                        {"SLURM_TASKS_PER_NODE", "2(x2)"},
                                        {"SLURM_NODELIST", "gpu[03-04]"},
                                        {"SLURM_JOB_ID", "20007"}});
  EXPECT_EQ(found.started, Started::slurm);
  EXPECT_EQ(found.rank, 3);
  EXPECT_EQ(found.local_rank, 1);
  EXPECT_EQ(found.local_size, 2);
  EXPECT_EQ(found.master_host, "gpu03");
  EXPECT_EQ(found.master_port, 20'007);
  EXPECT_FALSE(found.store_is_served);
}

TEST(ReadEnvironment, OpenMpiOnOneMachineMeetsOnLoopback) {
  const LaunchEnvironment found = read({{"OMPI_COMM_WORLD_RANK", "1"},
                                        {"OMPI_COMM_WORLD_SIZE", "2"},
                                        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                        {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  EXPECT_EQ(found.started, Started::open_mpi);
  EXPECT_EQ(found.master_host, "127.0.0.1");
  EXPECT_EQ(found.master_port, 29'500);
}

TEST(ReadEnvironment, OursWinsOverAnOuterOne) {
  std::map<std::string, std::string> variables = {
      {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "0"}};
  for (const std::string& variable : environment_for_rank(2, 3, 4567, 89)) {
    const size_t equals = variable.find('=');
    variables[variable.substr(0, equals)] = variable.substr(equals + 1);
  }
  const LaunchEnvironment found = read(variables);
  EXPECT_EQ(found.started, Started::by_us);
  EXPECT_EQ(found.rank, 2);
  EXPECT_EQ(found.local_rank, 2);
  EXPECT_EQ(found.local_size, 3);
  EXPECT_EQ(found.master_port, 4567);
  EXPECT_EQ(found.launcher, 89);
}

TEST(ReadEnvironment, NonsenseIsAUserErrorThatNamesTheVariable) {
  const std::vector<std::pair<std::map<std::string, std::string>, std::string>> cases = {
      {{{"RANK", "x"}, {"WORLD_SIZE", "2"}}, "RANK=\"x\""},
      {{{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, "RANK=\"-1\""},
      {{{"RANK", "0"}, {"WORLD_SIZE", "0"}}, "WORLD_SIZE=\"0\""},
      {{{"RANK", "2"}, {"WORLD_SIZE", "2"}}, "RANK=2 must be below WORLD_SIZE=2"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}}, "MASTER_ADDR"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}}, "MASTER_PORT"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "99999"}},
       "MASTER_PORT=\"99999\""},
      {{{"OMPI_COMM_WORLD_RANK", "1"},
        {"OMPI_COMM_WORLD_SIZE", "4"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}},
       "set MASTER_ADDR"},
  };
  for (const auto& [variables, expected] : cases) {
    try {
      read(variables);
      ADD_FAILURE() << "accepted: " << expected;
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  }
}

TEST(FirstHost, ReadsSlurmsLists) {
  EXPECT_EQ(first_host("node1"), "node1");
  EXPECT_EQ(first_host("node1,node2"), "node1");
  EXPECT_EQ(first_host("gpu[003-010,012],cpu1"), "gpu003");
  EXPECT_EQ(first_host("gpu[7,9]"), "gpu7");
  EXPECT_EQ(first_host("r[1-2]n[3-4]-ib"), "r1n3-ib");
  EXPECT_EQ(first_host("broken["), "broken");
  EXPECT_EQ(first_host(""), "");
}

}  // namespace
}  // namespace picotron
