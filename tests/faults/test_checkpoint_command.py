"""picotron checkpoint: real runs of a small model, and what befalls their files."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

BINARY = Path(os.environ.get("PICOTRON_BINARY", Path(__file__).parents[2] / "build" / "picotron")).absolute()

MODEL = "--hidden_size 32 --intermediate_size 50 --num_hidden_layers 2 --num_attention_heads 4 --num_key_value_heads 2"
COMMON = (
    f"{MODEL} --vocab_size 477 --seq_len 32 --use_cpu --ranks threads --global_batch_size 8 --mbs 1 "
    "--tie_word_embeddings true --training.total_train_steps 3 --checkpoint.save_frequency 1"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The save_dirs of one training in float32: on one rank, in tensor and data parallel, and with another seed."""
    folder = tmp_path_factory.mktemp("trained")
    runs = {"one": [], "again": [], "layout": ["--tp", "2", "--dp", "2"], "seed": ["--seed", "5"]}
    for name, flags in runs.items():
        line = ["train", *COMMON, "--dtype", "float32", *flags, "--save_dir", name]
        ended = subprocess.run([BINARY, *line], cwd=folder, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of one run, to be damaged."""
    return shutil.copytree(trained / "layout", tmp_path / "run")


@pytest.fixture
def command(start):
    """command(words…) → Ended of picotron checkpoint."""
    return lambda *words: start(["checkpoint", *words]).end(20)


TENSORS = 2 * 9 + 2  # of each kind: layers, embedding (which is the head), last norm


def weights(step, folder="model"):
    return sorted((step / folder).glob("*.safetensors"))


def flip_last_bit(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_ls(command, run):
    (run / "2" / "state.json").unlink()
    (run / "3").rename(run / "7.partial")
    shutil.copytree(run / "1", run / "3.old1")
    ended = command("ls", run)
    assert ended.code == 0 and ended.err == ""
    rows = [line.split() for line in ended.out.splitlines()]
    assert [row[0] for row in rows] == ["folder", "1", "2", "3.old1", "7.partial"]
    assert "complete" in rows[1] and "256.00" in rows[1] and "tp" in rows[1]
    assert "half" in rows[2] and "half" in rows[4]
    assert "aside" in rows[3]


def test_show(command, run):
    ended = command("show", run)
    assert ended.code == 0 and ended.err == ""
    said = " ".join(ended.out.split())
    parameters = 477 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 50 + 2 * 32) + 32
    for words in (
        "step 3, of 8 sequences; 768 tokens trained",
        "goes on at row 24 of epoch 1",
        "tp 2",
        "dtype Float, optimizer adamw with 3 updates",
        f"in {TENSORS} tensors, {parameters} parameters",
        "training.total_train_steps 3",
    ):
        assert words in said, f"{words!r} is not in {said}"
    assert "step        2" in command("show", run / "2").out


def test_verify(command, run):
    ended = command("verify", run)
    assert ended.code == 0 and ended.out.count(" is sound: ") == 3
    files = len(json.loads((run / "3/state.json").read_text())["files"])
    assert f"{run}/3 is sound: {files} files, " in command("verify", run / "3").out

    flipped, gone = weights(run / "2")[1], weights(run / "2", "optimizer/exp_avg")[0]
    flip_last_bit(flipped)
    gone.unlink()
    ended = command("verify", run)
    assert ended.code == 1
    assert f"damaged: {flipped} is damaged" in ended.out and f"damaged: {gone} is missing" in ended.out
    assert ended.out.count(" is sound: ") == 2 and command("verify", run / "1").code == 0

    state = run / "1" / "state.json"
    state.write_text(state.read_text().replace('"step": 1', '"step": 4'))
    ended = command("verify", run / "1")
    assert ended.code == 1 and f"damaged: {state} cannot be used" in ended.out


def test_export(command, run, tmp_path):
    from transformers import LlamaForCausalLM

    assert command("export", run, "--out_dir", tmp_path / "out", "--dtype", "bfloat16").code == 0
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out", torch_dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    flip_last_bit(weights(run / "3")[0])
    ended = command("export", run, "--out_dir", tmp_path / "other")
    assert ended.code == 2 and "is damaged" in ended.err and f"{run}/2" in ended.err
    assert not (tmp_path / "other").exists()


def test_diff(command, trained, run):
    same = command("diff", trained / "one", trained / "again")
    assert same.code == 0, same.out
    assert "checkpoint.save_dir" in same.out and "max|a-b|" not in same.out
    tensors = int(same.out.split(" tensors are equal")[0].split()[-1])
    assert f"{tensors} of {tensors} tensors" in same.out and tensors == 3 * TENSORS
    everything = command("diff", trained / "one", trained / "again", "--all").out
    assert everything.count("equal bits") == tensors

    layout = command("diff", trained / "one", trained / "layout")
    distances = [float(line.split()[0]) for line in layout.out.splitlines() if line.endswith("weight")]
    assert layout.code == 1 and distances == sorted(distances, reverse=True) and 0 < distances[0] < 1e-3
    assert "config.distributed.tp_size: 1 | 2" in layout.out

    step = command("diff", trained / "one/2", trained / "one/3")
    assert step.code == 1 and "train.step: 2 | 3" in step.out and "more; --all shows them" in step.out

    again = shutil.copytree(run / "3", run.parent / "again")
    flip_last_bit(weights(again)[-1])
    ended = command("diff", run / "3", again)
    assert ended.code == 1 and f"{tensors - 1} of {tensors} tensors" in ended.out
    shutil.rmtree(again / "optimizer/exp_avg")
    ended = command("diff", run / "3", again)
    assert ended.code == 1 and ended.out.count("only in A") == 10 and f"and {TENSORS + 1 - 10} more" in ended.out


def test_prune(command, run):
    (run / "9.partial").mkdir()
    dry = command("prune", run, "--keep_last", "1", "--dry_run")
    assert dry.code == 0 and dry.out.count("would remove") == 2 and f"{run}/9.partial is half written" in dry.out
    assert {p.name for p in run.iterdir() if p.is_dir()} == {"1", "2", "3", "9.partial"}
    assert command("prune", run, "--keep_last", "1").out.count("removed ") == 2
    assert {p.name for p in run.iterdir() if p.is_dir()} == {"3", "9.partial"}
    assert command("prune", run, "--keep_last", "1", "--half_written").out.count("removed ") == 1
    assert {p.name for p in run.iterdir() if p.is_dir()} == {"3"}
    assert "nothing to remove" in command("prune", run, "--keep_last", "1").out


WRONG = {
    "nothing": ("", ["a command is missing", "ls, show, verify"]),
    "unknown command": ("lst", ["there is no 'lst'", "ls, show"]),
    "ls of nothing": ("ls", ["SAVE_DIR is required"]),
    "ls, no such folder": ("ls nope", ["nope", "save_dir"]),
    "show of a half-written one": ("show 5.partial", ["5.partial", "is not complete"]),
    "verify of an empty save_dir": ("verify .", ["holds no complete checkpoint"]),
    "export without a folder": ("export .", ["--out_dir is required"]),
    "diff of one": ("diff .", ["B is required"]),
    "prune to nothing": ("prune . --keep_last 0", ["--keep_last", "range 1"]),
    "prune without a number": ("prune .", ["--keep_last is required"]),
    "misspelt flag": ("prune . --keep_last 1 --dryrun", ["unknown flag --dryrun", "did you mean --dry_run?"]),
}


@pytest.mark.parametrize("line, says", WRONG.values(), ids=WRONG.keys())
def test_wrong_command_line(fails, tmp_path, line, says):
    (tmp_path / "5.partial").mkdir()
    fails(["checkpoint", *line.split()], 2, says)


@pytest.mark.parametrize("command", ["", "ls", "show", "verify", "export", "diff", "prune"])
def test_help(start, command):
    ended = start(["checkpoint", *command.split(), "--help"]).end(5)
    assert ended.code == 0 and "--" in ended.out and ended.err == ""
