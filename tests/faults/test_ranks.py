"""Ranks that are started, stopped, lost and interrupted: what is said, the exit code, and that no
process is left. Needs tests/faults/rank_probe.cpp, built: PICOTRON_BUILD names the build folder."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PICOTRON_BUILD", ROOT / "build"))
PROBES = [BUILD / "tests" / "rank_probe", BUILD / "rank_probe"]
PROBE = next((path for path in PROBES if path.exists()), None)
pytestmark = pytest.mark.skipif(PROBE is None, reason=f"{PROBES[0]} is not built")

STARTERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PICOTRON_", "TORCHELASTIC_")


def environment(**extra):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(STARTERS)}
    return kept | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in extra.items()}


started = []


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    yield
    for process in started:
        for left in members(process.pid):
            os.kill(left, signal.SIGKILL)
        process.communicate()
    started.clear()


def start(*arguments, env=None, command=()):
    started.append(subprocess.Popen([*command, str(PROBE), *map(str, arguments)],
                                    env=env or environment(), stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True, start_new_session=True))
    return started[-1]


def members(group):
    """Processes of the session that started as `group`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def finish(process, timeout=60):
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        left = members(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"hangs, with processes {left}: {process.communicate()}")
    deadline = time.monotonic() + 2
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == []
    lines = err.strip().splitlines()
    assert len(lines) <= 3, err
    assert "frame #" not in err and "Exception raised" not in err
    return process.returncode, out, err


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    pytest.fail("ended early")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("how", ["processes", "threads"])
def test_ranks_meet(ranks, how):
    code, out, err = finish(start(ranks, how, 30, "ok"))
    assert (code, out, err) == (0, f"sum over {ranks} ranks is right\n", "")


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_user_error_is_said_once(how):
    code, out, err = finish(start(4, how, 30, "user"), timeout=10)
    assert (code, out) == (2, "")
    assert err.endswith("error: tokens.npy: no such file\n") and err.count("\n") == 1


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_the_cause_is_said_not_its_consequence(how):
    code, _, err = finish(start(3, how, 30, "fail", 1), timeout=20)
    assert (code, err) == (1, "[rank 1] error: cannot write out/file: no space left on device\n")


def test_an_error_of_the_library_has_no_stack_trace():
    code, _, err = finish(start(2, "processes", 30, "torch", 0), timeout=20)
    assert code == 1 and "invalid for input of size 2" in err and err.count("\n") == 1


def test_a_killed_rank_is_named():
    code, _, err = finish(start(3, "processes", 5, "die", 1), timeout=20)
    assert code == 1 and err.count("\n") == 1
    assert re.match(r"error: rank 1( \(dp 1\))? was ended by signal 9 \(out of memory\?\)", err)


def test_a_rank_that_leaves_without_a_word_is_named():
    code, _, err = finish(start(3, "processes", 5, "quit", 2), timeout=20)
    assert code == 1 and re.match(r"error: rank 2( \(dp 2\))? ended with exit code 3", err)


def test_a_stopped_rank_is_named():
    begin = time.monotonic()
    process = start(3, "processes", 5, "stop", 2)
    line = process.stderr.readline()
    assert "rank 2 (dp 2) has given no sign of life" in line
    assert time.monotonic() - begin < 5 + 3  # the timeout, and the start of the program
    assert finish(process, timeout=20)[0] == 1


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_a_rank_that_is_behind_is_named(how):
    code, _, err = finish(start(3, how, 5, "sleep", 1), timeout=30)
    assert code == 1
    assert "rank 1 (dp 1) is behind: the last operation seen of it was all_reduce over dp_cp; rank " in err
    assert " waits for all_reduce over world\n" in err


# What each rank waits for while rank 0 is late in a step of a layout of four.
WAITS = {
    ("tp2pp2", 1): ("pp 0, tp 1", "all_reduce over tp, in forward of microbatch 0"),
    ("tp2pp2", 3): ("pp 1, tp 1", "receive over pp from rank 1, in receive_activation of microbatch 0"),
    ("dp2cp2", 1): ("dp 0, cp 1", "receive over cp from rank 0, in forward of microbatch 0"),
    ("dp2cp2", 2): ("dp 1, cp 0", "reduce_scatter over dp_cp, in backward of microbatch 1"),
}


@pytest.mark.alone
@pytest.mark.parametrize("layout, victim", WAITS)
@pytest.mark.parametrize("mode", ["die", "stop"])
def test_a_lost_rank_of_a_layout_is_named(layout, victim, mode):
    place, operation = WAITS[layout, victim]
    begin = time.monotonic()
    process = start(4, "processes", 6, mode, victim, layout)
    said = process.stderr.readline()
    assert time.monotonic() - begin < 4 + 6 + 5  # busy cores; until the third step goes on without it, and the timeout
    how = "was ended by signal 9 (out of memory?)" if mode == "die" else "has given no sign of life for"
    assert f"error: rank {victim} ({place}) {how}" in said
    assert said.endswith(f"the last operation seen of it was {operation}\n"), said
    assert finish(process, timeout=20)[0] == 1


@pytest.mark.parametrize("how", ["processes", "threads"])
@pytest.mark.parametrize("layout, victim, place", [
    ("tp2pp2", 1, "pp 0, tp 1"), ("tp2pp2", 3, "pp 1, tp 1"), ("dp2cp2", 2, "dp 1, cp 0"),
])
def test_a_rank_of_a_layout_that_is_behind_is_named(layout, victim, place, how):
    code, _, err = finish(start(4, how, 6, "sleep", victim, layout), timeout=20)
    assert code == 1 and f"error: rank {victim} ({place}) is behind: " in err
    assert re.search(r"; rank \d \(.*\) waits for \w+ over ", err)


def test_stopped_on_request_passes_through():
    assert finish(start(3, "processes", 30, "code", 1))[0] == 75


@pytest.mark.parametrize("how", ["processes", "threads"])
@pytest.mark.parametrize("whom", ["group", "launcher"])
def test_the_first_interrupt_ends_after_the_step(how, whom):
    process = start(3, how, 30, "loop")
    wait_for_line(process, "looping")
    (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGINT)
    code, out, err = finish(process, timeout=15)
    assert code == 75 and "stopped after step" in out
    assert err.count("stopping after the running step") == 1


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_the_second_interrupt_ends_at_once(how):
    process = start(3, how, 30, "sleep", 1)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    assert finish(process, timeout=15)[0] == 130
    assert time.monotonic() - begin < 5


def test_sigterm_is_a_request_to_stop():
    process = start(2, "processes", 30, "loop")
    wait_for_line(process, "looping")
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, timeout=15)[0] == 75


def test_ranks_end_with_their_launcher():
    process = start(3, "processes", 30, "loop")
    wait_for_line(process, "looping")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == []


def test_under_torchrun():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2",
                f"--master-port={free_port()}"]
    process = start(2, "processes", 30, "ok", command=torchrun)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "sum over 2 ranks is right\n"), err
    assert members(process.pid) == []


def start_all(ranks, timeout, mode, variables, *rest, size=None):
    return [start(ranks, "processes", timeout, mode, *rest, env=environment(**variables(rank, size or ranks)))
            for rank in range(size or ranks)]


def slurm(port):
    return lambda rank, size: {"SLURM_PROCID": rank, "SLURM_NTASKS": size, "SLURM_LOCALID": rank,
                               "SLURM_NODELIST": "nowhere[1-2]", "MASTER_PORT": port}


def open_mpi(port):
    return lambda rank, size: {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": size,
                               "OMPI_COMM_WORLD_LOCAL_RANK": rank, "MASTER_PORT": port}


@pytest.mark.parametrize("starter", [slurm, open_mpi])
def test_under_srun_and_mpirun(starter):
    results = [finish(process) for process in start_all(3, 30, "ok", starter(free_port()))]
    assert [code for code, _, _ in results] == [0, 0, 0]
    assert [out for _, out, _ in results] == ["sum over 3 ranks is right\n", "", ""]


def test_a_killed_rank_is_named_by_the_survivors():
    results = [finish(p, 30) for p in start_all(3, 5, "die", slurm(free_port()), 2)]
    assert [code for code, _, _ in results] == [1, 1, -signal.SIGKILL]
    said = "".join(err for _, _, err in results)
    assert said.count("rank 2 (dp 2) has given no sign of life") == 1


@pytest.mark.parametrize("mode", ["die", "stop"])
def test_the_rank_that_serves_the_store_may_be_the_lost_one(mode):
    processes = start_all(3, 5, mode, slurm(free_port()), 0)
    results = [finish(p, 30) for p in processes[1:]]
    processes[0].kill()
    processes[0].communicate()
    assert [code for code, _, _ in results] == [1, 1]
    for _, _, err in results:
        assert "rank 0" in err


def test_a_world_size_that_disagrees_names_both():
    for code, _, err in map(finish, start_all(3, 5, "ok", slurm(free_port()), size=2)):
        assert code == 2 and "2 ranks were started" in err and "is 3" in err


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        begin = time.monotonic()
        results = [finish(p, 20) for p in start_all(2, 4, "ok", slurm(port))]
    assert [code for code, _, _ in results] == [1, 1]
    assert f"cannot open port {port}, which is in use" in results[0][2]
    assert time.monotonic() - begin < 10


def test_a_master_that_cannot_be_reached():
    begin = time.monotonic()
    env = environment(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    code, _, err = finish(start(2, "processes", 3, "ok", env=env), timeout=20)
    assert code == 1 and "cannot reach rank 0's store" in err
    assert time.monotonic() - begin < 8


def test_a_rank_that_never_comes():
    variables = slurm(free_port())(0, 2)
    code, _, err = finish(start(2, "processes", 4, "ok", env=environment(**variables)), timeout=30)
    assert code == 1 and "rank 1 (dp 1) did not come" in err
