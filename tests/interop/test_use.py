"""What a trained model is used for, against PyTorch: `generate` writes what `transformers` writes, and `evaluate` measures
the loss that it computes."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BINARY = Path(os.environ.get("PICOTRON_BINARY", Path(__file__).parents[2] / "build" / "picotron")).absolute()
SHAPES = {
    "grouped": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama3": {
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
}  # fmt: skip


@pytest.fixture(params=SHAPES)
def model(request, tmp_path):
    """A model with a vocabulary of bytes, large enough weights to be sure of each token; saved in `model`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=None, initializer_range=0.3, **SHAPES[request.param],
    )  # fmt: skip
    built = LlamaForCausalLM(config).eval()
    built.save_pretrained(tmp_path / "model")
    return built


def picotron(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([BINARY, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_generate_writes_what_transformers_writes(model, tmp_path):
    prompt = "Shall I compare thee"
    ids = torch.tensor([list(prompt.encode())])
    with torch.no_grad():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False)[0].tolist()
    assert len(expected) == len(prompt) + 200 and len(set(expected)) > 20, "there is something to be wrong about"
    flags = ["--model", "model", "--tokenizer", "bytes", "--prompt", prompt, "--max_new_tokens", 200, "--temperature", 0]
    text = bytes(expected).decode(errors="replace") + "\n"
    assert picotron(tmp_path, "generate", *flags) == text, "as it comes"
    assert picotron(tmp_path, "generate", *flags, "--num_samples", 2) == text + text, "at once"


LAYOUTS = ["", "--dp 3 --mbs 2", "--tp 2 --sequence_parallel", "--cp 2 --mbs 3", "--pp 3", "--dp 2 --tp 2 --pp 2 --cp 2"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluate_measures_what_pytorch_computes(layout, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    rows = 7  # no layout divides them
    text = numpy.random.default_rng(0).integers(97, 123, rows * 32 + 1).astype(numpy.uint8)
    (tmp_path / "text.txt").write_bytes(text.tobytes())
    tokens = torch.from_numpy(text.astype(numpy.int64))
    batch = torch.stack([tokens[32 * i : 32 * i + 33] for i in range(rows)])
    with torch.no_grad():
        logits = model(batch[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item()
    flags = ["--model", "model", "--data", "text.txt", "--tokenizer", "bytes", "--seq_len", 32, "--dtype", "float32"]
    printed = picotron(tmp_path, "evaluate", *flags, "--use_cpu", "--ranks", "threads", "--json", *layout.split())
    seen = json.loads(printed)
    assert (seen["rows"], seen["tokens"], seen["bytes"]) == (rows, rows * 32, rows * 32)
    assert seen["loss"] == pytest.approx(loss, rel=1e-5)
    assert seen["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert seen["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-5)
