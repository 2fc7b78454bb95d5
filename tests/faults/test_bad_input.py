"""Files, keys and machines that are wrong: one clear sentence each, and nothing half written.

Each case runs the real program in an empty folder. It must end within 5 s with exit code 2 (what the person gave is
wrong) or 1 (what failed later), say it in at most three lines that name the thing and the remedy, show no stack trace,
leave no process, and have made no folder of the run.
"""

import json
import os
import resource
import socket
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

# ------------------------------------------------------------------------------------------ the text of config.json

TEXTS = {
    "no value": ('{\n  "training": {\n    "seed": \n  }\n}', ["config.json:4:3", "expected a value"]),
    "no colon": ('{\n  "training": {\n    "seed" 1\n  }\n}', ["config.json:3:12", "expected ':'"]),
    "no comma": ('{"training": {"seed": 1\n "seq_length": 2}}', ["config.json:2:2", "expected ','"]),
    "trailing comma": ('{"training": {"seed": 1,}}', ["config.json:1:25", "a key in double quotes"]),
    "single quotes": ("{'training': {}}", ["config.json:1:2", "double quotes"]),
    "cut off": ('{"training": {"seed": 1', ["config.json:1:24", "the end of the file"]),
    "open string": ('{"model": {"name": "x\n}}', ["config.json:1:20", 'closing \'"\'']),
    "open comment": ('{}\n/* for ever', ["config.json:2:1", "closing */"]),
    "bad escape": (r'{"model": {"name": "\x"}}', ["config.json:1:22", "after '\\'"]),
    "two documents": ("{}\n{}", ["config.json:2:1", "the end of the file"]),
    "empty file": ("", ["config.json:1:1", "expected a value"]),
    "binary": ("\0\1\2", ["config.json:1:1", "expected a value"]),
    "python literals": ('{"distributed": {"use_cpu": True}}', ["config.json:1:29", "expected a value", "'True'"]),
    "NaN": ('{"training": {"learning_rate": NaN}}', ["config.json:1:32", "'NaN'"]),
    "leading zeros": ('{"training": {"seed": 007}}', ["config.json:1:23", "leading zeros"]),
    "key given twice": ('{"training": {"seed": 1,\n"seed": 2}}', ["config.json:2:1", "line 1", "keep one"]),
    "an array": ("[1, 2]", ["an array", "must be an object"]),
    "too deep": ("[" * 100000, ["config.json", "nested levels"]),
    "section no object": ('{"training": 3}', ["config.json:1:2", '"training" is 3', "must be an object"]),
    "unknown section": ('{"trainning": {}}', ["config.json:1:2", 'did you mean "training"?']),
    "ten mistakes": (
        json.dumps({"training": {f"key_{i}": i for i in range(10)}}),
        ["training.key_0", "training.key_1", "8 more mistakes"],
    ),
}


@pytest.mark.parametrize("text, says", TEXTS.values(), ids=TEXTS.keys())
def test_malformed_config(fails, tmp_path, text, says):
    (tmp_path / "config.json").write_text(text)
    fails(["train", "--config", "config.json"], 2, says)
    assert os.listdir(tmp_path) == ["config.json"]


# ------------------------------------------------------------------------------------------------- the values of it

VALUES = {
    "unknown key": ({"training": {"lerning_rate": 1}}, ["training.lerning_rate", "mean training.learning_rate?"]),
    "key of another section": ({"model": {"seq_length": 8}}, ["model.seq_length", "did you mean training.seq_length"]),
    "string for a number": ({"training": {"seed": "7"}}, ["training.seed", '"7"', "must be a whole number"]),
    "number for a string": ({"dataset": {"name": 7}}, ["dataset.name", "must be a string"]),
    "array for a number": ({"training": {"seed": [1]}}, ["training.seed", "an array", "must be a whole number"]),
    "a fraction of a step": ({"training": {"total_train_steps": 1.5}}, ["total_train_steps", "1.5", "whole number"]),
    "null steps": ({"training": {"total_train_steps": None}}, ["total_train_steps", "null", "whole number"]),
    "negative": ({"training": {"micro_batch_size": -4}}, ["micro_batch_size", "-4", "from 1 to"]),
    "zero": ({"training": {"seq_length": 0}}, ["seq_length", "from 1 to"]),
    "beyond 64 bits": ({"training": {"seed": 10**30}}, ["training.seed", "must be a whole number"]),
    "huge learning rate": ({"training": {"learning_rate": 1e30}}, ["learning_rate", "from 0 to 1000"]),
    "unknown dtype": ({"model": {"dtype": "float16"}}, ["model.dtype", '"float32"', '"bfloat16"']),
    "unknown engine": ({"distributed": {"pp_engine": "gpipe"}}, ["pp_engine", '"1f1b"']),
    "key/value heads": (
        {"model": {"num_attention_heads": 4, "num_key_value_heads": 3}},
        ["num_key_value_heads 3 does not divide num_attention_heads 4", "use 1, 2 or 4"],
    ),
    "heads and hidden": ({"model": {"hidden_size": 30}}, ["num_attention_heads 4", "hidden_size 30", "28 or 32"]),
    "odd head_dim": ({"model": {"head_dim": 7}}, ["head_dim 7", "use 8"]),
    "global batch": (
        {"distributed": {"dp_size": 3}, "training": {"global_batch_size": 8, "micro_batch_size": 2}},
        ["global_batch_size 8", "micro_batch_size 2 · dp_size 3", "use global_batch_size 6 or 12"],
    ),
    "negative warm-up": ({"training": {"warmup_steps": -1}}, ["warmup_steps", "-1", "whole number"]),
    "empty save_dir": ({"checkpoint": {"save_dir": ""}}, ["save_dir", "not empty"]),
    "save_dir with a zero byte": ({"checkpoint": {"save_dir": "a\0b"}}, ["save_dir", "must be a string"]),
    "tokens of a step": (
        {"training": {"micro_batch_size": 1 << 20, "gradient_accumulation_steps": 1 << 20, "seq_length": 1 << 20}},
        ["tokens", "lower micro_batch_size"],
    ),
    "model beyond memory": (
        {"model": {"vocab_size": 2_000_000_000, "hidden_size": 4096}},
        ["weights, gradients and optimizer", "this machine has", "use a smaller model"],
    ),
    "batch beyond memory": (
        {"training": {"micro_batch_size": 1_000_000, "seq_length": 4096}},
        ["activations", "this machine has", "micro_batch_size or seq_length"],
    ),
    "too many ranks for a machine": ({"distributed": {"dp_size": 60000}}, ["60000 ranks", "lower distributed.dp_size"]),
    "nccl on a CPU": ({"distributed": {"backend": "nccl"}}, ["backend", '"nccl"', "needs a GPU", 'use "gloo"']),
    "more stages than layers": ({"distributed": {"pp_size": 3}}, ["pp_size 3", "num_hidden_layers 2", "use pp_size 2"]),
    "chunks without interleaving": (
        {"distributed": {"pp_size": 2, "pp_chunks": 2}}, ["pp_chunks 2", '"1f1b"', '"interleaved"']
    ),
    "an uneven ring": ({"distributed": {"cp_size": 3}, "training": {"seq_length": 32}}, ["seq_length 32", "use 30 or 36"]),
    "heads over tp": (
        {"distributed": {"tp_size": 3}},
        ["tp_size 3 does not divide num_attention_heads 4", "use 1, 2 or 4"],
    ),
    "key/value heads over tp": (
        {
            "distributed": {"tp_size": 2},
            "model": {"hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 3},
        },
        ["tp_size 2 does not divide and is no multiple of num_key_value_heads 3", "use 1, 3, 6 or 12"],
    ),
    "inner width over tp": (
        {"distributed": {"tp_size": 4}, "model": {"intermediate_size": 3}},
        ["tp_size 4 exceeds intermediate_size 3", "use 1 or 2"],
    ),
    "vocabulary over tp": (
        {"distributed": {"tp_size": 4}, "model": {"vocab_size": 2}},
        ["tp_size 4 exceeds vocab_size 2", "use 1 or 2"],
    ),
    "chunks without layers": (
        {"distributed": {"pp_size": 2, "pp_chunks": 3, "pp_engine": "interleaved"}, "model": {"num_hidden_layers": 5}},
        ["pp_size 2 · pp_chunks 3 exceeds num_hidden_layers 5", "use pp_size 1, or pp_chunks 2 or less"],
    ),
    "more of both than layers": (
        {"distributed": {"pp_size": 3, "pp_chunks": 3, "pp_engine": "interleaved"}},
        ["exceeds num_hidden_layers 2", "use pp_size 2 or less and pp_chunks 1"],
    ),
    "uneven cut tokens": (
        {"distributed": {"tp_size": 4, "sequence_parallel": True}, "training": {"seq_length": 30}},
        ["seq_length 30 is not a multiple of 4 (tp_size)", "use 28 or 32"],
    ),
    "uneven cut tokens of a ring": (
        {"distributed": {"tp_size": 2, "cp_size": 2, "sequence_parallel": True}, "training": {"seq_length": 36}},
        ["seq_length 36 is not a multiple of 8 (2 · cp_size · tp_size)", "use 32 or 40"],
    ),
    "a layout wrong on three axes": (
        {"distributed": {"tp_size": 3, "pp_size": 3, "cp_size": 3}},
        ["use 30 or 36", "use 1, 2 or 4", "use pp_size 2 or less"],
    ),
    "a layout wrong for a named model": (
        {"distributed": {"tp_size": 7, "pp_size": 31, "cp_size": 5}, "model": {"name": "HuggingFaceTB/SmolLM-135M",
         "hidden_size": None, "intermediate_size": None, "num_hidden_layers": None, "num_attention_heads": None,
         "num_key_value_heads": None}},
        ["use 30 or 40", "num_attention_heads 9; use 1, 3 or 9", "use pp_size 30 or less"],
    ),
    "resuming": ({"checkpoint": {"load_path": "x"}}, ["x is not a folder", "save_dir with checkpoints"]),
    "unknown model": ({"model": {"name": "HuggingFaceTB/SmolLM-135"}}, ["did you mean HuggingFaceTB/SmolLM-135M?"]),
    "model of the hub": ({"model": {"name": "someone/llama"}}, ["model someone/llama", "HF_HUB_OFFLINE forbids"]),
    "no such data": ({"dataset": {"name": "none.txt"}}, ['"none.txt" does not exist', "use builtin:stories"]),
    "data of the hub": ({"dataset": {"name": "a/b"}}, ["a/b", "text needs a tokenizer"]),
    "unknown built-in": ({"dataset": {"name": "builtin:poems"}}, ["builtin:poems", "builtin:stories"]),
    "vocabulary of the data": ({"model": {"vocab_size": 100}}, ["vocab_size 100", "stories", "set model.vocab_size"]),
    "tokenizer for the stories": ({"dataset": {"tokenizer": "bytes"}}, ["builtin:stories", "remove dataset.tokenizer"]),
    "validation fraction": ({"dataset": {"validation_fraction": 1.0}}, ["validation_fraction", "above 0 and below 1"]),
    "threads of an environment": ({"environment": {"OMP_NUM_THREADS": "many"}}, ["OMP_NUM_THREADS", '"many"']),
    "weights that are nowhere": ({"model": {"init_from": "none"}}, ["none", "folder"]),
}


@pytest.mark.parametrize("sections, says", VALUES.values(), ids=VALUES.keys())
def test_wrong_value(fails, tmp_path, tiny, sections, says):
    (tmp_path / "config.json").write_text(json.dumps(tiny(**sections)))
    fails(["train", "--config", "config.json"], 2, says)
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_layout_is_refused_alike_by_every_command(fails, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny(distributed={"tp_size": 3, "pp_size": 3})))
    for command in ("train", "plan", "verify"):
        fails([command, "--config", "config.json"], 2, ["tp_size 3", "use 1, 2 or 4", "use pp_size 2 or less"])
    assert os.listdir(tmp_path) == ["config.json"]


PLANS = {
    "a world without a search": (["--world", "4"], ["--world is for --search"]),
    "no such world": (["--search", "--world", "0"], ["--world"]),
    "a world that nothing fits": (["--search", "--world", "7"], ["no layout of 7 ranks", "another --world"]),
    "no memory": (["--search", "--most_memory", "1e-9"], ["no layout of 1 ranks"]),
    "no rate": (["--search", "--teraflops", "-1"], ["--teraflops"]),
    "a misspelt flag": (["--searh"], ["did you mean --search?"]),
}


@pytest.mark.parametrize("flags, says", PLANS.values(), ids=PLANS.keys())
def test_wrong_plan(fails, tmp_path, tiny, flags, says):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    fails(["plan", "--config", "config.json", *flags], 2, says)
    assert os.listdir(tmp_path) == ["config.json"]


# --------------------------------------------------------------------------------------------------- files of tokens


def npy(array, order="C"):
    def write(path):
        np.save(path, np.asarray(array, order=order))

    return write


def npy_text(header, data=b"", version=1):
    def write(path):
        text = header.encode() + b"\n"
        path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + data)

    return write


def cut(write, left):
    def write_and_cut(path):
        write(path)
        path.write_bytes(path.read_bytes()[:left])

    return write_and_cut


def bytes_of(data):
    return lambda path: path.write_bytes(data)


GOOD = np.arange(1000, dtype="<u2") % 100
BAD_TOKEN = GOOD.copy()
BAD_TOKEN[37] = 300
DATA = {
    "floats": ("x.npy", npy(GOOD.astype("f4")), ["x.npy", "'<f4'", "uint16"]),
    "signed": ("x.npy", npy(GOOD.astype("i8")), ["x.npy", "'<i8'", "uint16"]),
    "big-endian": ("x.npy", npy(GOOD.astype(">u2")), ["x.npy", "big-endian", "numpy.save"]),
    "two dimensions": ("x.npy", npy(GOOD.reshape(10, 100)), ["x.npy", "2 dimensions", "1-D"]),
    "a scalar": ("x.npy", npy(np.uint16(7)), ["x.npy", "0 dimensions", "1-D"]),
    "objects": ("x.npy", npy(np.array([None, 1])), ["x.npy", "'|O'", "uint16"]),
    "structured": ("x.npy", npy(np.zeros(9, [("a", "u2")])), ["x.npy", "structured"]),
    "truncated": ("x.npy", cut(npy(GOOD), 1128), ["x.npy", "truncated", "1000 tokens", "500"]),
    "truncated header": ("x.npy", cut(npy(GOOD), 60), ["x.npy", "header claims"]),
    "only the magic": ("x.npy", cut(npy(GOOD), 7), ["x.npy", "cut off"]),
    "no magic": ("x.npy", bytes_of(b"tokens"), ["x.npy", "no .npy file", "numpy.save"]),
    "empty": ("x.npy", bytes_of(b""), ["x.npy", "empty"]),
    "version 9": ("x.npy", npy_text("{}", version=9), ["x.npy", "version 9.0", "1.0 to 3.0"]),
    "lying shape": (
        "x.npy",
        npy_text("{'descr': '<u2', 'fortran_order': False, 'shape': (4611686018427387904,), }", b"\0" * 64),
        ["x.npy", "truncated", "4611686018427387904"],
    ),
    "code in the header": ("x.npy", npy_text("__import__('os')"), ["x.npy", "header", "numpy.save"]),
    "too short": ("x.npy", npy(GOOD[:30]), ["x.npy", "30 tokens", "seq_length + 1 = 33", "at most 29"]),
    "one token": ("x.npy", npy(GOOD[:1]), ["x.npy", "1 tokens", "give more text"]),
    "beyond the vocabulary": ("x.npy", npy(BAD_TOKEN), ["x.npy, token 37", "300", "vocabulary of 256"]),
    "beyond any vocabulary": ("x.npy", npy(np.full(100, 2**32 - 1, "<u4")), ["x.npy, token 0", "4294967295"]),
    "a folder in its place": ("x.npy", lambda path: path.mkdir(), ["x.npy", "holds no file of text"]),
    "a pipe": ("x.npy", os.mkfifo, ["x.npy", "not a regular file"]),
    "a dangling link": ("x.npy", lambda path: path.symlink_to("nowhere"), ["x.npy", "does not exist"]),
    "another kind": ("x.csv", bytes_of(b"1,2"), ["x.csv", "no kind that is read", ".parquet"]),
    "parquet": ("x.parquet", bytes_of(b"PAR1"), ["x.parquet", "text needs a tokenizer"]),
    "text without a tokenizer": ("x.txt", bytes_of(b"text " * 100), ["x.txt", 'set dataset.tokenizer to "bytes"']),
    "empty text": ("x.txt", bytes_of(b""), ["x.txt", "tokenizer"]),
}


@pytest.mark.parametrize("name, write, says", DATA.values(), ids=DATA.keys())
def test_wrong_data(fails, tmp_path, tiny, name, write, says):
    write(tmp_path / name)
    config = tiny(dataset={"name": name}, model={"vocab_size": 256})
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = fails(["train", "--config", "config.json"], 2, says)
    assert "Step: 2" not in ended.out
    if "beyond" not in says[0] and "token " not in says[0]:
        assert sorted(os.listdir(tmp_path)) == sorted(["config.json", name])


def test_empty_and_unknown_tokenizers_of_text(fails, tmp_path, tiny):
    (tmp_path / "x.txt").write_bytes(b"")
    config = tiny(dataset={"name": "x.txt", "tokenizer": "bytes"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails(["train", "--config", "config.json"], 2, ["x.txt", "empty"])
    (tmp_path / "x.txt").write_bytes(b"x" * 99)
    fails(["train", "--config", "config.json", "--dataset.tokenizer", "gpt2"], 2, ['gpt2', 'use "bytes"'])


# ---------------------------------------------------------------------------------------- a model's folder (init_from)


def change_json(name, change):
    def apply(folder):
        contents = json.loads((folder / name).read_text())
        change(contents)
        (folder / name).write_text(json.dumps(contents))

    return apply


def change_header(change):
    """Rewrites the header of model.safetensors, the data left as they are."""

    def apply(folder):
        path = folder / "model.safetensors"
        contents = path.read_bytes()
        size = struct.unpack("<Q", contents[:8])[0]
        header = json.loads(contents[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + contents[8 + size :])

    return apply


def change_bytes(change):
    def apply(folder):
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def set_key(key, value):
    return change_json("config.json", lambda contents: contents.update({key: value}))


NORM = "model.norm.weight"
MODELS = {
    "another model_type": (set_key("model_type", "gpt2"), ["config.json", 'model_type is "gpt2"', '"llama"']),
    "no model_type": (change_json("config.json", lambda c: c.pop("model_type")), ["config.json", "model_type"]),
    "odd head_dim": (set_key("head_dim", 7), ["config.json", "head_dim 7", "even"]),
    "no hidden_size": (change_json("config.json", lambda c: c.pop("hidden_size")), ["config.json", "hidden_size"]),
    "hidden_size a string": (set_key("hidden_size", "32"), ["config.json", "hidden_size"]),
    "negative layers": (set_key("num_hidden_layers", -2), ["config.json", "num_hidden_layers -2", "from 1 to"]),
    "no heads": (set_key("num_attention_heads", 0), ["config.json", "num_attention_heads 0", "from 1 to"]),
    "huge layers": (set_key("num_hidden_layers", 10**12), ["config.json", "num_hidden_layers", "from 1 to"]),
    "another activation": (set_key("hidden_act", "gelu"), ["config.json", 'hidden_act "gelu"', '"silu"']),
    "another rope": (set_key("rope_scaling", {"rope_type": "yarn", "factor": 2}), ["config.json", "yarn"]),
    "config not JSON": (lambda f: (f / "config.json").write_text("{\n x"), ["config.json:2", "not JSON"]),
    "config an array": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "not a JSON object"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no config.json", "Hugging Face folder"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model", "safetensors"]),
    "empty weights": (change_bytes(lambda b: b""), ["model.safetensors", "0 bytes"]),
    "truncated": (change_bytes(lambda b: b[:-100]), ["model.safetensors", "ends at byte", "export it again"]),
    "more than it says": (change_bytes(lambda b: b + b"x" * 8), ["model.safetensors", "8 bytes follow"]),
    "lying header length": (
        change_bytes(lambda b: struct.pack("<Q", 2**63) + b[8:]),
        ["model.safetensors", "header is 9223372036854775808 bytes", "again"],
    ),
    "header beyond the file": (
        change_bytes(lambda b: struct.pack("<Q", 90_000_000) + b[8:]),
        ["model.safetensors", "90000000 bytes long", "again"],
    ),
    "header not JSON": (change_bytes(lambda b: b[:8] + b"x" + b[9:]), ["model.safetensors", "header", "again"]),
    "offsets beyond": (
        change_header(lambda h: h[NORM].update(data_offsets=[0, 2**62])),
        ["model.safetensors", NORM, "ends at byte"],
    ),
    "offsets backwards": (
        change_header(lambda h: h[NORM].update(data_offsets=[128, 0])),
        ["model.safetensors", NORM, "data_offsets"],
    ),
    "overlapping": (
        change_header(lambda h: h[NORM].update(data_offsets=[64, 192])),
        ["model.safetensors", "byte"],
    ),
    "another shape": (change_header(lambda h: h[NORM].update(shape=[2, 16])), [NORM, "[2, 16]", "needs [32]"]),
    "shape that overflows": (
        change_header(lambda h: h[NORM].update(shape=[2**32, 2**32])),
        ["model.safetensors", NORM, "does not fill"],
    ),
    "unknown dtype": (change_header(lambda h: h[NORM].update(dtype="F31")), ["model.safetensors", NORM, "F31"]),
    "whole numbers": (change_header(lambda h: h[NORM].update(dtype="I32")), ["model.safetensors", NORM, "I32", "BF16"]),
    "another name": (
        change_header(lambda h: h.update({"model.norm.wait": h.pop(NORM)})),
        ["lacks tensors", NORM, "another architecture"],
    ),
    "more layers than weights": (set_key("num_hidden_layers", 3), ["lacks tensors", "model.layers.2", "architecture"]),
}


@pytest.fixture
def model(checkpoint, tmp_path, start):
    folder = tmp_path / "model"
    assert start(["export", "--checkpoint", checkpoint, "--out", folder]).end(20).code == 0
    return folder


@pytest.mark.parametrize("spoil, says", MODELS.values(), ids=MODELS.keys())
def test_wrong_model(fails, tmp_path, tiny, model, spoil, says):
    spoil(model)
    config = tiny()
    config["model"] = {"init_from": "model", "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails(["train", "--config", "config.json"], 2, says)
    fails(["generate", "--model", "model"], 2, says if "no config" not in says[0] and "model" != says[0] else ["model"])
    fails(["export", "--checkpoint", "model", "--out", "copy"], 2, [])
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model"]


# -------------------------------------------------------------------------------------- what the machine does not give


def test_save_dir_that_is_a_file(fails, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    (tmp_path / "out").write_text("mine")
    fails(["train", "--config", "config.json"], 2, ["out", "checkpoint.save_dir"])
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_save_dir_that_is_not_ours(fails, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    (tmp_path / "out").mkdir(mode=0o555)
    fails(["train", "--config", "config.json"], 2, ["out/metrics.jsonl", "writable"])


def size_limit(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_no_room_for_the_metrics(fails, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny(training={"total_train_steps": 50}, checkpoint={"save_frequency": 1000})))
    ended = fails(
        ["train", "--config", "config.json"], 1, ["out/metrics.jsonl", "step", "disk full"], limit=size_limit(1024)
    )
    assert "Step: 50" not in ended.out


def test_no_room_for_the_checkpoint(fails, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    fails(["train", "--config", "config.json"], 1, ["model-0000"], limit=size_limit(20_000))
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert left == [tmp_path / "out" / "metrics.jsonl"], "a checkpoint is complete or absent"


def test_no_room_for_an_export_and_a_config(fails, tmp_path, checkpoint):
    fails(["export", "--checkpoint", checkpoint, "--out", "copy"], 1, ["copy"], limit=size_limit(20_000))
    fails(["create-config", "--out_dir", "experiments"], 1, ["config.json", "disk full"], limit=size_limit(1000))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_full_disk(fails, tmp_path, tiny):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        config = tiny(checkpoint={"save_dir": str(disk / "out")})
        (tmp_path / "config.json").write_text(json.dumps(config))
        fails(["train", "--config", "config.json"], 1, ["disk/out/2.partial", "No space left"])
        assert not list(disk.rglob("*.safetensors*"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_loss_that_is_not_a_number(fails, tmp_path, tiny):
    training = {"learning_rate": 1000, "total_train_steps": 500}
    (tmp_path / "config.json").write_text(json.dumps(tiny(training=training)))
    fails(["train", "--config", "config.json"], 1, ["error: step ", "NaN", "learning_rate"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite([row["loss"], row["grad_norm"]]).all() for row in rows)


# ----------------------------------------------------------------------------------------- several ranks, and launchers


def torchrun_like(rank=0, world_size=2, **more):
    variables = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29511} | more
    return {name: str(value) for name, value in variables.items() if value is not None}


ENVIRONMENTS = {
    "rank no number": (torchrun_like(rank="abc"), ["RANK", '"abc"', "number from 0"]),
    "negative rank": (torchrun_like(rank=-1), ["RANK", '"-1"', "number from 0"]),
    "rank beyond the world": (torchrun_like(rank=2), ["RANK=2", "must be below WORLD_SIZE=2"]),
    "no world": (torchrun_like(world_size=0), ["WORLD_SIZE", '"0"', "number from 1"]),
    "port no number": (torchrun_like(MASTER_PORT="http"), ["MASTER_PORT", '"http"', "number from 1 to 65535"]),
    "port too large": (torchrun_like(MASTER_PORT=70000), ["MASTER_PORT", '"70000"', "65535"]),
    "no address": (torchrun_like(MASTER_ADDR=None), ["MASTER_ADDR", "set it"]),
    "no port": (torchrun_like(MASTER_PORT=None), ["MASTER_PORT", "set it"]),
    "another world": (torchrun_like(world_size=3), ["3 ranks were started", "is 2", "start 2"]),
    "slurm's world": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, ["4 ranks were started", "is 2"]),
    "mpirun's world": ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, ["4 ranks were started", "is 2"]),
    "threads of the environment": ({"OMP_NUM_THREADS": "-3"}, ["OMP_NUM_THREADS", '"-3"', "whole number"]),
}


@pytest.mark.parametrize("environment, says", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_wrong_environment(fails, tmp_path, tiny, environment, says):
    (tmp_path / "config.json").write_text(json.dumps(tiny(distributed={"dp_size": 2, "use_cpu": True})))
    fails(["train", "--config", "config.json"], 2, says, environment=environment)
    assert os.listdir(tmp_path) == ["config.json"]


def test_port_in_use(fails, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny(distributed={"dp_size": 2, "use_cpu": True})))
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = torchrun_like(MASTER_PORT=port)
        fails(["train", "--config", "config.json"], 1, [str(port), "in use", "MASTER_PORT"], environment=environment)
    assert os.listdir(tmp_path) == ["config.json"]


def test_nobody_at_the_store(fails, tmp_path, tiny):
    distributed = {"dp_size": 2, "use_cpu": True, "timeout_seconds": 1}
    (tmp_path / "config.json").write_text(json.dumps(tiny(distributed=distributed)))
    says = ["rank 1 cannot reach", "MASTER_ADDR"]
    fails(["train", "--config", "config.json"], 1, says, environment=torchrun_like(rank=1))


def spoiled_data(folder, tiny):
    np.save(folder / "x.npy", BAD_TOKEN)
    return tiny(dataset={"name": "x.npy"}, model={"vocab_size": 256}), ["x.npy, token 37", "vocabulary of 256"], 2, None


def missing_data(folder, tiny):
    return tiny(dataset={"name": "none.txt"}), ["none.txt", "does not exist"], 2, None


def occupied_save_dir(folder, tiny):
    (folder / "out").write_text("")
    return tiny(), ["out", "checkpoint.save_dir"], 2, None


def full_metrics(folder, tiny):
    return tiny(training={"total_train_steps": 50}, checkpoint={"save_frequency": 1000}), ["metrics.jsonl", "disk full"], 1, size_limit(1024)


def full_checkpoint(folder, tiny):
    return tiny(), ["model-0000"], 1, size_limit(20_000)


def not_a_number(folder, tiny):
    return tiny(training={"learning_rate": 1000, "total_train_steps": 500}), ["step ", "NaN"], 1, None


@pytest.mark.parametrize("ranks", ["processes", "threads"])
@pytest.mark.parametrize(
    "spoil", [spoiled_data, missing_data, occupied_save_dir, full_metrics, full_checkpoint, not_a_number]
)
def test_two_ranks_say_it_once(fails, tmp_path, tiny, spoil, ranks):
    config, says, code, limit = spoil(tmp_path, tiny)
    config["distributed"] = {"dp_size": 2, "use_cpu": True, "ranks": ranks, "timeout_seconds": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = fails(["train", "--config", "config.json"], code, says, within=10, limit=limit)
    assert len(ended.complaint) == 1, ended.err


def test_two_ranks_of_torchrun_say_it_once(start, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny(dataset={"name": "none.txt"}, distributed={"dp_size": 2})))
    ranks = [
        start(["train", "--config", "config.json"], environment=torchrun_like(rank, LOCAL_RANK=rank)).end(5)
        for rank in range(2)
    ]
    assert [rank.code for rank in ranks] == [2, 2]
    assert [len(rank.complaint) for rank in ranks] == [1, 0], ranks
