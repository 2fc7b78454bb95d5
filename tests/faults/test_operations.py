"""The report of a hang, and the signals that a run listens to: SIGUSR2 asks for the report, SIGUSR1, SIGTERM and
Ctrl-C ask for the end, from the first moment on. With tests/faults/rank_probe.cpp, whose operations are known, and
with `picotron train`."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

BUILD = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[2] / "build")).absolute()
PROBE = BUILD / "tests" / "rank_probe"
needs_probe = pytest.mark.skipif(not PROBE.exists(), reason=f"{PROBE} is not built")
WHERE = "the last operations of every rank are in "


def wait_until(holds, running, within=20):
    until = time.monotonic() + within
    while not holds():
        assert running.process.poll() is None and time.monotonic() < until, running.said()
        time.sleep(0.01)


def chapters(path):
    """{rank: [its heading, its operations …]}, from a report."""
    found = {}
    for part in path.read_text().split("\n\n"):
        if match := re.match(r"rank (\d+)( \(.*?\))?, ", part):
            heading, *rest = part.splitlines()
            operations = [line for line in rest if re.match(r"\*? +\d+ ", line)]
            assert len(operations) <= 20
            numbers = [int(re.search(r"\d+", line).group()) for line in operations]
            assert numbers == sorted(numbers), "newest last"
            found[int(match.group(1))] = [heading, *operations]
    return found


# ------------------------------------------------------------------------------------------------- a rank that is lost

LOST = "all_reduce over tp, in forward of microbatch 0"  # what rank 1 of dp 2 · tp 2 is in


@needs_probe
@pytest.mark.alone
@pytest.mark.parametrize("mode, how", [("die", "was ended by signal 9"), ("stop", "last beat")])
def test_a_lost_rank_leaves_a_report(start, tmp_path, mode, how):
    ended = start([4, "processes", 4, mode, 1, "dp2tp2", "run"], program=PROBE).end(20)
    assert ended.code == 1 and len(ended.complaint) == 1, ended.err
    assert f"the last operation seen of it was {LOST}; {WHERE}run/operations.1.txt" in ended.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["operations.1.txt"]

    report = chapters(tmp_path / "run" / "operations.1.txt")
    assert [report[rank][0].split(",")[:2] for rank in range(4)] == [
        ["rank 0 (dp 0", " tp 0)"], ["rank 1 (dp 0", " tp 1)"], ["rank 2 (dp 1", " tp 0)"], ["rank 3 (dp 1", " tp 1)"]]
    assert how in report[1][0] and all(any(words in report[rank][0] for words in ("last beat", "wrote this", "ended"))
                                       for rank in (0, 2, 3))
    assert report[1][-1].endswith(f"  {LOST}") and "waited for" in report[1][-1]
    # Rank 0 has begun no more, or was ended before it came that far. The others have gone on to what these two have not.
    came = report[0][-1].endswith(f"  {LOST}")
    assert came or report[0][-1].endswith("  all_reduce over world")
    assert report[0][-1][0] == " " and report[1][-1][0] == (" " if came else "*")
    for rank in (2, 3):
        assert report[rank][-1].startswith("*") and "reduce_scatter over dp_cp, in backward" in report[rank][-1]


@needs_probe
def test_without_a_folder_there_is_no_report(start, tmp_path):
    ended = start([3, "processes", 4, "die", 1], program=PROBE).end(20)
    assert ended.code == 1 and WHERE not in ended.err and os.listdir(tmp_path) == []


@needs_probe
def test_an_error_that_a_rank_says_itself_has_a_report(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "operations.1.txt").write_text("of an earlier run\n")
    ended = start([3, "threads", 4, "fail", 2, "", "run"], program=PROBE).end(20)
    said = f"[rank 2] error: cannot write out/file: no space left on device; {WHERE}run/operations.2.txt"
    assert (ended.code, ended.complaint) == (1, [said])
    assert len(chapters(tmp_path / "run" / "operations.2.txt")) == 3
    assert (tmp_path / "run" / "operations.1.txt").read_text() == "of an earlier run\n"


@needs_probe
@pytest.mark.parametrize("mode", ["fail", "user"])
def test_a_report_that_cannot_be_written_does_not_hide_the_error(start, tmp_path, mode):
    (tmp_path / "run").write_text("a file where a folder should be\n")
    ended = start([3, "processes", 4, mode, 1, "", "run"], program=PROBE).end(20)
    assert ended.code == (1 if mode == "fail" else 2) and len(ended.complaint) == 1, ended.err
    assert ended.complaint[0].endswith(("no space left on device", "no such file")), ended.err


def slurm(start, ranks, *arguments):
    """Each rank started by itself, as srun does; they meet in rank 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"SLURM_NTASKS": ranks, "SLURM_NODELIST": "nowhere[1-2]", "MASTER_PORT": port}
    return [start([ranks, "processes", *arguments], program=PROBE,
                  environment={name: str(value) for name, value in
                               (variables | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}).items()})
            for rank in range(ranks)]


@needs_probe
@pytest.mark.parametrize("mode", ["die", "stop"])
def test_the_store_is_lost_with_rank_0(start, tmp_path, mode):
    first, *others = slurm(start, 3, 4, mode, 0, "", "run")
    ended = [one.end(20) for one in others]
    first.kill()
    assert all(one.code == 1 and "rank 0" in one.err and WHERE in one.err for one in ended), ended
    for path in (tmp_path / "run").iterdir():  # nobody can tell the others that it has spoken
        assert "The rendezvous store does not answer" in path.read_text()
        report = chapters(path)
        writer = next(rank for rank in (1, 2) if "wrote this" in report[rank][0])
        assert len(report[writer]) > 5 and report[writer][-1].endswith("over world")


# ------------------------------------------------------------------------------------------------------------- SIGUSR2


@pytest.fixture
def training(start, tmp_path, tiny):
    """training(*flags) → a run that goes on for long and has done some steps."""

    def begin(*flags):
        (tmp_path / "config.json").write_text(json.dumps(tiny(training={"total_train_steps": 1_000_000})))
        running = start(["train", "--config", "config.json", *flags])
        wait_until(lambda: steps(tmp_path) > 3, running)
        return running

    return begin


def steps(folder):
    metrics = folder / "out" / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def check_asked(running, pid, folder, number, ranks):
    os.kill(pid, signal.SIGUSR2)
    said = f"{WHERE}out/operations.{number}.txt\n"
    wait_until(lambda: said in running.said(), running, within=5)
    path = folder / "out" / f"operations.{number}.txt"
    assert "asked for by SIGUSR2" in path.read_text() and len(chapters(path)) == ranks
    before = steps(folder)
    wait_until(lambda: steps(folder) > before + 3, running)
    return chapters(path)


@pytest.mark.parametrize("flags", [(), ("--dp", 2, "--tp", 2), ("--dp", 2, "--ranks", "threads")],
                         ids=["one rank", "processes", "threads"])
def test_sigusr2_asks_and_sigusr1_stops(training, tmp_path, flags):
    running = training(*flags)
    ranks = 4 if "--tp" in flags else 2 if flags else 1
    time.sleep(1)  # until every rank has beaten
    report = check_asked(running, running.process.pid, tmp_path, 1, ranks)
    assert all(len(chapter) == 21 for chapter in report.values()), report
    for number, pid in enumerate(running.children()[-1:], 2):
        check_asked(running, pid, tmp_path, number, ranks)
    running.process.send_signal(signal.SIGUSR1)
    ended = running.end(10)
    assert ended.code == 75 and "Stopped on request" in ended.out, ended.err
    assert ended.err.count("stopping after the running step") == 1
    assert (tmp_path / "out" / str(steps(tmp_path)) / "model" / "model.safetensors.index.json").exists()


@needs_probe
def test_both_signals_reach_a_rank_that_srun_started(start, tmp_path):
    first, second = slurm(start, 2, 30, "loop", -1, "", "run")
    wait_until(lambda: has_handlers(second.process.pid), second)
    time.sleep(1)
    second.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: f"{WHERE}run/operations.1.txt" in second.said(), second, within=5)
    assert len(chapters(tmp_path / "run" / "operations.1.txt")) == 2
    second.process.send_signal(signal.SIGUSR1)
    assert [one.end(10).code for one in (first, second)] == [75, 75]


# ------------------------------------------------------------------------------------- stopped before it has begun well


def has_handlers(pid):
    """Does the process catch SIGTERM by now?"""
    with contextlib.suppress(OSError):
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE).group(1)
        return int(caught, 16) >> (signal.SIGTERM - 1) & 1 == 1
    return False


def check_stopped(ended, folder):
    """With 75, after a save or a sentence that there was nothing to save."""
    assert ended.code == 75, (ended.code, ended.err)
    assert ended.complaint == [] or ended.complaint[0].startswith("stopped before the first step"), ended.err
    assert "frame #" not in ended.err and "terminate called" not in ended.err, ended.err
    saved = list(folder.glob("out/*/model/model.safetensors.index.json"))
    assert len(saved) == 1 or "there was nothing to save yet" in ended.err, ended.err


@pytest.fixture
def starting(start, tmp_path, tiny):
    def begin(*flags):
        (tmp_path / "config.json").write_text(json.dumps(tiny(training={"total_train_steps": 1_000_000})))
        return start(["train", "--config", "config.json", *flags])

    return begin


@pytest.mark.parametrize("delay", [0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_request_survives_the_start_of_the_ranks(starting, tmp_path, how, delay):
    running = starting("--dp", 2)
    wait_until(running.children, running)
    time.sleep(delay)
    os.killpg(running.process.pid, how)  # as a terminal or a batch system: all of them at once
    check_stopped(running.end(15), tmp_path)


@pytest.mark.parametrize("flags", [(), ("--dp", 2), ("--dp", 2, "--ranks", "threads")],
                         ids=["one rank", "processes", "threads"])
def test_a_request_in_the_first_moment_is_heard(starting, tmp_path, flags):
    running = starting(*flags)
    wait_until(lambda: has_handlers(running.process.pid), running)
    running.process.send_signal(signal.SIGTERM)
    check_stopped(running.end(15), tmp_path)


def test_a_request_while_waiting_for_the_other_ranks_finds_nothing_to_save(start, tmp_path, tiny):
    """Rank 0 of two, started as torchrun would, whose partner never comes."""
    (tmp_path / "config.json").write_text(json.dumps(tiny(distributed={"dp_size": 2, "timeout_seconds": 30})))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = start(["train", "--config", "config.json"], environment=alone)
    wait_until(lambda: has_handlers(running.process.pid), running)
    time.sleep(0.5)
    running.process.send_signal(signal.SIGTERM)
    ended = running.end(10)
    assert ended.code == 75 and "there was nothing to save yet" in ended.err, (ended.code, ended.err)
    assert not list(tmp_path.glob("out/[0-9]*"))


@pytest.mark.parametrize("flags", [(), ("--dp", 2), ("--dp", 2, "--ranks", "threads")],
                         ids=["one rank", "processes", "threads"])
def test_a_reader_of_the_output_that_leaves_does_not_end_the_run(start, tmp_path, tiny, flags):
    """As in `picotron train | head -1`: a pipe that nobody reads is no reason to lose a run."""
    (tmp_path / "config.json").write_text(json.dumps(tiny(training={"total_train_steps": 30})))
    running = start(["train", "--config", "config.json", *flags], stdout=subprocess.PIPE)
    running.process.stdout.readline()
    running.process.stdout.close()
    assert running.process.wait(timeout=30) == 0, running.said()
    assert steps(tmp_path) == 30


@pytest.mark.parametrize("flags", [(), ("--dp", 2), ("--dp", 2, "--ranks", "threads")],
                         ids=["one rank", "processes", "threads"])
def test_a_run_that_nobody_listens_to_still_saves(start, tmp_path, tiny, flags):
    """As in `picotron train 2>&1 | head -1`: what is said to stderr then is lost, and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(tiny(training={"total_train_steps": 1_000_000})))
    running = start(["train", "--config", "config.json", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.process.stdout.readline()
    running.process.stdout.close()
    running.process.stderr.close()
    wait_until(lambda: steps(tmp_path) > 3, running)
    running.process.send_signal(signal.SIGUSR2)
    wait_until((tmp_path / "out" / "operations.1.txt").exists, running)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=20) == 75
    assert (tmp_path / "out" / str(steps(tmp_path)) / "state.json").exists()


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_request_while_the_program_is_loaded_leaves_nothing(starting, tmp_path, how, delay):
    """Before its first line a program has no say: the signal itself ends it."""
    running = starting("--dp", 2)
    time.sleep(delay)
    os.killpg(running.process.pid, how)
    ended = running.end(15)
    if ended.code == -how:
        assert ended.err == "" and os.listdir(tmp_path) == ["config.json"]
    else:
        check_stopped(ended, tmp_path)
