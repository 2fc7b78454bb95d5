"""What a run leaves is the same in every layout: one Hugging Face folder, and the same validation losses."""

import json

import pytest
import torch
from runs import BINARY, start
from safetensors.torch import load_file

LAYOUTS = {
    "tensor and pipeline": ["--tp", "2", "--pp", "2"],
    "sequence parallel, context": ["--tp", "2", "--cp", "2", "--sequence_parallel"],
    "interleaved, replicas": ["--pp", "2", "--dp", "2", "--pp_engine", "interleaved", "--pp_chunks", "2"],
    "more ranks than key/value heads": ["--tp", "4", "--pp", "2", "--pp_engine", "zb-h1"],
}
MODEL = "--hidden_size 32 --intermediate_size 50 --num_hidden_layers 5 --num_attention_heads 4 --num_key_value_heads 2"
COMMON = (
    f"{MODEL} --vocab_size 477 --dtype float32 --seq_len 32 --use_cpu --ranks threads --training.total_train_steps 4 "
    "--training.eval_interval 2 --training.eval_steps 2 --global_batch_size 8 --mbs 1 --shuffle"
).split()


def weights(folder):
    """All tensors of a model folder, whatever files they are in."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def run(folder, layout, tied):
    folder.mkdir()
    flags = [*COMMON, *layout, "--tie_word_embeddings", tied, "--save_dir", str(folder / "ckpt"), "--save_frequency", "4"]
    start([BINARY, "train", *flags], folder)
    lines = [json.loads(line) for line in (folder / "ckpt" / "metrics.jsonl").read_text().splitlines()]
    return lines, folder / "ckpt" / "4" / "model"


@pytest.mark.parametrize("tied", ["true", "false"])
def test_every_layout_saves_the_model_that_one_rank_saves(tmp_path, tied):
    lines, one = run(tmp_path / "one", [], tied)
    expected = weights(one)
    validation = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(validation) == 2
    for number, layout in enumerate(LAYOUTS.values()):
        lines, folder = run(tmp_path / str(number), layout, tied)
        seen = [line["validation_loss"] for line in lines if "validation_loss" in line]
        assert seen == pytest.approx(validation, rel=1e-5), layout
        saved = weights(folder)
        assert saved.keys() == expected.keys()
        for name, tensor in expected.items():
            distance = (saved[name] - tensor).abs().max() / tensor.abs().max()
            assert distance < 1e-4, f"{layout}: {name} is {distance:.1e} from one rank's"
        assert json.loads((folder / "config.json").read_text()) == json.loads((one / "config.json").read_text())


def test_a_saved_layout_writes(tmp_path):
    _, folder = run(tmp_path / "run", LAYOUTS["tensor and pipeline"], "true")
    text = start([BINARY, "generate", "--checkpoint", folder, "--max_new_tokens", "5", "--seed", "3"], tmp_path)
    assert text.strip()
    assert torch.isfinite(weights(folder)["model.norm.weight"]).all()
