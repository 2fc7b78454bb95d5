"""Runs of parity_probe.cpp, and how far apart two of them are.

A run is a folder: tokens.npy, config.json, ckpt/metrics.jsonl, gradients-STEP.safetensors and weights.safetensors.
One thread per rank, so that a test costs the same on any machine.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
from safetensors.torch import load_file

BUILD = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[2] / "build"))
PROBE = BUILD / "tests" / "parity_probe"
BINARY = Path(os.environ.get("PICOTRON_BINARY", BUILD / "picotron"))

# What a launcher would set: the tests start single processes unless they say otherwise.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES} | {"OMP_NUM_THREADS": "1"}

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone", "--nproc-per-node"]


def write_tokens(folder, vocab_size, count, seed=0):
    """Tokens of which some are frequent and some follow from the one before, so that there is something to learn."""
    random = numpy.random.default_rng(seed)
    tokens = (vocab_size * random.random(count) ** 3).astype(int)
    for i in range(1, count):
        if random.random() < 0.5:
            tokens[i] = (3 * tokens[i - 1] + 1) % vocab_size
    numpy.save(folder / "tokens.npy", tokens.astype("<u2"))
    return tokens


@dataclass
class Run:
    folder: Path
    output: str

    @property
    def metrics(self):
        return [json.loads(line) for line in (self.folder / "ckpt" / "metrics.jsonl").read_text().splitlines()]

    @property
    def losses(self):
        return [step["loss"] for step in self.metrics]

    @property
    def norms(self):
        return [step["grad_norm"] for step in self.metrics]

    def gradients(self, step):
        return load_file(self.folder / f"gradients-{step}.safetensors")

    @property
    def weights(self):
        return load_file(self.folder / "weights.safetensors")


def start(command, folder):
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def train(folder, config, gradients=(), prefix=(), program=None):
    """`config`: sections of a config.json. `gradients`: steps after which every gradient is written.
    `prefix`: what starts the ranks, where they do not start themselves. `program`: instead of the probe."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = {name: dict(keys) for name, keys in config.items()}
    sections.setdefault("distributed", {}).update(use_cpu=True, backend="gloo", timeout_seconds=60)
    steps = sections.get("training", {}).get("total_train_steps", 200)
    sections["checkpoint"] = {"save_dir": str(folder / "ckpt"), "save_frequency": steps}
    (folder / "config.json").write_text(json.dumps(sections, indent=2))
    steps = ",".join(map(str, gradients)) or "-"
    command = program or [PROBE, "train", folder / "config.json", folder, steps]
    return Run(folder, start([*prefix, *command], folder))


def relative(a, b):
    """The largest |a - b| / |b| of two curves."""
    assert len(a) == len(b) > 0
    return max(abs(x - y) / abs(y) for x, y in zip(a, b))


def distance(a, b):
    """max|a - b| / max|b| over a whole tensor."""
    assert a.shape == b.shape
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def worst(a, b):
    """The largest distance of two dicts of tensors, and the name it is at."""
    assert a.keys() == b.keys()
    return max((distance(a[name], b[name]), name) for name in b)
