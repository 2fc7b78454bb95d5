"""Our safetensors files and model folders against the packages that everybody uses.

The judges are `safetensors` (the reference implementation of the format) and `transformers`. The C++ side is
tests/parity/safetensors_tool.cpp.
"""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

BUILD = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[2] / "build"))
TOOL = BUILD / "tests" / "safetensors_tool"


def tool(*arguments, code=0):
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def every_kind_of_tensor():
    generator = torch.Generator().manual_seed(1)
    floats = torch.randn(6, 5, generator=generator)
    return {
        "float64": floats.double(),
        "float32": floats,
        "float16": floats.half(),
        "bfloat16": floats.bfloat16(),
        "int64": torch.arange(7),
        "uint8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "float8": floats.to(torch.float8_e4m3fn),
        "complex": torch.complex(floats, floats),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "größe.重み \"quoted\" \n": torch.ones(2, 1, 3),
    }


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bytes(a.contiguous().reshape(-1).view(torch.uint8)) == bytes(
        b.contiguous().reshape(-1).view(torch.uint8)
    )


def test_the_package_reads_what_we_wrote_of_what_it_wrote(tmp_path):
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    tensors = every_kind_of_tensor()
    save_file(tensors, theirs, metadata={"format": "pt", "ключ": "значение"})
    tool("copy", theirs, ours)
    read = load_file(ours)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(read[name], tensor), name
    with safetensors.safe_open(ours, "pt") as file:
        assert file.metadata() == {"format": "pt", "ключ": "значение"}
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


HOSTILE = {
    "empty": b"",
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "not JSON": with_header(b"{oops}", b""),
    "a list": with_header([], b""),
    "unknown dtype": with_header({"a": entry("F33", [2], 0, 8)}, bytes(8)),
    "too short": with_header({"a": entry("F32", [2], 0, 8)}, bytes(7)),
    "too long": with_header({"a": entry("F32", [2], 0, 8)}, bytes(9)),
    "hole": with_header({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)),
    "overlap": with_header({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "reversed": with_header({"a": entry("F32", [2], 8, 0)}, bytes(8)),
    "shape and bytes differ": with_header({"a": entry("F32", [3], 0, 8)}, bytes(8)),
    "overflow": with_header({"a": entry("F32", [2**62, 4], 0, 0)}, b""),
    "negative": with_header({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
    "metadata not of strings": with_header({"__metadata__": {"a": 1}}, b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_package_refuses_we_refuse(name, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(Exception):
        load_file(path)
    message = tool("copy", path, tmp_path / "out.safetensors", code=2)
    assert str(path) in message and message.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


SHAPES = {
    "grouped": dict(num_key_value_heads=2),
    "one key/value head, tied": dict(num_key_value_heads=1, tie_word_embeddings=True),
    "biases": dict(attention_bias=True, mlp_bias=True),
    "head_dim": dict(head_dim=24),
    "llama3": dict(
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=1024,
        ),
    ),
}


def small_model(shape, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101, hidden_size=72, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4,
        bos_token_id=5, eos_token_id=7, **SHAPES[shape],
    )
    model = LlamaForCausalLM(config).to(dtype)
    with torch.no_grad():  # norms of 1 and biases of 0 would hide a tensor in another's place
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(60).reshape(2, 30)).logits


def spelled_as_transformers_4(config):
    """The config.json that transformers 4 wrote, with RoPE in two top-level keys."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype", "float32")
    return config


@pytest.mark.parametrize("spelling", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize("shape", SHAPES)
def test_config_round_trip(shape, spelling, tmp_path):
    model = small_model(shape)
    model.config.save_pretrained(tmp_path)
    contents = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in contents, "the judge is transformers 5"
    if spelling == "transformers 4":
        (tmp_path / "config.json").write_text(json.dumps(spelled_as_transformers_4(contents)))
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "config.json").write_text(tool("config", tmp_path / "config.json", "bfloat16"))
    read = AutoConfig.from_pretrained(ours)
    assert read.dtype == torch.bfloat16
    expected = model.config
    for key in (
        "architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps rope_parameters "
        "initializer_range tie_word_embeddings attention_bias mlp_bias bos_token_id eos_token_id"
    ).split():
        ours_value, theirs = getattr(read, key), getattr(expected, key)
        assert ours_value == theirs or key == "architectures", (key, ours_value, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_goes_in_and_out(shape, tmp_path):
    model = small_model(shape)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tool("load", folder)  # through our Parameters, and out in several files
    saved = tmp_path / "model.saved"
    assert len(list(saved.glob("model-*-of-*.safetensors"))) > 1
    again = LlamaForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    assert torch.equal(logits(again), logits(model))
    if model.config.tie_word_embeddings:
        index = json.loads((saved / "model.safetensors.index.json").read_text())
        assert "lm_head.weight" not in index["weight_map"]


def test_sharded_folders_of_transformers_are_read(tmp_path):
    model = small_model("grouped")
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    tool("load", tmp_path / "model")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "model.saved", dtype=torch.float32).eval()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_copies_convert_as_torch_does(dtype, tmp_path):
    model = small_model("grouped", dtype)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    for wanted in ("same", "float32", "bfloat16"):
        out = tmp_path / wanted
        tool("model", tmp_path / "model", out, wanted)
        read = LlamaForCausalLM.from_pretrained(out, dtype="auto")
        expected = dtype if wanted == "same" else getattr(torch, wanted)
        assert read.dtype == expected
        for name, tensor in model.state_dict().items():
            assert same_bits(read.state_dict()[name], tensor.to(expected)), name
        assert (out / "tokenizer.json").exists()


def test_a_folder_of_another_shape_is_refused(tmp_path):
    model = small_model("grouped")
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    contents = json.loads(path.read_text())
    path.write_text(json.dumps(contents | {"intermediate_size": 101}))
    message = tool("load", tmp_path / "model", code=2)
    assert "down_proj" in message and "[72, 100]" in message and "[72, 101]" in message
    path.write_text(json.dumps(contents | {"num_hidden_layers": 2}))
    assert "model.layers.2" in tool("load", tmp_path / "model", code=2)
    path.write_text(json.dumps(contents | {"num_hidden_layers": 4}))
    assert "model.layers.3" in tool("load", tmp_path / "model", code=2)
    path.write_text(json.dumps(contents | {"attention_bias": True}))
    assert "k_proj.bias" in tool("load", tmp_path / "model", code=2)


BINARY = Path(os.environ.get("PICOTRON_BINARY", BUILD / "picotron"))


def export(*arguments):
    return subprocess.run([BINARY, "export", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_export_takes_the_newest_step_and_never_overwrites(tmp_path):
    old, new = small_model("grouped"), small_model("llama3")
    old.save_pretrained(tmp_path / "ckpt" / "9" / "model")
    new.save_pretrained(tmp_path / "ckpt" / "10" / "model")
    out = tmp_path / "out"
    done = export("--checkpoint", tmp_path / "ckpt", "--out", out)
    assert done.returncode == 0, done.stderr
    read = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert torch.equal(logits(read), logits(new))
    again = export("--checkpoint", tmp_path / "ckpt" / "9", "--out", out)
    assert again.returncode == 2 and str(out) in again.stdout + again.stderr
    half = export("--checkpoint", tmp_path / "ckpt" / "9", "--out", tmp_path / "half", "--dtype", "bfloat16")
    assert half.returncode == 0, half.stderr
    assert LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16
    assert export("--checkpoint", tmp_path / "nowhere", "--out", tmp_path / "x").returncode == 2
