"""The program as a person starts it, and what every end of it must be like (DESIGN.md, contract 4)."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("PICOTRON_BINARY", ROOT / "build" / "picotron")).absolute()
TRACES = ("Exception raised from", "frame #", "terminate called", "what():", "Traceback", ".cpp:")


def process_group(group):
    """The processes of a group that are more than a dead entry in the table."""
    members = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if entry.name.isdigit() and int(fields[2]) == group and fields[0] not in "ZX":
                members.append(int(entry.name))
    return members


@dataclass
class Ended:
    code: int
    out: str
    err: str
    seconds: float

    @property
    def complaint(self):
        """Stderr without warnings (OpenMP's own among them) and without the notice that a Ctrl-C was heard."""
        beside = ("warning: ", "libgomp: ", "stopping after")
        return [line for line in self.err.splitlines() if line and not line.startswith(beside)]


class Running:
    def __init__(self, arguments, cwd, environment=None, limit=None, program=BINARY, stdout=None, stderr=None):
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
        self.began = time.monotonic()

        def begin():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would we
            if limit:
                limit()

        # Files, which a program may fill while nobody reads: of a pipe that is full it would wait for a reader.
        self.stdout, self.stderr = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [program, *map(str, arguments)],
            cwd=cwd,
            env=keep | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=stdout or self.stdout,
            stderr=stderr or self.stderr,
            text=True,
            start_new_session=True,
            preexec_fn=begin,
        )

    def children(self):
        return sorted(pid for pid in process_group(self.process.pid) if pid != self.process.pid)

    def said(self):
        """What stderr holds so far."""
        return os.pread(self.stderr.fileno(), 1 << 20, 0).decode()

    def end(self, within):
        until = time.monotonic() + within
        try:
            self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"no end within {within} s; stderr: {self.said()[-2000:]}")
        while (left := process_group(self.process.pid)) and time.monotonic() < until:  # of a launcher that was killed
            time.sleep(0.01)
        self.stdout.seek(0)
        ended = Ended(self.process.returncode, self.stdout.read(), self.said(), time.monotonic() - self.began)
        self.kill()
        assert not left, f"processes left: {left}"
        return ended

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path):
    """start(arguments, cwd=…, environment=…, limit=…) → Running; killed at the end of the test whatever happens."""
    running = []

    def start_one(arguments, cwd=None, **options):
        running.append(Running(arguments, cwd or tmp_path, **options))
        return running[-1]

    yield start_one
    for one in running:
        one.kill()


def check_complaint(ended, code, says):
    assert ended.code == code, ended.err
    assert 1 <= len(ended.complaint) <= 3, ended.err
    assert ended.complaint[0].startswith(("error: ", "[rank ")), ended.err
    for trace in TRACES:
        assert trace not in ended.err, ended.err
    for text in says:
        assert text in ended.err, f"{text!r} is not in: {ended.err}"


@pytest.fixture
def complains():
    """complains(ended, code, says): as `fails`, of a run that has ended."""
    return check_complaint


@pytest.fixture
def fails(start):
    """fails(arguments, code, says): it ends within 5 s with that code and at most 3 lines that hold each of `says`."""

    def check(arguments, code, says, within=5, **options):
        ended = start(arguments, **options).end(within)
        check_complaint(ended, code, says)
        return ended

    return check


TINY = {
    "distributed": {"use_cpu": True},
    "model": {
        "name": None,
        "dtype": "float32",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "training": {"seq_length": 32, "micro_batch_size": 2, "total_train_steps": 2},
    "checkpoint": {"save_dir": "out", "save_frequency": 2},
}


@pytest.fixture
def tiny():
    """tiny(model={…}, training={…}, …): the smallest run, and what a test changes of it."""

    def config(**sections):
        merged = {name: dict(section) for name, section in TINY.items()}
        for name, section in sections.items():
            merged[name] = merged.get(name, {}) | section
        return merged

    return config


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The save_dir of a run of two steps on the stories."""
    import json

    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.json").write_text(json.dumps(TINY))
    ended = Running(["train", "--config", "config.json"], folder).end(60)
    assert ended.code == 0, ended.err
    return folder / "out"
