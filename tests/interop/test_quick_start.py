"""The whole way, as a person goes it: the reference's quick start, with a model and a data set of a hub (on this machine,
tests/hub_server.py) and a token; and what README shows, command by command."""

import importlib.util
import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("PICOTRON_BINARY", ROOT / "build" / "picotron")).absolute()
WORDS = "once upon a time there was little girl who had red ball and dog ran to the park they were happy . ,".split()

specification = importlib.util.spec_from_file_location("hub_server", ROOT / "tests" / "hub_server.py")
hub_server = sys.modules.setdefault("hub_server", importlib.util.module_from_spec(specification))
specification.loader.exec_module(hub_server)


def stories(count, seed):
    chance = random.Random(seed)
    return [" ".join(chance.choice(WORDS) for _ in range(chance.randrange(20, 120))) for _ in range(count)]


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(stories(100, 0), trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


@pytest.fixture
def hub(tmp_path):
    root = tmp_path / "hub"
    for model in ["HuggingFaceTB/SmolLM-1.7B", "openai-community/gpt2"]:
        write_tokenizer(root / "models" / model)
    data = root / "datasets" / "roneneldan/TinyStories" / "data"
    data.mkdir(parents=True)
    for i in range(2):
        pq.write_table(pa.table({"text": stories(300, i + 1)}), data / f"train-0000{i}-of-00002-abc.parquet")
    pq.write_table(pa.table({"text": stories(30, 9)}), data / "validation-00000-of-00001-abc.parquet")
    server = hub_server.Hub(root)
    yield server
    server.close()


@pytest.fixture
def picotron(hub, tmp_path):
    """picotron(arguments, VARIABLE=…) → what it printed."""

    def run(arguments, cwd=tmp_path, **variables):
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        environment = keep | {"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "OMP_NUM_THREADS": "1"} | variables
        ended = subprocess.run([BINARY, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_quick_start_of_the_reference(picotron, hub, tmp_path):
    hub.trouble.gated = True
    # --num_hidden_layers 15 and the model's width, cut to fit a test.
    flags = "--out_dir tmp --model_name HuggingFaceTB/SmolLM-1.7B --num_hidden_layers 2 --hidden_size 64 --intermediate_size 96 "
    flags += "--num_attention_heads 4 --num_key_value_heads 4 --grad_acc_steps 2 --mbs 2 --seq_len 64 --total_train_steps 4 --use_cpu"
    data = ["--dataset", "roneneldan/TinyStories", "--num_samples", "500", "--ranks", "threads"]
    layout = ["--dp", "2", "--pp", "2"]
    picotron(["create-config", *flags.split(), *data, *layout, "--exp_name", "quick", "--hf_token", "hf_secret"])
    assert not hub.requests, "the model is built in"
    first = picotron(["train", "--config", "tmp/quick/config.json"], HF_TOKEN="hf_secret")
    assert "Downloaded model HuggingFaceTB/SmolLM-1.7B" in first and "Downloaded data set roneneldan/TinyStories" in first
    assert "roneneldan/TinyStories: 500 documents" in first

    asked = len(hub.requests) + len(hub.storage_requests)
    before = losses(tmp_path / "tmp" / "quick" / "ckpt")
    assert len(before) == 4 and before[-1] < before[0]
    again = ["train", "--config", "tmp/quick/config.json", "--save_dir"]
    second = picotron([*again, "second"], HF_TOKEN="hf_secret")
    assert len(hub.requests) + len(hub.storage_requests) == asked and "Downloaded" not in second
    picotron([*again, "offline"], HF_HUB_OFFLINE="1")
    for folder in ["second", "offline"]:
        assert losses(tmp_path / folder) == before

    # The same from a folder.
    local = ["--dataset", hub.root / "datasets/roneneldan/TinyStories/data", "--tokenizer", hub.root / "models/HuggingFaceTB/SmolLM-1.7B"]
    files = sorted((hub.root / "datasets/roneneldan/TinyStories/data").glob("validation*"))
    files[0].rename(tmp_path / "validation.parquet")
    picotron([*again, "local", *local], HF_HUB_OFFLINE="1")
    assert losses(tmp_path / "local") == before

    for folder in ["tmp", "second", "home"]:
        for path in (tmp_path / folder).rglob("*"):
            assert not path.is_file() or b"hf_secret" not in path.read_bytes(), path


def shown_in_readme():
    """[(command, the lines shown under it)…] of README's chapter."""
    chapter = re.search(r"^## The whole way\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE).group(1)
    block = [line[4:] for line in chapter.splitlines() if line.startswith("    ")]
    steps = []
    for line in block:
        if line.startswith("$ "):
            steps.append([line[2:], []])
        elif steps[-1][0].endswith("\\"):
            steps[-1][0] = steps[-1][0][:-1] + line.strip()
        else:
            steps[-1][1].append(line)
    return steps


def shape(line):
    """A line without its numbers."""
    return re.sub(r"[\d.,]+(e[-+]\d+)?[KMBG]?", "N", line).strip()


def test_readme_shows_what_a_person_sees(picotron, tmp_path):
    steps = shown_in_readme()
    assert [shlex.split(command)[:2][-1] for command, _ in steps[1:]] == ["prepare-data", "train", "evaluate", "generate", "export"]
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    subprocess.run(steps[0][0], shell=True, cwd=tmp_path, check=True)
    for command, shown in steps[1:]:
        program, *arguments = shlex.split(command)
        assert program == "build/picotron"
        printed = [shape(line) for line in picotron(arguments).splitlines()]
        if arguments[0] == "generate":
            assert len(printed) >= 1 and shown
            continue
        for line in shown:
            if line.strip() != "…":
                assert shape(line) in printed, (command, line, printed)
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {"config.json", "tokenizer.json"}
