"""What `picotron plan` says of memory against what ranks take: peak resident memory of each process (VmHWM) at the end
of a step, less that of the same layout with a model of a few thousand numbers, which is the process itself."""

import json
import re
import subprocess
import time

import pytest
import runs

TOLERANCE = 0.15

# 27M parameters, 1,024 tokens of a microbatch in one place.
MODEL = {
    "name": None,
    "dtype": "float32",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 2}


def planned(folder):
    """Bytes of each rank, by the plan."""
    text = runs.start([runs.BINARY, "plan", "--config", folder / "config.json"], folder)
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    of_rank = {}
    for ranks, size, unit in re.findall(r"\n  ranks? ([0-9–, ]+?)(?:    .*)?\n(?:.*\n)*?.*in all ([\d.e+]+) (\w+)", text):
        for run in ranks.split(", "):
            first, _, last = run.partition("–")
            for rank in range(int(first), int(last or first) + 1):
                of_rank[rank] = float(size) * units[unit]
    return of_rank


def peak(pid):
    try:
        status = open(f"/proc/{pid}/status").read()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found.group(1)) * 1024 if found else 0
    except OSError:
        return 0


def descendants(pid):
    """Of one process: itself and those that it started."""
    try:
        children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError:
        children = []
    return [pid] + [p for child in children for p in descendants(int(child))]


def rank_of(pid):
    try:
        environment = open(f"/proc/{pid}/environ", "rb").read().split(b"\0")
    except OSError:
        return None
    ranks = [int(line.split(b"=")[1]) for line in environment if line.startswith(b"PICOTRON_RANK=")]
    return ranks[0] if ranks else None


def measured(folder, world, steps=2, limit=300):
    """Peak bytes of each rank when the last step is over and nothing is saved yet."""
    metrics = folder / "ckpt" / "metrics.jsonl"
    process = subprocess.Popen(
        [runs.BINARY, "train", "--config", folder / "config.json"],
        cwd=folder, env=runs.ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    peaks = {}
    began = time.monotonic()
    # The run asks for one step more than is measured: after the last one it saves.
    while process.poll() is None and time.monotonic() - began < limit:
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        for pid in descendants(process.pid):
            rank = 0 if world == 1 else rank_of(pid)
            if rank is not None:
                peaks[rank] = max(peaks.get(rank, 0), peak(pid))
        if done >= steps:
            break
        time.sleep(0.02)
    process.kill()  # the ranks end with their launcher
    process.wait(60)
    assert len(peaks) == world, process.stderr.read()
    return peaks


def config(folder, distributed=(), training=(), model=()):
    folder.mkdir(parents=True, exist_ok=True)
    sections = {
        "distributed": {"use_cpu": True, "backend": "gloo", "timeout_seconds": 60, **dict(distributed)},
        "model": {**MODEL, **dict(model)},
        "training": {"seq_length": 256, "micro_batch_size": 4, "total_train_steps": 3, **dict(training)},
        "checkpoint": {"save_dir": str(folder / "ckpt")},
    }
    (folder / "config.json").write_text(json.dumps(sections))
    return folder


def compare(tmp_path, distributed=(), training=(), model=()):
    """(rank, planned, measured) of every rank, in bytes."""
    sizes = dict(distributed)
    world = 1
    for axis in ("dp", "tp", "pp", "cp"):
        world *= sizes.get(f"{axis}_size", 1)
    base = measured(config(tmp_path / "base", distributed, training, {**dict(model), **TINY}), world)
    large = config(tmp_path / "large", distributed, training, model)
    plan, peaks = planned(large), measured(large, world)
    return [(rank, plan[rank], peaks[rank] - base[rank]) for rank in range(world)]


CASES = {
    "one rank": ({}, {}),
    "tp 2, pp 2": ({"tp_size": 2, "pp_size": 2}, {"gradient_accumulation_steps": 3}),
}


@pytest.mark.parametrize("distributed, training", CASES.values(), ids=CASES.keys())
def test_memory_is_as_planned(tmp_path, distributed, training):
    for rank, plan, taken in compare(tmp_path, distributed, training):
        assert abs(plan - taken) <= TOLERANCE * taken, f"rank {rank}: planned {plan / 1e6:.0f}, took {taken / 1e6:.0f} MB"
