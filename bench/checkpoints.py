#!/usr/bin/env python3
"""What saving and loading cost: python3 bench/checkpoints.py [FOLDER] [--rounds N] [--check]   (after ./run build)

FOLDER is on the disk in question. Trains SmolLM-135M in float32 for a few steps on one rank and on two, saving beside
`dd` with fsync on the same disk in turn, and prints: the rate of saving over that of dd, the pause of an asynchronous
save over one copy of the state in memory, and how much the peak memory of a rank grows by saving, by saving
asynchronously and by loading. With --check the exit code is 1 where a median misses its GOALS.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

BINARY = Path(__file__).parents[1] / "build" / "picotron"
GOALS = {"dd": 0.7, "pause": 1.5, "memory": 256e6}  # at least, at most, at most beside the copy
FLAGS = (
    "--model_name HuggingFaceTB/SmolLM-135M --dtype float32 --seq_len 64 --mbs 2 --use_cpu --training.num_samples 1000"
).split()
STATE = 134_515_008 * 4 * 3  # weights and two moments, in bytes


def random_bytes(folder):
    """As many as a checkpoint has, in a file whose pages stay in memory: many disks write zeros faster than data."""
    with open(folder / "random", "wb") as file:
        for _ in range(STATE >> 24):
            file.write(os.urandom(1 << 24))
        os.fsync(file.fileno())
    return folder / "random"


def dd(source):
    """Bytes per second of dd with fsync, for as much as a checkpoint has."""
    file = source.with_name("dd")
    began = time.monotonic()
    subprocess.run(
        ["dd", f"if={source}", f"of={file}", "bs=4M", f"count={STATE >> 22}", "conv=fsync"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.monotonic() - began
    file.unlink()
    return STATE / seconds


def train(folder, *flags, ranks=1, steps=3, frequency=2):
    """Runs and returns (what it printed, the peak memory of rank 0 in bytes at its last step)."""
    command = [BINARY, "train", *FLAGS, "--dp", ranks, "--save_dir", folder, "--total_train_steps", steps]
    command += ["--save_frequency", frequency, *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return done.stdout, last["memory_bytes"]


def reports(printed):
    """(bytes, seconds, pause) of each checkpoint."""
    lines = re.findall(r"Checkpoint \S+: (\S+) GB in (\S+) s, training paused (\S+) s", printed)
    return [(float(a) * 1e9, float(b), float(c)) for a, b, c in lines]


def copy_seconds():
    """One copy of the state in memory that was touched before."""
    source, target = bytearray(STATE), bytearray(STATE)
    for each in (source, target):
        each[:: os.sysconf("SC_PAGESIZE")] = b"\x01" * len(each[:: os.sysconf("SC_PAGESIZE")])
    began = time.monotonic()
    memoryview(target)[:] = source
    return time.monotonic() - began


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", nargs="?", default="runs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder / "bench-checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    missed = []
    try:
        source = random_bytes(folder)
        for ranks in (1, 2):
            ratios, rates = [], []
            for number in range(asked.rounds):
                before = dd(source)
                printed, _ = train(folder / f"{ranks}-{number}", ranks=ranks)
                shutil.rmtree(folder / f"{ranks}-{number}")
                after = dd(source)
                size, seconds, _ = reports(printed)[0]
                rates.append(size / seconds / 1e9)
                ratios.append(size / seconds / ((before + after) / 2))
            print(f"saving, {ranks} rank(s): {spread(rates)} GB/s, {spread(ratios)} of dd with fsync", flush=True)
            if statistics.median(ratios) < GOALS["dd"]:
                missed.append(f"saving on {ranks} rank(s)")
        source.unlink()
        _, plain = train(folder / "plain", frequency=1000, steps=4)
        _, saved = train(folder / "saved", steps=3)
        _, loaded = train(folder / "saved", "--resume", "auto", steps=5, frequency=1000)
        pauses, ratios = [], []
        for number in range(asked.rounds):
            before = copy_seconds()
            printed, asynchronous = train(folder / f"async-{number}", "--async", steps=3)
            shutil.rmtree(folder / f"async-{number}")
            pauses.append(reports(printed)[0][2])
            ratios.append(pauses[-1] / ((before + copy_seconds()) / 2))
        print(f"asynchronous save: pause {spread(pauses)} s, {spread(ratios)} of one copy of the state", flush=True)
        if statistics.median(ratios) > GOALS["pause"]:
            missed.append("the pause of an asynchronous save")
        megabytes = lambda value: f"{(value - plain) / 1e6:+.0f} MB"  # noqa: E731
        print(f"peak memory of a rank, {plain / 1e6:.0f} MB without: saving {megabytes(saved)}, loading "
              f"{megabytes(loaded)}, saving asynchronously {megabytes(asynchronous)} of which the copy "
              f"{STATE / 1e6:.0f} MB")  # fmt: skip
        if max(saved, loaded, asynchronous - STATE) - plain > GOALS["memory"]:
            missed.append("peak memory")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if asked.check and missed:
        sys.exit(f"short of its goal: {', '.join(missed)}")


if __name__ == "__main__":
    main()
