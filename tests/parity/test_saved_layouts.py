"""What a run leaves is the same in every layout: one Hugging Face folder, and the same validation losses.

`transformers` opens that folder as it is, and a run that begins from it begins with the loss that `transformers` computes.
"""

import json

import pytest
import torch
from runs import BINARY, start, write_tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

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


def as_transformers_has_it(folder, rows):
    """The logits of a folder's model on rows of seq_length + 1 tokens, and the loss on their last seq_length."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(rows[:, :-1]).logits
    return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()


def first_loss(folder, data, model):
    """Of a run on `data` that begins from the model."""
    folder.mkdir()
    flags = f"--seq_len 32 --dtype float32 --use_cpu --mbs 8 --total_train_steps 1 --dataset {data} --save_dir ckpt"
    start([BINARY, "train", *flags.split(), "--save_frequency", "2", "--model_name", model, "--model.init_from", model], folder)
    return json.loads((folder / "ckpt" / "metrics.jsonl").read_text())["loss"]


@pytest.mark.parametrize("tied", ["true", "false"])
def test_every_layout_saves_the_model_that_one_rank_saves(tmp_path, tied):
    tokens = torch.from_numpy(write_tokens(tmp_path, 477, 8 * 32 + 1))
    rows = torch.stack([tokens[32 * i : 32 * i + 33] for i in range(8)])
    lines, one = run(tmp_path / "one", [], tied)
    expected = weights(one)
    logits, loss = as_transformers_has_it(one, rows)
    assert logits.std() > 0.01, "there is something to be wrong about"
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
        assert (as_transformers_has_it(folder, rows)[0] - logits).abs().max() < 1e-4, layout
        began = first_loss(tmp_path / f"{number}-on", tmp_path / "tokens.npy", folder)
        assert began == pytest.approx(loss, rel=1e-5), layout


def test_a_saved_layout_writes(tmp_path):
    _, folder = run(tmp_path / "run", LAYOUTS["tensor and pipeline"], "true")
    text = start([BINARY, "generate", "--checkpoint", folder, "--max_new_tokens", "5", "--seed", "3"], tmp_path)
    assert text.strip()
    assert torch.isfinite(weights(folder)["model.norm.weight"]).all()
