"""A checkpoint read by other programs: the snippet of docs/checkpoints.md as it stands there, and the package safetensors."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("PICOTRON_BINARY", ROOT / "build" / "picotron")).absolute()
FLAGS = (
    "--hidden_size 32 --intermediate_size 50 --num_hidden_layers 2 --num_attention_heads 4 --num_key_value_heads 2 "
    "--vocab_size 477 --seq_len 32 --use_cpu --ranks threads --dp 2 --mbs 1 --tie_word_embeddings false "
    "--training.total_train_steps 2 --save_frequency 2"
).split()
KINDS = {
    "BFloat16": {"model": "BF16", "optimizer/master": "F32", "optimizer/exp_avg": "F32", "optimizer/exp_avg_sq": "F32"},
    "Float": {"model": "F32", "optimizer/exp_avg": "F32", "optimizer/exp_avg_sq": "F32"},
    "Double": {"model": "F32", "optimizer/master": "F64", "optimizer/exp_avg": "F64", "optimizer/exp_avg_sq": "F64"},
}


@pytest.fixture(scope="module", params=["bfloat16", "float32", "float64"])
def trained(request, tmp_path_factory):
    """What it computed in, as state.json has it (a CPU that is slow in bfloat16 takes float32), and the checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    line = [BINARY, "train", *FLAGS, "--dtype", request.param, "--save_dir", folder / "run"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    checkpoint = folder / "run" / "2"
    return json.loads((checkpoint / "state.json").read_text())["dtype"], checkpoint


def tensors_of(folder, framework="pt"):
    """{name: (file, dtype)} of a folder, by reading every header."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework) as file:
            assert file.metadata() == {"format": "pt"}
            names = list(file.keys())
            assert names == sorted(names)
            found |= {name: (path.name, file.get_slice(name).get_dtype()) for name in names}
    return found


def test_the_snippet_reads_the_masters(trained):
    dtype, checkpoint = trained
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    namespace = {}
    exec(re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE).group(1), namespace)
    weights_of = tensors_of(checkpoint / "model")
    assert len(weights_of) == 2 * 9 + 3
    for name, (file, _) in weights_of.items():
        master = torch.from_numpy(namespace["read_master"](checkpoint, name))
        assert master.dtype == (torch.float64 if dtype == "Double" else torch.float32)
        with safe_open(checkpoint / "model" / file, "pt") as weights:
            stored = weights.get_tensor(name)
        assert torch.equal(master.to(stored.dtype), stored), name


def test_the_folder_is_as_the_page_says(trained):
    dtype, checkpoint = trained
    folders = {path.parent.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*.safetensors")}
    assert folders == KINDS[dtype].keys()
    state = json.loads((checkpoint / "state.json").read_text())
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    assert state["files"].keys() == files.keys() - {"state.json"}
    assert all(state["files"][name]["bytes"] == files[name].stat().st_size for name in state["files"])
    expected = [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)]  # embedding, two layers, norm, head
    for folder, kind in KINDS[dtype].items():
        assert sorted(path.name for path in (checkpoint / folder).glob("*.safetensors")) == expected
        found = tensors_of(checkpoint / folder)
        assert {of_kind for _, of_kind in found.values()} == {kind}
        index = json.loads((checkpoint / folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: file for name, (file, _) in found.items()}
    assert (checkpoint.parent / "latest").read_text() == "2\n"


def test_every_key_of_the_state_is_on_the_page(trained):
    _, checkpoint = trained
    state = json.loads((checkpoint / "state.json").read_text())
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    keys = [f"{k}.{sub}" for k in ("train", "data", "loss") for sub in state.pop(k)] + list(state)
    assert [key for key in keys if f"`{key}`" not in page] == []
