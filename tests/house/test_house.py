"""The rules of the house, held by reading the source: how long a file may be, which room may look into which,
and where LibTorch's process groups, oneDNN and matrix products may be called.

ARCHITECTURE.md tells why; each test's message says what to do about a breach."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
SOURCES = sorted(p for ext in ("h", "cpp", "cu", "cuh") for p in SRC.rglob(f"*.{ext}"))
TEST_SOURCES = sorted(p for ext in ("h", "cpp") for p in (ROOT / "tests").rglob(f"*.{ext}"))

# The six techniques that a student comes to read, and two that belong to them.
SHORT = ["train/train", "model/llama"] + [
    f"parallel/{name}"
    for name in ("data_parallel", "tensor_parallel", "pipeline_parallel", "context_parallel",
                 "vocab_parallel", "pipeline_schedule")
]
BUDGET = 300  # lines of name.h and name.cpp together must be fewer

# core <- dist, kernels <- parallel <- model <- hub <- data, checkpoint <- train <- commands <- main:
# a room may include itself and every room on a lower floor; rooms of one floor do not know each other.
FLOOR = {"core": 0, "dist": 1, "kernels": 1, "parallel": 2, "model": 3, "hub": 4, "data": 5,
         "checkpoint": 5, "train": 6, "commands": 7, "main": 8}

# The CUDA plug-in gives dist and kernels their CUDA bodies: it may look into those, nothing may look into it.
CUDA_MAY_INCLUDE = {"core", "dist", "kernels", "cuda"}

LIBTORCH_FREE = {"core", "hub", "data"}  # picotron_base compiles without LibTorch's headers

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def name_of(path):
    return path.relative_to(SRC).as_posix()


def room_of(name):
    return name.split("/")[0] if "/" in name else pathlib.PurePath(name).stem


def without_comments(text):
    """The code alone; comments and strings keep their line breaks, so that line numbers stay right."""

    def blank(match):
        return "\n" * match.group().count("\n") if match.group()[0] == "/" else '""'

    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.DOTALL)


def breaches_of_layers(name, text):
    """What `name` (relative to src/) includes and may not."""
    room = room_of(name)
    found = []
    for quote, target in INCLUDE.findall(text):
        other = room_of(target)
        if quote == "<" or (other not in FLOOR and other != "cuda"):
            continue
        if room == "cuda":
            allowed = other in CUDA_MAY_INCLUDE
        else:
            allowed = other == room or (other in FLOOR and FLOOR[other] < FLOOR[room])
        if not allowed:
            found.append(f'src/{name} includes "{target}", but {room} must not know {other}')
    return found


def breaches_of(pattern, allowed, what):
    """Lines of src/ that match `pattern` in a file for which allowed(name) is false."""
    found = []
    for path in SOURCES:
        name = name_of(path)
        if allowed(name):
            continue
        for number, line in enumerate(without_comments(path.read_text()).splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"src/{name}:{number}: {what}: {line.strip()}")
    return found


def include_breaches(pattern, allowed, what):
    return [
        f"src/{name_of(path)} includes {target}: {what}"
        for path in SOURCES
        if not allowed(name_of(path))
        for _, target in INCLUDE.findall(path.read_text())
        if re.search(pattern, target)
    ]


def test_there_is_something_to_read():
    assert len(SOURCES) > 10


@pytest.mark.parametrize("pair", SHORT)
def test_a_technique_fits_in_its_budget(pair):
    files = [SRC / f"{pair}{ext}" for ext in (".h", ".cpp")]
    lines = sum(len(p.read_text().splitlines()) for p in files if p.exists())
    assert lines < BUDGET, f"src/{pair}.h and .cpp are {lines} lines together; fewer than {BUDGET} is the promise"


def test_every_room_has_a_floor():
    unknown = {room_of(name_of(p)) for p in SOURCES} - FLOOR.keys() - {"cuda"}
    assert not unknown, f"rooms without a place in the layer rule: {sorted(unknown)}"


def test_layers():
    found = [b for p in SOURCES for b in breaches_of_layers(name_of(p), p.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name, include, right", [
    ("train/train.cpp", "model/llama.h", True),
    ("data/loader.cpp", "data/dataset.h", True),
    ("core/error.cpp", "dist/mesh.h", False),
    ("dist/mesh.cpp", "kernels/matmul.h", False),
    ("kernels/matmul.cpp", "dist/mesh.h", False),
    ("data/loader.cpp", "checkpoint/safetensors.h", False),
    ("checkpoint/load.cpp", "data/dataset.h", False),
    ("parallel/tensor_parallel.h", "model/llama.h", False),
    ("dist/collectives.cpp", "cuda/nccl.h", False),
    ("cuda/nccl.cu", "dist/collectives.h", True),
    ("cuda/matmul.cu", "model/llama.h", False),
    ("main.cpp", "commands/commands.h", True),
])
def test_the_layer_rule_itself(name, include, right):
    assert (breaches_of_layers(name, f'#include "{include}"\n') == []) == right


def test_process_groups_are_of_dist():
    found = include_breaches(r"c10d|^gloo/", lambda n: room_of(n) in ("dist", "cuda"),
                             "c10d is included in src/dist and src/cuda alone; use dist/collectives.h")
    assert not found, "\n".join(found)


def test_onednn_is_of_matmul():
    found = include_breaches(r"dnnl", lambda n: n.startswith("kernels/matmul"),
                             "oneDNN is included in src/kernels/matmul* alone")
    assert not found, "\n".join(found)


def test_rooms_without_tensors():
    found = include_breaches(r"^(ATen|c10|torch)/",
                             lambda n: room_of(n) not in LIBTORCH_FREE,
                             "core, hub and data compile without LibTorch")
    assert not found, "\n".join(found)


PRODUCTS = "mm|mm_out|matmul|matmul_out|linear|linear_out|addmm|addmm_out|bmm|bmm_out|baddbmm|einsum|mv|addmv"


def test_matrix_products_are_of_matmul():
    """kernels/vjp and the plain definitions of tests are free to: nothing of theirs is the training's speed."""
    found = breaches_of(rf"\bat::({PRODUCTS})\s*\(|\bcblas_\w*gemm|(\.|->)(mm|matmul|addmm_?|bmm|baddbmm_?|mv)\(",
                        lambda n: n.startswith(("kernels/matmul", "kernels/vjp", "cuda/matmul")),
                        "a matrix product outside kernels/matmul")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES + TEST_SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_opens_with_what_it_teaches(path):
    lines = path.read_text().splitlines()
    assert lines and lines[0].startswith("//"), "the first line is a comment: what this file is for"
    opening = next((i for i, line in enumerate(lines) if not line.startswith("//")), len(lines))
    assert opening <= 25, f"{opening} lines of opening comment; about 15 teach, more belongs in docs/"


def test_no_word_that_promises_later():
    found = []
    pattern = re.compile(r"\b(todo|fixme|xxx|stub|placeholder|hack)\b", re.IGNORECASE)
    for path in SOURCES + TEST_SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_no_process_wide_random_state():
    found = breaches_of(r"\b(std::)?s?rand\(|std::random_device|at::manual_seed|torch::manual_seed", lambda n: False,
                        "process-wide randomness; draw from (seed, name, index)")
    assert not found, "\n".join(found)


def test_the_environment_is_read_in_one_room():
    found = breaches_of(r"\b(std::)?(secure_)?getenv\(", lambda n: room_of(n) in ("dist", "hub", "core", "commands"),
                        "a room that computes takes arguments, not environment variables")
    assert not found, "\n".join(found)


def test_one_thread_local_pointer():
    found = breaches_of(r"\bthread_local\b", lambda n: n.startswith("core/record"),
                        "the record's pointer is the program's only thread-local")
    assert not found, "\n".join(found)
