"""One curve with real processes: `picotron verify` starts each layout as its ranks would run, and as one rank.

What it compares is in src/train/verify.h; tests/unit/layouts_test.cpp holds many more layouts, of threads. Four run
always, the rest with ./run test --all. docs/parity.md says what was broken on purpose to see them fail.
"""

import re
import subprocess
import time
from pathlib import Path

import pytest
import runs

SMALL = "--num_hidden_layers 4 --num_attention_heads 8 --num_key_value_heads 4 --mbs 2 --grad_acc_steps 2"
TIED, UNTIED = "--tie_word_embeddings true", "--tie_word_embeddings false"

QUICK = {
    "dp2 tp2": "--dp 2 --tp 2",
    "pp2 tied": f"--pp 2 {TIED}",
    "cp2": "--cp 2",
    "tp2 pp2 zero bubble, tied": f"--tp 2 --pp 2 --pp_engine zb-h1 {TIED}",
}
SLOW = {
    "tp2": f"--tp 2 {TIED}",
    "dp3": "--dp 3 --zero_stage 0",
    "dp2 pp2": f"--dp 2 --pp 2 --pp_engine afab --grad_acc_steps 7 {TIED}",
    "dp2 cp2": "--dp 2 --cp 2",
    "tp2 cp2, sequence parallel": "--tp 2 --cp 2 --sequence_parallel true",
    "pp2 interleaved": "--pp 2 --pp_engine interleaved --pp_chunks 2 --grad_acc_steps 3",
    "pp3 uneven layers": f"--pp 3 --num_hidden_layers 5 --grad_acc_steps 1 {TIED}",
    "cp3": "--cp 3 --seq_len 36 --recompute full",
    "tp4, two key/value heads": "--tp 4 --num_key_value_heads 2",
    "tp2 uneven": f"--tp 2 --model.intermediate_size 65 --model.vocab_size 67 {UNTIED}",
    "dp2 tp2, recompute full": "--dp 2 --tp 2 --recompute full --sequence_parallel true",
    "cp2 pp2, recompute selective": "--cp 2 --pp 2 --recompute selective",
    "dp2 tp2 pp2": f"--dp 2 --tp 2 --pp 2 {TIED}",
    "tp2 pp2 cp2": f"--tp 2 --pp 2 --cp 2 --pp_engine zb-h1 {UNTIED}",
    "dp2 tp2 pp2, pipeline outermost": f"--dp 2 --tp 2 --pp 2 --mesh_order pp-dp-cp-tp {TIED}",
    "dp2 tp2 pp2 cp2": f"--dp 2 --tp 2 --pp 2 --cp 2 --sequence_parallel true {TIED}",
}
ALL = [pytest.param(flags, id=name) for name, flags in QUICK.items()] + [
    pytest.param(flags, id=name, marks=pytest.mark.slow) for name, flags in SLOW.items()
]
STORIES = Path(__file__).parents[2] / "configs" / "stories.json"
FIGURES = ["initial value", "loss", "gradient norm", "gradient", "updated weight"]


def verify(flags):
    words = f"{SMALL} {flags} --use_cpu true --dtype float32".split()
    values = dict(zip(words[::2], words[1::2]))  # a layout's own flags come last
    command = [runs.BINARY, "verify", *(word for pair in values.items() for word in pair)]
    return subprocess.run([*map(str, command)], env=runs.ENVIRONMENT, capture_output=True, text=True, timeout=300)


def tables(output):
    """{"float64, sgd": {"loss": 1e-16, …}, …}: the columns of worst distances."""
    found, rows = {}, None
    for line in output.splitlines():
        if re.fullmatch(r"(float64|float32|bfloat16), \w+", line):
            rows = found[line] = {}
        row = re.match(r"  (\S.*?) {2,}([0-9.e+-]+|inf) ", line)
        if row and row[1] in FIGURES:
            rows[row[1]] = float(row[2])
    return found


@pytest.mark.parametrize("flags", ALL)
def test_processes_train_the_model_of_one_rank(flags):
    done = verify(flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", processes\n" in done.stdout and "TOO FAR" not in done.stdout
    of = tables(done.stdout)
    assert list(of) == ["float64, adamw", "float64, sgd", "float32, adamw"]
    for title, rows in of.items():
        assert list(rows) == FIGURES, title
        exact = title.startswith("float64")
        assert rows["initial value"] == 0, title
        assert rows["loss"] <= (1e-10 if exact else 1e-5), title
        assert max(rows["gradient norm"], rows["gradient"]) <= (1e-10 if exact else 1e-4), title
        assert not exact or rows["updated weight"] <= 1e-10, title


MODEL = dict(
    name=None, vocab_size=67, hidden_size=32, intermediate_size=50, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, dtype="float64",
)  # fmt: skip


def test_torchrun_trains_the_model_of_one_rank(tmp_path):
    """The loop of `picotron train` on tokens, every gradient whole, under someone else's launcher."""
    runs.write_tokens(tmp_path, MODEL["vocab_size"], 1000)

    def train(name, prefix=(), **layout):
        config = {
            "distributed": layout,
            "model": MODEL,
            "training": dict(seq_length=16, micro_batch_size=2, gradient_accumulation_steps=2, total_train_steps=3,
                             optimizer="sgd", learning_rate=0.1, grad_clip=0.5),
            "dataset": dict(name=str(tmp_path / "tokens.npy")),
        }  # fmt: skip
        return runs.train(tmp_path / name, config, gradients=[1, 3], prefix=prefix)

    ours, alone = train("ours", [*runs.TORCHRUN, 4], tp_size=2, pp_size=2), train("alone")
    assert runs.relative(ours.losses, alone.losses) < 1e-10
    assert runs.relative(ours.norms, alone.norms) < 1e-10
    for step in [1, 3]:
        assert runs.worst(ours.gradients(step), alone.gradients(step)) < (1e-10, ""), step
    assert runs.worst(ours.weights, alone.weights) < (1e-10, "")


@pytest.mark.slow
@pytest.mark.alone
def test_sixteen_ranks_start_soon(tmp_path):
    """As processes, from the start of the program to the end of the first step; the limit leaves room for other work."""
    flags = "--dp 2 --tp 2 --pp 2 --cp 2 --total_train_steps 1 --eval_interval 0"
    command = [runs.BINARY, "train", "--config", STORIES, *flags.split(), "--save_dir", tmp_path]
    begin = time.monotonic()
    with subprocess.Popen([*map(str, command)], env=runs.ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        first = next(line for line in process.stdout if "Step: 1 " in line)
        seconds = time.monotonic() - begin
        process.stdout.read()
    assert process.returncode == 0 and "Loss" in first
    assert seconds < 30
