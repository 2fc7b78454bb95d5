"""What a save costs a run and what a run owes to a save: slow storage, `--keep_last` under SIGKILL, requests to stop
that reach one rank alone, Ctrl-C twice, saves by the clock, and the same curve after a stop. And what a terminal sees
of a run, and that `picotron evaluate` can be ended."""

import contextlib
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BINARY = Path(os.environ.get("PICOTRON_BINARY", Path(__file__).parents[2] / "build" / "picotron")).absolute()

# A slow disk, preloaded: while the file SLOW_WHILE is there, each call that a save hangs on takes SLOW_MS more.
SLOW_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void *real(const char *name) {
  const char *file = getenv("SLOW_WHILE"), *wait = getenv("SLOW_MS");
  if (file && wait && access(file, F_OK) == 0) usleep(1000 * (useconds_t)atoi(wait));
  return dlsym(RTLD_NEXT, name);
}

int fsync(int fd) { return ((int (*)(int))real("fsync"))(fd); }
int rename(const char *from, const char *to) {
  return ((int (*)(const char *, const char *))real("rename"))(from, to);
}
int unlinkat(int folder, const char *name, int flags) {
  return ((int (*)(int, const char *, int))real("unlinkat"))(folder, name, flags);
}
"""


@pytest.fixture(scope="session")
def slow_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_disk.c").write_text(SLOW_DISK)
    line = ["cc", "-shared", "-fPIC", "-O1", "-o", folder / "slow_disk.so", folder / "slow_disk.c", "-ldl"]
    subprocess.run(line, check=True)
    return folder / "slow_disk.so"


@pytest.fixture
def slow(slow_disk, tmp_path):
    """slow(milliseconds) → the environment of a run whose disk is slow while the file `slow` in tmp_path is there."""
    return lambda ms: {"LD_PRELOAD": str(slow_disk), "SLOW_WHILE": str(tmp_path / "slow"), "SLOW_MS": str(ms)}


@pytest.fixture
def train_flags(tmp_path, tiny):
    """Of a run that goes on for long and saves at no step of its own accord; what comes after them wins."""
    config = tiny(training={"total_train_steps": 1_000_000}, checkpoint={"save_frequency": 1_000_000})
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ["--config", "config.json"]


@pytest.fixture
def train(start, train_flags):
    """train(*flags) → such a run, with these flags."""
    return lambda *flags, **options: start(["train", *train_flags, *flags], **options)


def lines(save_dir):
    """Of metrics.jsonl, those that are whole."""
    file = save_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def last_step(save_dir):
    return max((line["step"] for line in lines(save_dir)), default=0)


def complete(save_dir):
    """The steps of complete checkpoints, oldest first."""
    return sorted(int(path.parent.name) for path in save_dir.glob("*/state.json") if path.parent.name.isdigit())


def wait_until(holds, running, within=30):
    until = time.monotonic() + within
    while not holds():
        assert running.process.poll() is None, f"it ended: {running.said()}"
        assert time.monotonic() < until, f"not within {within} s: {running.said()}"
        time.sleep(0.01)


def check_all_are_sound(start, save_dir):
    """Every folder that is named by a number is a checkpoint, and each of its files has its checksum."""
    numbered = [folder.name for folder in save_dir.iterdir() if folder.name.isdigit()]
    ended = start(["checkpoint", "verify", save_dir]).end(20)
    assert ended.code == 0 and numbered, (numbered, ended.out, ended.err)
    assert len(complete(save_dir)) == len(numbered), numbered


def check_steps(save_dir):
    """No step twice, none missing."""
    assert [line["step"] for line in lines(save_dir)] == list(range(1, last_step(save_dir) + 1))


# ------------------------------------------------------------------------------------------------------- slow storage


@pytest.mark.parametrize("ranks", [1, 2])
def test_asynchronous_saves_wait_for_each_other(train, start, slow, tmp_path, ranks):
    """A run is never more than one save ahead of its disk, and says how long that made it wait."""
    out = tmp_path / "out"
    (tmp_path / "slow").touch()
    running = train("--dp", ranks, "--checkpoint.async", "true", "--save_frequency", 1, "--total_train_steps", 3,
                    environment=slow(20))
    while running.process.poll() is None and time.monotonic() - running.began < 30:
        reached = last_step(out)  # read first: what is complete only grows
        # Step n + 2 is done and waits, while n + 1 is being written.
        assert reached <= (complete(out) or [0])[-1] + 2
        assert len([name for name in os.listdir(out) if name.endswith(".partial")] if out.exists() else []) <= 1
        time.sleep(0.01)
    ended = running.end(10)
    assert ended.code == 0, ended.err
    assert complete(out) == [1, 2, 3]
    check_all_are_sound(start, out)
    reports = [line for line in ended.out.splitlines() if line.startswith("Checkpoint out/")]
    assert [line.split(":")[0] for line in reports] == [f"Checkpoint out/{step}" for step in (1, 2, 3)]
    assert "for the one before" not in reports[0]
    for report in reports[1:]:
        match = re.search(r"paused ([\d.]+) s \(([\d.]+) s for the one before\)", report)
        assert match, report
        paused, waited = map(float, match.groups())
        assert paused >= waited > 0.05, report


# ---------------------------------------------------------------------------------------------------------- keep_last


@pytest.mark.parametrize("saves", ["at once", "aside"])
def test_killed_at_any_moment_the_last_one_is_kept(train, start, slow, tmp_path, saves):
    """An old checkpoint is removed when a newer one is complete, and no folder is half removed under its number."""
    chance = random.Random(saves)
    (tmp_path / "slow").touch()
    flags = ["--keep_last", 1, "--save_frequency", 1, "--checkpoint.async", "true" if saves == "aside" else "false"]
    runs = {tmp_path / f"out{number}": train(*flags, "--save_dir", f"out{number}", environment=slow(2))
            for number in range(5)}
    found = 0
    for out, running in runs.items():
        wait_until(lambda out=out: complete(out), running)
        time.sleep(chance.uniform(0, 0.4))  # about two saves
        running.kill()
        running.process.wait()
        # The second is one that was complete a moment ago, or the one before, which is about to be removed.
        assert 1 <= len(complete(out)) <= 2, os.listdir(out)
        for folder in out.glob("[0-9]*"):
            if folder.name.isdigit():  # all into one folder: one command looks at them
                (tmp_path / "all").mkdir(exist_ok=True)
                folder.rename(tmp_path / "all" / str(found := found + 1))
    check_all_are_sound(start, tmp_path / "all")


# --------------------------------------------------------------------------------------------------- requests to stop


@pytest.mark.parametrize("rank, how", [(0, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_one_rank_that_is_asked_to_stop_stops_all(train, tmp_path, rank, how):
    out = tmp_path / "out"
    running = train("--dp", 2)
    wait_until(lambda: last_step(out) > 3, running)
    os.kill(running.children()[rank], how)  # started in the order of their ranks
    ended = running.end(15)
    assert ended.code == 75 and ended.complaint == [], (ended.code, ended.err)
    assert "Stopped on request" in ended.out
    check_steps(out)
    assert complete(out) == [last_step(out)]
    assert json.loads((out / str(last_step(out)) / "state.json").read_text())["train"]["step"] == last_step(out)
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize("flags", [(), ("--dp", 2)], ids=["one rank", "processes"])
def test_the_second_ctrl_c_ends_at_once(train, start, slow, tmp_path, flags):
    """Although the save that the first one asks for would take most of a minute."""
    out = tmp_path / "out"
    running = train(*flags, "--save_frequency", 1, environment=slow(1000))
    wait_until(lambda: len(complete(out)) >= 2, running)
    (tmp_path / "slow").touch()
    wait_until(lambda: list(out.glob("*.partial")), running)
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: all of them
    wait_until(lambda: "stopping after the running step" in running.said(), running)
    time.sleep(0.2)
    assert running.process.poll() is None, "the first one lets the save go on"
    os.killpg(running.process.pid, signal.SIGINT)
    ended = running.end(10)
    assert ended.code == 130 and ended.complaint == [], (ended.code, ended.err)
    (tmp_path / "slow").unlink()
    others = {path.name for path in out.iterdir() if not path.name.isdigit() and path.suffix != ".partial"}
    assert others == {"metrics.jsonl", "latest"}
    check_all_are_sound(start, out)


# ------------------------------------------------------------------------------------------------------- by the clock


def test_two_ranks_save_by_the_clock_and_go_on(train, tmp_path):
    out = tmp_path / "out"
    running = train("--dp", 2, "--save_seconds", 1)
    wait_until(lambda: len(complete(out)) >= 2, running)
    saved = complete(out)[-1]
    wait_until(lambda: last_step(out) > saved + 3, running)
    assert len(running.children()) == 2
    running.process.send_signal(signal.SIGTERM)
    ended = running.end(15)
    assert ended.code == 75 and ended.complaint == [], (ended.code, ended.err)
    check_steps(out)
    assert complete(out)[-1] == last_step(out)
    # One a second at most, and the one at the end.
    assert 3 <= len(complete(out)) <= ended.seconds + 1, (complete(out), ended.seconds)


# --------------------------------------------------------------------------------------------------- stop, and go on


@pytest.mark.parametrize("layout", [("--dp", 2, "--async"), ("--tp", 2), ("--pp", 2, "--pp_engine", "1f1b")],
                         ids=["dp 2, asynchronous", "tp 2", "pp 2"])
def test_a_run_that_a_signal_stopped_has_the_same_curve(train, slow, tmp_path, layout):
    """To the last digit, and the same last checkpoint to the last bit, at whatever step the signal finds it."""
    flags = [*layout, "--total_train_steps", 30, "--shuffle", "--resume", "auto"]
    never = train(*flags, "--save_frequency", 30, "--save_dir", "never")  # beside the other
    out = tmp_path / "stopped"
    (tmp_path / "slow").touch()  # so that it does not come to its end before it is asked to
    running = train(*flags, "--save_frequency", 4, "--save_dir", out.name, environment=slow(10))
    wait_until(lambda: last_step(out) > 5, running)
    running.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping after" in running.said(), running)
    (tmp_path / "slow").unlink()
    ended = running.end(20)
    reached = last_step(out)
    assert ended.code == 75 and 5 < reached < 30, (ended.code, reached, ended.err)
    assert complete(out)[-1] == reached, "the end waits for its last save"
    ended = train(*flags, "--save_frequency", 30, "--save_dir", out.name).end(30)
    assert ended.code == 0 and f"Going on from stopped/{reached}" in ended.out, (ended.out, ended.err)

    assert never.end(30).code == 0
    check_steps(out)
    curves = [[(line["step"], line["loss"], line["grad_norm"]) for line in lines(tmp_path / name)]
              for name in ("never", "stopped")]
    assert len(curves[0]) == 30 and curves[0] == curves[1]
    checksums = [json.loads((tmp_path / name / "30/state.json").read_text())["files"] for name in ("never", "stopped")]
    assert len(checksums[0]) > 10 and checksums[0] == checksums[1]


# --------------------------------------------------------------------------------------------------------- a terminal

WIPE = "\r\x1b[K"
SIX = ("--total_train_steps", 6, "--save_frequency", 3)
STEP_LINE = re.compile(r"\[rank 0\] Step: (\d) +\| Loss: (\S+) \| .* \| Memory usage: +\d+\.\d\dGB")
BAR = re.compile(r"\[(=*>? *)\] (\d+)/6  (\d+)%  \d+:[0-5]\d left")


def check_step_lines(shown, save_dir):
    """They are whole, they say what metrics.jsonl says, and nothing of a bar is between them."""
    steps = [match.groups() for line in shown if (match := STEP_LINE.fullmatch(line))]
    assert steps == [(str(line["step"]), f"{line['loss']:.4f}") for line in lines(save_dir)] and len(steps) == 6
    assert len([line for line in shown if line.startswith("Checkpoint out/")]) == 2
    assert not [line for line in shown if " left" in line or "\r" in line or "\x1b" in line]


def seen_on_a_terminal(arguments, cwd):
    """All that is written to a terminal until the end of the process, and its exit code."""
    ours, theirs = pty.openpty()
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    process = subprocess.Popen([BINARY, *map(str, arguments)], cwd=cwd, env=keep | {"OMP_NUM_THREADS": "1"},
                               stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    os.close(theirs)
    text = b""
    try:
        with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
            while select.select([ours], [], [], 30)[0]:
                text += os.read(ours, 1 << 16)
        return text.decode().replace("\r\n", "\n"), process.wait(timeout=10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(ours)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_terminal_sees_a_bar_below_whole_lines(train_flags, tmp_path, ranks):
    text, code = seen_on_a_terminal(["train", *train_flags, "--dp", ranks, *SIX], tmp_path)
    assert code == 0, text
    bars = list(BAR.finditer(text))
    assert [(int(bar.group(2)), int(bar.group(3))) for bar in bars] == [
        (1, 17), (2, 33), (3, 50), (4, 67), (5, 83), (6, 100)]
    for bar in bars:
        assert len(bar.group(1)) == 40 and bar.group(1).count("=") == 40 * int(bar.group(2)) // 6
        assert text[bar.end():].startswith(WIPE), "whatever comes next wipes it away"
    places = [found.start() for found in re.finditer(re.escape("[rank 0] Step:"), text)]
    assert len(places) == 6 and all(text[:place].endswith((WIPE, "\n")) for place in places)
    # What stays, once the bars are wiped away, is what a pipe gets.
    check_step_lines([line.rsplit(WIPE, 1)[-1] for line in text.split("\n")], tmp_path / "out")


def test_without_a_terminal_there_is_no_bar(start, train_flags, tmp_path):
    ended = start(["train", *train_flags, *SIX]).end(30)
    assert ended.code == 0 and not BAR.search(ended.out), ended.err
    check_step_lines(ended.out.split("\n"), tmp_path / "out")


# ----------------------------------------------------------------------------------------------------------- evaluate


def has_handlers(pid):
    """Does the process catch SIGTERM, or block it to take it in turn, by now?"""
    with contextlib.suppress(OSError):
        sets = re.findall(r"^Sig(?:Cgt|Blk):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return any(int(signals, 16) >> (signal.SIGTERM - 1) & 1 for signals in sets)
    return False


@pytest.mark.parametrize("ranks, how, whom", [
    (1, signal.SIGTERM, "the launcher"), (2, signal.SIGTERM, "the launcher"), (2, signal.SIGINT, "the launcher"),
    (2, signal.SIGTERM, "a rank"),
])  # fmt: skip
def test_evaluate_ends_when_it_is_asked_to(start, checkpoint, ranks, how, whom):
    running = start(["evaluate", "--checkpoint", checkpoint, "--data", "builtin:stories", "--training.num_samples",
                     10_000_000, "--dtype", "float32", "--use_cpu", "--dp", ranks])
    wait_until(lambda: has_handlers(running.process.pid), running)
    wait_until(lambda: ranks == 1 or len(running.children()) == ranks, running)
    time.sleep(1.5)  # until it reads rows
    assert running.process.poll() is None, running.said()
    os.kill(running.children()[1] if whom == "a rank" else running.process.pid, how)
    ended = running.end(5)  # and no process is left
    assert ended.code == 75 and "loss" not in ended.out, (ended.code, ended.out)
    assert not [line for line in ended.complaint if line.startswith(("error: ", "[rank "))], ended.err


# -------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.slow
@pytest.mark.alone
def test_saving_costs_no_more_than_promised():
    """Beside dd and a copy in memory, on the disk of the build; the bench says which of its goals is missed."""
    bench = Path(__file__).parents[2] / "bench" / "checkpoints.py"
    done = subprocess.run([sys.executable, bench, BINARY.parent, "--rounds", "3", "--check"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
