"""Runs that are killed, stopped and cut off while they train and save, and disks that fail: a checkpoint is complete
or absent, the run ends with one sentence, and what is started again goes on where it was (DESIGN.md, contracts 4, 5)."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

PROBE = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[2] / "build")).absolute() / "tests" / "mishap_probe"
needs_probe = pytest.mark.skipif(not PROBE.exists(), reason=f"{PROBE} is not built")
SHIM = Path(__file__).parent / "shim" / "faulty_io.c"
FLAGS = (
    "--hidden_size 32 --intermediate_size 64 --num_hidden_layers 3 --num_attention_heads 4 --num_key_value_heads 2 "
    "--dtype float32 --seq_len 32 --mbs 1 --global_batch_size 2 --use_cpu --timeout_seconds 6 --shuffle --save_dir out --resume auto"
).split()


def command(*more, steps=100_000, frequency=1):
    return ["train", *FLAGS, "--total_train_steps", steps, "--save_frequency", frequency, *more]


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "faulty_io.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-pthread", "-o", library, SHIM, "-ldl"], check=True)
    return str(library)


def complete(folder):
    """The steps of complete checkpoints, oldest first."""
    return sorted(int(path.parent.name) for path in folder.glob("*/state.json") if path.parent.name.isdigit())


def steps(folder):
    """Of metrics.jsonl; a line that was being written when the run was killed does not count."""
    numbers = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            numbers.append(json.loads(line)["step"])
        except ValueError:
            break
    return numbers


def wait_until(holds, running, within=30):
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"not within {within} s: {running.said()}"
        assert running.process.poll() is None, f"it ended: {running.said()}"
        time.sleep(0.01)


def has_gone_on_from(folder, step):
    return lambda: (folder / "metrics.jsonl").exists() and (complete(folder) or [0])[-1] > step


def check_history(folder):
    """No step twice, none missing."""
    assert steps(folder) == list(range(1, len(steps(folder)) + 1))


def kill_again_and_again(start, complains, folder, times, seed):
    """Starts, kills after a random time (one rank, or all at once), starts again in the same folder."""
    chance = random.Random(seed)
    lost = []
    for _ in range(times):
        before = (complete(folder) or [0])[-1]
        ranks = chance.choice([1, 2])
        asynchronous = chance.random() < 0.5
        running = start(command("--dp", ranks, *(["--async"] if asynchronous else [])))
        wait_until(has_gone_on_from(folder, before), running)
        time.sleep(chance.uniform(0, 0.25))
        whom = running.children() if ranks > 1 else []
        if whom and chance.random() < 0.5:
            os.kill(chance.choice(whom), signal.SIGKILL)
            complains(running.end(within=20), 1, ["was ended by signal 9"])
        else:
            running.kill()
            running.process.wait()
        reached = steps(folder)[-1]
        newest = complete(folder)[-1]
        lost.append(reached - newest)
        # One interval of one step; an asynchronous save may be under way for the step before.
        assert reached - newest <= (2 if asynchronous else 1), f"{reached - newest} steps are lost"
    ended = start(command(steps=complete(folder)[-1] + 2)).end(within=30)
    assert ended.code == 0, ended.err
    check_history(folder)
    assert not list(folder.glob("*.partial")), "what was half written is cleared away"
    return lost


def test_killed_at_any_moment_a_run_goes_on(start, complains, tmp_path):
    kill_again_and_again(start, complains, tmp_path / "out", times=8, seed=1)


@pytest.mark.slow
def test_killed_200_times(start, complains, tmp_path):
    kill_again_and_again(start, complains, tmp_path / "out", times=200, seed=2)


def afflict(running, folder, chance, kind, cut):
    """Something happens to a random rank; what is said names it. Returns what the sentence must hold."""
    rank = chance.randrange(len(running.children()))
    pid = running.children()[rank]  # started in the order of their ranks
    if kind == "killed":
        os.kill(pid, signal.SIGKILL)
        return f"rank {rank} (dp {rank}) was ended by signal 9"
    if kind == "cut off":
        Path(f"{cut}-{rank}").touch()
        return f"rank {rank} (dp {rank})"
    os.kill(pid, signal.SIGSTOP)
    if kind == "delayed":
        time.sleep(5)
        os.kill(pid, signal.SIGCONT)
        return None
    return f"rank {rank} (dp {rank}) has given no sign of life"


def afflict_again_and_again(start, complains, shim, folder, kinds, seed):
    chance = random.Random(seed)
    for number, kind in enumerate(kinds):
        before = (complete(folder) or [0])[-1]
        cut = folder.parent / f"cut-{number}"
        timeout = 20 if kind == "delayed" else 5
        running = start(
            command("--dp", 2, "--timeout_seconds", timeout, steps=before + 40 if kind == "delayed" else 100_000),
            environment={"LD_PRELOAD": shim, "FAULTY_CUT": str(cut)},
        )
        if chance.random() < 0.2:  # while they start
            wait_until(lambda running=running: len(running.children()) == 2, running)
            time.sleep(chance.uniform(0, 1))
        else:  # forward, backward, update or save
            wait_until(has_gone_on_from(folder, before), running)
            time.sleep(chance.uniform(0, 0.3))
        says = afflict(running, folder, chance, kind, cut)
        ended = running.end(within=timeout + 15)
        if says is None:
            assert ended.code == 0, ended.err
        else:
            # Before the ranks know their places, they are named without.
            complains(ended, 1, [says if (complete(folder) or [0])[-1] > before else says.split(" (")[0]])
            assert len(ended.complaint) == 1, ended.err
    ended = start(command(steps=(complete(folder) or [0])[-1] + 2)).end(within=30)
    assert ended.code == 0, ended.err
    check_history(folder)


def test_what_happens_to_a_rank_is_named_and_the_run_goes_on(start, complains, shim, tmp_path):
    kinds = ["killed", "stopped", "cut off", "delayed", "killed", "cut off", "killed", "stopped", "cut off", "killed"]
    afflict_again_and_again(start, complains, shim, tmp_path / "out", kinds, seed=3)


KINDS = {"die": "was ended by signal 9", "stop": "has given no sign of life|did not come", "cut": "cut off", "delay": None}
PHASES = ("start", "forward", "backward", "optimizer", "save")
EVERY = [(kind, phase, rank) for kind in KINDS for phase in PHASES for rank in range(4)]
# Each phase twice, and each rank; of a delay, which takes longest, one.
SOME = [
    ("die", "start", 0), ("die", "backward", 2), ("die", "save", 3), ("stop", "forward", 1), ("stop", "optimizer", 3),
    ("stop", "save", 0), ("cut", "start", 3), ("cut", "forward", 2), ("cut", "backward", 1), ("delay", "optimizer", 1),
]


def strike(start, complains, folder, kind, phase, rank, layout):
    """mishap_probe.cpp: it ends within the timeout, one sentence names the rank, and what is started again goes on."""
    config = {
        "distributed": {f"{axis}_size": size for axis, size in layout.items()} | {"use_cpu": True, "timeout_seconds": 5},
        "model": {"name": None, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "dtype": "float32"},
        "training": {"seq_length": 64, "micro_batch_size": 1, "gradient_accumulation_steps": 2, "total_train_steps": 100_000},
        "checkpoint": {"save_dir": "out", "save_frequency": 1, "resume": "auto"},
    }
    if kind == "delay":
        config["distributed"]["timeout_seconds"], config["training"]["total_train_steps"] = 15, 12
    (folder / "config.json").write_text(json.dumps(config))
    running = start([kind, phase, rank, 3, "config.json"], cwd=folder, program=PROBE)
    ended = running.end(within=40)
    assert f"struck in {phase}" in ended.out
    if kind == "delay":
        assert ended.code == 0 and ended.seconds > 5, ended.err
    else:
        place, rest = [], rank
        for axis, size in reversed(layout.items()):
            place.insert(0, f"{axis} {rest % size}")
            rest //= size
        # Before the ranks know their places, they are named without.
        named = f"rank {rank}" + ("" if phase == "start" else f" ({', '.join(place)})")
        complains(ended, 1, [named])
        assert len(ended.complaint) == 1 and re.search(KINDS[kind], ended.err), ended.err
    before = (complete(folder / "out") or [0])[-1]
    ended = start(["train", "--config", "config.json", "--training.total_train_steps", before + 2], cwd=folder).end(within=30)
    assert ended.code == 0, ended.err
    assert complete(folder / "out")[-1] == before + 2
    check_history(folder / "out")


@needs_probe
@pytest.mark.parametrize("kind, phase, rank", SOME)
def test_what_happens_to_a_rank_in_any_phase_is_named_and_the_run_goes_on(start, complains, tmp_path, kind, phase, rank):
    strike(start, complains, tmp_path, kind, phase, rank, {"dp": 2, "pp": 2})


@needs_probe
@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"dp": 2, "pp": 2}, {"cp": 2, "tp": 2}], ids=["dp 2 pp 2", "cp 2 tp 2"])
@pytest.mark.parametrize("kind, phase, rank", EVERY)
def test_everything_that_happens_to_any_rank_in_any_phase(start, complains, tmp_path, kind, phase, rank, layout):
    strike(start, complains, tmp_path, kind, phase, rank, layout)


@pytest.mark.slow
def test_a_hundred_misfortunes(start, complains, shim, tmp_path):
    chance = random.Random(4)
    kinds = [chance.choice(["killed", "stopped", "cut off", "delayed"]) for _ in range(100)]
    afflict_again_and_again(start, complains, shim, tmp_path / "out", kinds, seed=5)


# ------------------------------------------------------------------------------------- disks


@pytest.fixture
def saved(start, tmp_path):
    """A run of four steps with checkpoints 2 and 4."""
    ended = start(command(steps=4, frequency=2)).end(within=30)
    assert ended.code == 0, ended.err
    assert complete(tmp_path / "out") == [2, 4]
    return tmp_path / "out"


def test_a_disk_that_writes_half_is_asked_again(start, shim, tmp_path):
    ended = start(command(steps=2), environment={"LD_PRELOAD": shim, "FAULTY_WRITE": "short"}).end(within=30)
    assert ended.code == 0, ended.err
    assert start(command(steps=3)).end(within=30).code == 0  # its checksums hold
    assert steps(tmp_path / "out") == [1, 2, 3]


FAILING = {
    "no space after some bytes": ({"FAULTY_WRITE": "full:50000"}, "no space left on device"),
    "no space at once": ({"FAULTY_WRITE": "full:0"}, "no space left on device"),
    "the first flush": ({"FAULTY_FSYNC": "1"}, "input/output error"),
    "a later flush": ({"FAULTY_FSYNC": "9"}, "input/output error"),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("environment, says", FAILING.values(), ids=FAILING.keys())
def test_a_disk_that_fails_ends_the_run_and_keeps_what_is_there(start, complains, shim, saved, environment, says, ranks):
    more = ["--async"] if says.startswith("input") else []
    environment = environment | {"LD_PRELOAD": shim}
    ended = start(command("--dp", ranks, *more, steps=8, frequency=2), environment=environment).end(within=30)
    complains(ended, 1, [".partial/"])
    assert says in ended.err.lower()
    assert complete(saved) == [2, 4]
    assert start(command(steps=5)).end(within=30).code == 0
    assert not list(saved.glob("*.partial"))
    assert steps(saved) == [1, 2, 3, 4, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk(start, complains, tmp_path):
    (tmp_path / "out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path / "out"], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        ended = start(command(steps=1000)).end(within=60)
        complains(ended, 1, ["make room or choose another folder"])
        kept = complete(tmp_path / "out")
        assert kept and kept == list(range(1, len(kept) + 1))
        assert not list((tmp_path / "out").glob("*.partial"))
        for step in kept[:-1]:
            shutil.rmtree(tmp_path / "out" / str(step))
        assert start(command(steps=kept[-1] + 1)).end(within=30).code == 0
    finally:
        subprocess.run(["umount", "-l", tmp_path / "out"], check=True)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[random.Random(6).randrange(len(content))] ^= 4
    file.write_bytes(content)


DAMAGED = {
    "weights": ("model/model-00002-of-*.safetensors", flip_a_bit, "is damaged"),
    "config.json": ("model/config.json", flip_a_bit, "config.json"),
    "index": ("model/model.safetensors.index.json", flip_a_bit, "model.safetensors.index.json"),
    "moments": ("optimizer/exp_avg/model-00003-of-*.safetensors", flip_a_bit, "is damaged"),
    "squares": ("optimizer/exp_avg_sq/model-00001-of-*.safetensors", flip_a_bit, "is damaged"),
    "state": ("state.json", flip_a_bit, "state.json"),
    "a removed shard": ("model/model-00003-of-*.safetensors", Path.unlink, "is missing"),
    "a shorter file": ("optimizer/exp_avg/model-00002-of-*.safetensors", lambda f: os.truncate(f, 1000), "1000 bytes"),
}


@pytest.mark.parametrize("pattern, spoil, says", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_found_before_it_is_used(fails, start, saved, pattern, spoil, says):
    (file,) = (saved / "4").glob(pattern)
    spoil(file)
    fails(command(steps=6), 2, [file.name, says, "to go on from that, give --resume never --load_path out/2"])
    assert steps(saved) == [1, 2, 3, 4], "nothing was changed"
    ended = start([*command(steps=5), "--resume", "never", "--load_path", "out/2"]).end(within=30)
    assert ended.code == 0, ended.err
    assert steps(saved) == [1, 2, 3, 4, 5]
    assert (saved / "4.old1").is_dir(), "what was found damaged is kept aside"


def test_damage_is_named_by_one_of_many_ranks(fails, saved):
    (file,) = (saved / "4" / "optimizer" / "exp_avg").glob("model-00004-of-*")
    flip_a_bit(file)
    fails(command("--dp", 2, steps=6), 2, [file.name, "is damaged"], within=15)


def test_a_newer_version(fails, saved):
    state = saved / "4" / "state.json"
    state.write_text(state.read_text().replace('"version": 1', '"version": 2'))
    fails(command(steps=6), 2, ["version 2", "use a newer picotron", "out/2"])


def test_a_half_written_checkpoint_is_never_taken(start, saved):
    (saved / "4" / "state.json").unlink()
    shutil.copytree(saved / "4", saved / "9.partial")
    (saved / "latest").write_text("9999\n")
    ended = start(command(steps=3)).end(within=30)
    assert ended.code == 0, ended.err
    assert "Going on from out/2" in ended.out
    assert steps(saved) == [1, 2, 3]
    assert not (saved / "9.partial").exists()
    assert (saved / "4.old1").is_dir()
