"""Files that libFuzzer makes up (tests/faults/fuzz), for a few seconds a reader; `./run fuzz` gives each minutes."""

import os
import pathlib
import platform
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = sorted(path.name for path in (ROOT / "tests/faults/fuzz/corpus").iterdir())


def has_libfuzzer():
    clang = shutil.which("clang++-14") or shutil.which("clang++")
    if not clang:
        return False
    library = f"libclang_rt.fuzzer-{platform.machine()}.a"
    found = subprocess.run([clang, f"--print-file-name={library}"], capture_output=True, text=True)
    return os.path.isabs(found.stdout.strip())


pytestmark = pytest.mark.skipif(
    not has_libfuzzer(), reason="libFuzzer is not here; apt-get install clang libclang-rt-dev brings it")


def fuzz(*arguments):
    return subprocess.run([ROOT / "run", "fuzz", *map(str, arguments)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)


@pytest.mark.parametrize("target", TARGETS)
def test_every_made_up_file_is_taken_or_refused(target):
    ended = fuzz("--seconds", 5, target)
    assert ended.returncode == 0, ended.stdout
    assert "no finding" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_made_up_file_of_a_minute(target):
    ended = fuzz("--seconds", 60, target)
    assert ended.returncode == 0, ended.stdout


FAULTS = {
    "read beyond a mapping": "heap-buffer-overflow",
    "overflow": "signed integer overflow",
    "another exception": "std::out_of_range",
    "a message that commands the terminal": "at most three lines of printable text",
    "a message as long as the file": "at most three lines of printable text",
    "memory": "out-of-memory",
    "a leak": "LeakSanitizer",
    "time": "timeout",
}


def leaks_are_seen(tmp_path):
    (tmp_path / "leak.c").write_text("#include <stdlib.h>\nint main(void) { for (int i = 0; i < 9; ++i) malloc(9); }\n")
    clang = shutil.which("clang-14") or shutil.which("clang")
    subprocess.run([clang, "-O0", "-fsanitize=address", "leak.c", "-o", "leak"], cwd=tmp_path, check=True)
    return subprocess.run([tmp_path / "leak"], env={"ASAN_OPTIONS": "detect_leaks=1"}, capture_output=True).returncode


@pytest.mark.parametrize("fault, says", FAULTS.items(), ids=FAULTS.keys())
def test_a_fault_is_found(tmp_path, fault, says):
    if fault == "a leak" and not leaks_are_seen(tmp_path):
        pytest.skip("LeakSanitizer sees no leak of a small program either on this machine")
    (tmp_path / "fault").write_text(fault)
    ended = fuzz("--again", tmp_path / "fault", "canary")
    assert ended.returncode == 1, ended.stdout
    assert says in ended.stdout


def test_what_is_no_fault_is_none(tmp_path):
    (tmp_path / "fault").write_text("none of these")
    ended = fuzz("--again", tmp_path / "fault", "canary")
    assert ended.returncode == 0, ended.stdout


def test_an_unknown_target_is_a_sentence():
    ended = fuzz("canaries")
    assert ended.returncode == 2 and "no target 'canaries'; use " in ended.stdout, ended.stdout
