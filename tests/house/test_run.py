"""./run: what a newcomer types first. Nothing here installs or compiles: `./run test` has brought all up to date."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("PICOTRON_BUILD", ROOT / "build")).absolute()


def run(*arguments, **variables):
    done = subprocess.run([ROOT / "run", *arguments], capture_output=True, text=True, check=False, timeout=60,
                          stdin=subprocess.DEVNULL, env={**os.environ, **variables})
    said = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("[run] ")]
    return done.returncode, done.stdout, "".join(said)


@pytest.mark.parametrize("command", ["train", "test", "build", "bench", "fuzz", "format", "lint"])
def test_each_command_says_what_it_does(command):
    assert f"\n  {command} " in run("--help")[1]
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: ./run {command}")


@pytest.mark.parametrize("arguments, variables, says", [
    ([], {}, ""),
    (["trian"], {}, "no command 'trian'; use train,"),
    (["build", "--preset", "fast"], {}, "no preset 'fast'; use release,"),
    (["build", "--preset"], {}, "--preset needs a name"),
    (["test", "-k"], {}, "-k needs a part of the name"),
    (["fuzz", "nothing"], {}, "no target 'nothing'; use "),
    (["lint", "--most"], {}, "./run lint knows no '--most'"),
    (["build", "--cuda"], {"CUDACXX": "/nowhere/nvcc"}, "the CUDA plug-in needs nvcc"),
    (["build"], {"PICOTRON_TORCH": "/nowhere"}, "PICOTRON_TORCH=/nowhere is no LibTorch"),
])  # fmt: skip
def test_what_it_cannot_do_is_a_sentence(arguments, variables, says):
    code, _, err = run(*arguments, **variables)
    assert code == 2 and err.count("\n") == (1 if says else 0), err
    assert err.startswith(f"error: {says}") if says else not err


@pytest.mark.skipif(ROOT / "build" != BUILD or not (BUILD / ".choices").exists(), reason="./run build made another folder")
def test_nothing_to_do_is_done_quickly():
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        code, out, err = run("build")
        seconds.append(time.monotonic() - began)
        assert (code, out, err) == (0, "build/picotron is up to date\n", "")
    assert min(seconds) < 1.0, "promised is half a second, on a machine that does nothing else"


def test_nothing_waits_by_a_timed_read():
    """bash 5.2's `read -t` whose time is over before it waits sets a signal mask that it never saved: on a busy machine
    a step of ./run then went on for ever, its child's end unheard."""
    for script in ["run", ".ci/run", *(path.relative_to(ROOT) for path in ROOT.glob("bench/*.sh"))]:
        lines = [line.partition("#")[0] for line in (ROOT / script).read_text().splitlines()]
        assert not [line for line in lines if re.search(r"\bread\b[^|;]* -\w*t", line)], script
