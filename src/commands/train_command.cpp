// picotron train: a configuration, or flags, or nothing at all, and a model is trained. Under
// torchrun, srun or mpirun this process is one rank; without them it starts the ranks itself
// (dist/launch.h).
#include "train/train.h"

#include <cstdlib>

#include "commands/command_line.h"
#include "commands/commands.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "dist/device.h"
#include "dist/launch.h"
#include "kernels/huge_pages.h"
#include "train/layout.h"
#include "train/samples.h"

namespace picotron {
namespace {

constexpr const char* kEndings =
    R"(
Signals:
  SIGTERM, SIGUSR1, Ctrl-C   End after the running step, with a checkpoint; --resume auto goes on from it.
  Ctrl-C twice               Ends at once.
  SIGUSR2                    Writes the last operations of every rank to a file in save_dir, and goes on.

Exit code: 0 at the end, 75 where a signal stopped the run, 1 where a rank, a disk or the loss failed,
2 where the configuration or a file is wrong, 130 after Ctrl-C twice.
)";

int check_and_launch(const std::vector<std::string>& arguments) {
  std::vector<std::string> rest = arguments;
  const std::vector<Override> overrides = take_overrides(rest, Flags::dotted_and_short);
  CLI::App app("Train a model. Without a file and flags: the built-in stories.", "train");
  std::string file;
  app.add_option("--config", file, "The config.json to train");
  app.footer(short_flags_help() + kEndings);
  const std::vector<std::string> known = short_flags();
  if (const std::optional<int> done = parse(app, rest, known)) return *done;

  keep_freed_memory();
  use_huge_pages();
  Config config = file.empty() ? config_from_flags(overrides, known_layout_sizes)
                               : load_config(file, overrides, known_layout_sizes);
  resolve_environment(config, [](const char* name) -> const char* { return std::getenv(name); });
  const Environment& environment = config.environment;
  const bool on_gpu = computes_on_gpu(config);

  if (!on_gpu && config.distributed.backend == Backend::nccl) {
    throw user_error(
        "distributed.backend \"nccl\" needs a GPU, and this run is on the CPU; use \"gloo\" or "
        "null");
  }
  std::vector<std::string> argv{"picotron", "train"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const LaunchOptions options{
      .world_size = static_cast<int>(world_size(config)),
      .ranks = config.distributed.ranks,
      .timeout = std::chrono::milliseconds(
          static_cast<int64_t>(1000 * config.distributed.timeout_seconds)),
      .threads_per_rank = static_cast<int>(environment.OMP_NUM_THREADS.value_or(0)),
      .argv = argv,
      .report_folder = config.checkpoint.save_dir};
  // What files and keys get wrong is found before a rank is started, and said once.
  const Run run = prepare_run(config, on_gpu);
  if (run.start && run.start->state.train.step >= last_step(run)) {
    if (speaks_for_machine())
      log::print(
          fmt::format("{} is at step {}, the run's last: nothing is left to do; a higher "
                      "training.total_train_steps goes on",
                      run.start->checkpoint.string(), run.start->state.train.step));
    return 0;
  }
  check_save_dir(config.checkpoint.save_dir);
  return launch(options, [&](const Rendezvous& rendezvous, int local_rank, int /*local_size*/) {
    for (const std::string& sentence : warnings(config)) log::warn(sentence);
    for (const std::string& sentence : run.warnings) log::warn(sentence);
    for (const std::string& note : run.datasets.notes) log::print(note);
    const std::unique_ptr<Device> device =
        open_device({.use_cpu = config.distributed.use_cpu,
                     .local_rank = local_rank,
                     .share_gpus = config.distributed.backend == Backend::gloo});
    Rendezvous meeting = rendezvous;
    if (on_gpu && config.distributed.backend != Backend::gloo)
      meeting.backend = nccl_backends(*device);
    const TrainResult result = train(run, meeting, *device);
    if (log::speaks() && !result.folder.empty()) show_samples(result.folder + "/model", run);
    return result.stopped ? kStoppedAfterSave : 0;
  });
}

}  // namespace

int train_command(const std::vector<std::string>& arguments) {
  heed_signals();
  try {
    return check_and_launch(arguments);
  } catch (const UserError&) {
    if (speaks_for_machine()) throw;
    return 2;
  }
}

}  // namespace picotron
