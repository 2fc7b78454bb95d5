// The sub-commands, one file each. A command takes the arguments after its name and returns the
// exit code; what goes wrong it throws (core/error.h), to be caught once in main.cpp, which holds
// the table of commands.
#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace picotron {

struct Command {
  const char* name;
  const char* summary;  // one line of `picotron --help`
  int (*run)(const std::vector<std::string>& arguments);
};

int bench_command(const std::vector<std::string>& arguments);
int checkpoint_command(const std::vector<std::string>& arguments);
int config_command(const std::vector<std::string>& arguments);
int create_config_command(const std::vector<std::string>& arguments);
int evaluate_command(const std::vector<std::string>& arguments);
int explain_command(const std::vector<std::string>& arguments);
int export_command(const std::vector<std::string>& arguments);
int generate_command(const std::vector<std::string>& arguments);
int plan_command(const std::vector<std::string>& arguments);
int prepare_data_command(const std::vector<std::string>& arguments);
int train_command(const std::vector<std::string>& arguments);
int verify_command(const std::vector<std::string>& arguments);

// What `export` and `checkpoint export` share: writes the model folder that `find_model` finds to
// `out`, its weights in a dtype by name, "" as they are.
void write_export(const std::function<std::filesystem::path()>& find_model, const std::string& out,
                  const std::string& dtype_name);

}  // namespace picotron
