"""The rules of the house, held by reading the source: how long a file and a line may be, which room may look into
which, where LibTorch's process groups, oneDNN and matrix products may be called, and that every key has a reader.

ARCHITECTURE.md tells why; each test's message says what to do about a breach."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
SOURCES = sorted(p for ext in ("h", "cpp", "cu", "cuh") for p in SRC.rglob(f"*.{ext}"))
TEST_SOURCES = sorted(p for ext in ("h", "cpp") for p in (ROOT / "tests").rglob(f"*.{ext}"))
BENCH_SOURCES = sorted(p for ext in ("h", "cpp") for p in (ROOT / "bench").rglob(f"*.{ext}"))

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


def test_tiles_are_of_products_and_attention():
    found = include_breaches(r"kernels/amx/", lambda n: n.startswith(("kernels/amx/", "kernels/matmul", "kernels/attention")),
                             "AMX's tiles are used in src/kernels/matmul* and attention* alone")
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


def without_raw_strings(text):
    """A raw string is text of its own, in which the ends of lines may count."""
    return re.sub(r'R"(\w*)\(.*?\)\1"', lambda m: '""' + "\n" * m.group().count("\n"), text, flags=re.DOTALL)


def test_lines_of_cpp_fit_in_100_columns():
    """Characters, not bytes; clang-format breaks code, but not every comment and string."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in SOURCES + TEST_SOURCES + BENCH_SOURCES
        for number, line in enumerate(without_raw_strings(path.read_text()).splitlines(), 1)
        if len(line) > 100
    ]
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


# ------------------------------------------------------------------------------------- every config key has a reader

# Keys that a function of core/config.h reads for the whole program: then that function must be called.
READ_BY_FUNCTION = {
    "training.gradient_accumulation_steps": "gradient_accumulation_steps",
    "training.global_batch_size": "global_batch_size",
    "environment.FLASH_ATTEN": "resolve_environment",
}

# Keys of the reference that say something about another key's value alone, which is refused or warned about itself.
SAID_BY_ANOTHER = {
    "logging.project_name": "logging.use_wandb",
    "logging.run_name": "logging.use_wandb",
}


def config_keys(config_h):
    """{section.key: the type of its section}, from the structs of core/config.h."""
    structs = dict(re.findall(r"^struct (\w+) \{(.*?)^\};", without_comments(config_h), re.DOTALL | re.MULTILINE))
    sections = {t: s for t, s in re.findall(r"(\w+) (\w+);", structs["Config"]) if t in structs}
    return {
        f"{section}.{name}": section_type
        for section_type, section in sections.items()
        for declaration in structs[section_type].split(";")
        # Type a = 1, b: the type, then the names between commas.
        for names in re.findall(r"^\s*[\w:]+(?:<[\w:]+>)?\s+(.+)", declaration, re.DOTALL)
        for name in re.findall(r"(?:^|,)\s*(\w+)", names)
    }


def reads(key, section_type, text, header=""):
    """Is the key read in this source? As section.key or, where a variable has the section's type, as variable.key."""
    section, name = key.split(".")
    receivers = {section} | set(re.findall(rf"\b{section_type}\s*[&*]?\s*(\w+)", text + header))
    pattern = rf"\b(?:{'|'.join(receivers)})(?:\.|->){name}\b(?!\s*(?:=[^=]|\())"
    return re.search(pattern, text) is not None


def keys_not_built(table_cpp):
    """The set of section.key whose entry in core/config_table.cpp says not_built."""
    entries = re.split(r"\{AT\(", without_comments(table_cpp))[1:]
    found = set()
    for entry in entries:
        section, name = re.match(r"(\w+), (\w+)\)", entry).groups()
        if "not_built(" in entry:
            found.add(f"{section}.{name}")
    return found


def breaches_of_reading(config_h, table_cpp, sources):
    """sources: {path: text without comments} of src/ without core/config*."""
    keys, not_built, found = config_keys(config_h), keys_not_built(table_cpp), []
    for key, section_type in keys.items():
        if key in READ_BY_FUNCTION:
            is_read = any(re.search(rf"\b{READ_BY_FUNCTION[key]}\(", text) for text in sources.values())
        else:
            is_read = any(reads(key, section_type, text, sources.get(path.with_suffix(".h"), ""))
                          for path, text in sources.items())
        answered = key in not_built or key in SAID_BY_ANOTHER
        if not is_read and not answered:
            found.append(f"{key} has no reader in src/; read it, or say in config_table.cpp that it is not built")
        if is_read and key in not_built:
            found.append(f"{key} is read; delete its not_built() in config_table.cpp")
        if key in SAID_BY_ANOTHER and (is_read or key in not_built):
            found.append(f"{key} is read or answered by itself; delete it from SAID_BY_ANOTHER")
    for key in (READ_BY_FUNCTION.keys() | SAID_BY_ANOTHER.keys() | not_built) - keys.keys():
        found.append(f"{key} is listed here or in config_table.cpp but is no member in config.h")
    return found


@pytest.fixture(scope="module")
def config_sources():
    readers = {p: without_comments(p.read_text()) for p in SOURCES if not name_of(p).startswith("core/config")}
    return (SRC / "core/config.h").read_text(), (SRC / "core/config_table.cpp").read_text(), readers


def test_every_key_has_a_reader(config_sources):
    assert len(config_keys(config_sources[0])) > 60
    found = breaches_of_reading(*config_sources)
    assert not found, "\n".join(found)


def test_the_rule_of_readers_itself(config_sources):
    config_h, table_cpp, sources = config_sources
    added = "struct Training {\n  int64_t invented = 0, other = 1;"
    unread = breaches_of_reading(config_h.replace("struct Training {", added), table_cpp, sources)
    assert [line.split()[0] for line in unread] == ["training.invented", "training.other"]
    assigned = {SRC / "a.cpp": "void f(Training& t) { t.invented = 1; t.invented(); x.invented; }"}
    assert not any(reads("training.invented", "Training", text) for text in assigned.values())
    for text in ("config.training.invented", "const Training& t = c.training; if (t.invented == 1)"):
        assert reads("training.invented", "Training", text)
    late = table_cpp.replace("{AT(training, seed), reference,", "{AT(training, seed), not_built(), reference,")
    assert "training.seed is read" in breaches_of_reading(config_h, late, sources)[0]
