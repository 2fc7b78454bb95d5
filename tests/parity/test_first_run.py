"""What a newcomer sees: `./run train` learns the stories to near their floor and never below it, and a person's
own text is learned as well as nanoGPT learns it with the same budget."""

import json
import pathlib
import re
import subprocess

import pytest
import runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
NANOGPT_LOSS = 1.886  # nats per character: 4 layers, 4 heads, width 128, 64 x 12 tokens, 2,000 steps


def picotron(*arguments):
    return subprocess.run([runs.BINARY, *map(str, arguments)], capture_output=True, text=True, check=True,
                          timeout=900, cwd=ROOT).stdout


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_stories_are_learned_to_near_their_floor_and_told(tmp_path):
    output = picotron("train", "--config", "configs/stories.json", "--checkpoint.save_dir", tmp_path)
    steps = metrics_of(tmp_path)
    floor = float(re.search(r"best possible +([0-9.]+)", output).group(1))
    last = [step["loss"] for step in steps[-10:]]
    assert sum(last) / len(last) < steps[0]["loss"] / 2
    assert 0.99 * floor < sum(last) / len(last) < 1.10 * floor
    assert 0.99 * floor < steps[-1]["validation_loss"] < 1.10 * floor
    assert output.split("has just written:")[1].count("•") == 3

    text = picotron("generate", "--checkpoint", tmp_path, "--prompt", "Once upon a time", "--seed", 7)
    assert text.startswith("Once upon a time") and len(text.split()) > 20
    assert text == picotron("generate", "--checkpoint", tmp_path, "--prompt", "Once upon a time", "--seed", 7)


def test_a_large_model_is_not_made_to_write(tmp_path):
    flags = "--model_name HuggingFaceTB/SmolLM-135M --num_hidden_layers 1 --mbs 1 --seq_len 8 --total_train_steps 1 --save_frequency 1"
    output = picotron("train", *flags.split(), "--use_cpu", "--save_dir", tmp_path)
    assert "has just written" not in output
    assert f"picotron generate --checkpoint {tmp_path}/1 --prompt" in output


@pytest.mark.slow
@pytest.mark.skipif(not TEXT.exists(), reason=f"{TEXT.name} is not beside the repository")
def test_a_text_of_ones_own_is_learned_better_than_by_nanogpt(tmp_path):
    picotron("train", "--config", "configs/text.json", "--dataset.name", TEXT, "--checkpoint.save_dir", tmp_path,
             "--training.eval_interval", 2000, "--training.eval_steps", 1000)
    assert metrics_of(tmp_path)[-1]["validation_loss"] < NANOGPT_LOSS
