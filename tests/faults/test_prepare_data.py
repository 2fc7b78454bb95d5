"""`picotron prepare-data`, and what `train` does by itself with text: the tokens of the `tokenizers` library, each document
followed by what ends one, the same bytes however often it was killed."""

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "the a king queen said to be or not and then she went home 12 345 naïve 日本 🙂 \n\n \r\n".split(" ")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A folder with a small tokenizer.json, whose end of a text is <|endoftext|>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [text_of(random.Random(0), 20000)],
        trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False),
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return folder


def text_of(chance, words):
    return " ".join(chance.choice(WORDS) for _ in range(words))


def write_lines(path, texts, end="\n", last_end=True):
    path.write_bytes((end.join(json.dumps({"text": text}) for text in texts) + end * last_end).encode())


def tokens_in(folder):
    return np.concatenate([np.load(file) for file in sorted(folder.glob("*.npy"))])


def judge_of(tokenizer):
    return Tokenizer.from_file(str(tokenizer / "tokenizer.json"))


def expected_tokens(tokenizer, texts):
    judge = judge_of(tokenizer)
    eos = judge.token_to_id("<|endoftext|>")
    return np.array([i for e in judge.encode_batch(texts, add_special_tokens=False) for i in [*e.ids, eos]])


def prepare(start, tokenizer, *more, within=60):
    ended = start(["prepare-data", "--tokenizer", tokenizer, *more]).end(within)
    assert ended.code == 0, ended.err
    return ended


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_the_tokens_are_those_of_the_library(start, tokenizer, tmp_path):
    chance = random.Random(1)
    texts = ["", "one", *(text_of(chance, chance.randrange(200)) for _ in range(800)), ""]
    (tmp_path / "d").mkdir()
    write_lines(tmp_path / "d" / "b.jsonl", texts[500:], end="\r\n", last_end=False)
    write_lines(tmp_path / "d" / "a.jsonl", texts[:500])
    prepare(start, tokenizer, "--dataset", "d", "--out_dir", "out", "--shard_tokens", 20000)
    assert np.array_equal(tokens_in(tmp_path / "out"), expected_tokens(tokenizer, texts))
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    shards = [name for name in files if name.endswith(".npy")]
    assert len(shards) > 3 and shards == [f"tokens-{i:05}.npy" for i in range(len(shards))]
    assert set(files) - set(shards) == {"index.json", "tokenizer.json"}
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["complete"] and index["documents"] == len(texts) and index["vocab_size"] == judge_of(tokenizer).get_vocab_size()
    assert index["tokens"] == sum(shard["tokens"] for shard in index["shards"])
    for shard in index["shards"]:
        tokens = np.load(tmp_path / "out" / shard["file"])
        assert tokens.dtype == np.uint16 and len(tokens) == shard["tokens"] and tokens[-1] == index["eos"]
        assert (tokens == index["eos"]).sum() == shard["documents"]


def test_the_number_of_threads_and_a_second_time_change_nothing(start, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 300) for i in range(2000)])
    for threads in [1, 2, 5]:
        prepare(start, tokenizer, "--dataset", "a.jsonl", "--out_dir", f"out{threads}", "--num_proc", threads, "--shard_tokens", 100000)
    once = digests(tmp_path / "out1")
    assert digests(tmp_path / "out2") == once and digests(tmp_path / "out5") == once
    again = prepare(start, tokenizer, "--dataset", "a.jsonl", "--out_dir", "out1", "--shard_tokens", 100000)
    assert "all there already" in again.out and digests(tmp_path / "out1") == once


def kill_again_and_again(start, tokenizer, tmp_path, times, seed):
    chance = random.Random(seed)
    write_lines(tmp_path / "a.jsonl", [text_of(chance, chance.randrange(600)) for _ in range(12000)])
    more = ["--dataset", "a.jsonl", "--shard_tokens", 40000]
    begun = time.monotonic()
    prepare(start, tokenizer, *more, "--out_dir", "whole")
    took = time.monotonic() - begun
    killed = 0
    for _ in range(times):
        running = start(["prepare-data", "--tokenizer", tokenizer, *more, "--out_dir", "out"])
        time.sleep(chance.uniform(0, took / 3))
        killed += running.process.poll() is None
        os.killpg(running.process.pid, signal.SIGKILL) if running.process.poll() is None else None
        running.process.wait()
    assert killed >= 3, "it was too quick to be killed"
    prepare(start, tokenizer, *more, "--out_dir", "out")
    left = digests(tmp_path / "out")
    assert left == digests(tmp_path / "whole")


def test_killed_at_any_moment_it_ends_in_the_same_bytes(start, tokenizer, tmp_path):
    kill_again_and_again(start, tokenizer, tmp_path, times=10, seed=1)


@pytest.mark.slow
def test_killed_a_hundred_times(start, tokenizer, tmp_path):
    kill_again_and_again(start, tokenizer, tmp_path, times=100, seed=2)


def test_a_document_of_100_mb(start, tokenizer, tmp_path):
    text = text_of(random.Random(3), 25_000)
    text = text * (100_000_000 // len(text.encode()) + 1)
    (tmp_path / "big.txt").write_text(text)
    assert (tmp_path / "big.txt").stat().st_size > 100_000_000
    prepare(start, tokenizer, "--dataset", "big.txt", "--out_dir", "out", within=120)
    tokens = tokens_in(tmp_path / "out")
    judge = judge_of(tokenizer)
    assert (tokens == judge.token_to_id("<|endoftext|>")).sum() == 1
    with open(tmp_path / "big.txt", newline="") as file:
        assert judge.decode(tokens[:100_000].tolist()) == file.read(1_000_000)[: len(judge.decode(tokens[:100_000].tolist()))]
    assert len(judge.decode(tokens.tolist()[:-1]).encode()) == (tmp_path / "big.txt").stat().st_size


def test_fewer_documents(start, tokenizer, tmp_path):
    texts = [text_of(random.Random(i), 20) for i in range(50)]
    write_lines(tmp_path / "a.jsonl", texts)
    prepare(start, tokenizer, "--dataset", "a.jsonl", "--out_dir", "out", "--num_samples", 7)
    assert np.array_equal(tokens_in(tmp_path / "out"), expected_tokens(tokenizer, texts[:7]))


def test_what_it_refuses(start, fails, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one", "two"])
    write_lines(tmp_path / "b.jsonl", ["one", "too"])
    make = ["prepare-data", "--tokenizer", tokenizer, "--out_dir", "out", "--dataset"]
    assert start([*make, "a.jsonl"]).end(20).code == 0
    fails([*make, "b.jsonl"], 2, ["out was made with another files; choose another out_dir"])
    fails([*make, "a.jsonl", "--eos_token", "<|pad|>"], 2, ["out was made with another eos"])
    fails([*make, "a.jsonl", "--eos_token", "<s>"], 2, ['eos_token "<s>" is no token of'])
    fails([*make, "a.jsonl", "--num_proc", 0], 2, ["--num_proc 0 is not from 1 to 1024"])
    fails([*make, "gone.jsonl"], 2, ['data set "gone.jsonl" does not exist'])
    fails(["prepare-data", "--dataset", "a.jsonl", "--out_dir", "other", "--tokenizer", "gone"], 2, ["gone"])
    fails(["prepare-data", "--dataset", "a.jsonl", "--out_dir", "other", "--tokenizer", "bytes"], 2, ["--eos_token"])
    (tmp_path / "tokens").mkdir()
    np.save(tmp_path / "tokens" / "mine.npy", np.arange(9, dtype=np.uint16))
    fails(["prepare-data", "--dataset", "a.jsonl", "--tokenizer", tokenizer, "--out_dir", "tokens"], 2, ["tokens holds mine.npy"])
    (tmp_path / "out" / "tokens-00000.npy").unlink()
    fails([*make, "a.jsonl"], 2, ["tokens-00000.npy has not the", "tokens that index.json promises; remove out and"])
    fails(["train", "--dataset", "out", "--use_cpu"], 2, ["tokens-00000.npy has not the"])
    (tmp_path / "out" / "index.json").write_text('{"format": 1, "complete": true}')
    fails(["train", "--dataset", "out", "--use_cpu"], 2, ["index.json is no index of a preparation, or damaged"])
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    fails(["prepare-data", "--dataset", "c.jsonl", "--tokenizer", tokenizer, "--out_dir", "c"], 2, ['c.jsonl, line 2: "text" is no string'])
    assert not list((tmp_path / "c").glob("*.npy*"))
    (tmp_path / "file").touch()
    for out in ["file", "file/out"]:
        fails(["prepare-data", "--dataset", "a.jsonl", "--tokenizer", tokenizer, "--out_dir", out], 2,
              [f"cannot make the folder {out}: Not a directory; choose another out_dir"])  # fmt: skip


def test_one_process_at_a_time(start, complains, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 300) for i in range(3000)])
    (tmp_path / "out").mkdir()
    more = ["prepare-data", "--dataset", "a.jsonl", "--tokenizer", tokenizer, "--out_dir", "out"]
    with open(tmp_path / "out" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        complains(start(more).end(20), 1, ["another process prepares data in out; wait for its end"])
        assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"]
    prepare(start, tokenizer, *more[1:3], "--out_dir", "out")
    assert not (tmp_path / "out" / ".lock").exists()


def test_into_the_folder_of_the_tokenizer(start, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", ["one", "two"])
    shutil.copytree(tokenizer, tmp_path / "both")
    prepare(start, tmp_path / "both", "--dataset", "a.jsonl", "--out_dir", "both")
    assert np.array_equal(tokens_in(tmp_path / "both"), expected_tokens(tokenizer, ["one", "two"]))
    assert (tmp_path / "both" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def test_of_little_text_every_byte_is_looked_at(start, fails, tokenizer, tmp_path):
    """One file of some megabytes among many: below 256 MiB together nothing is left out."""
    (tmp_path / "d").mkdir()
    for i in range(200):
        write_lines(tmp_path / "d" / f"{i:03}.jsonl", ["one"])
    write_lines(tmp_path / "d" / "big.jsonl", ["one two " * 1000] * 1000)
    more = ["prepare-data", "--dataset", "d", "--tokenizer", tokenizer, "--out_dir", "out"]
    assert start(more).end(30).code == 0
    changed = bytearray((tmp_path / "d" / "big.jsonl").read_bytes())
    at = changed.index(b"two", len(changed) // 2)
    changed[at : at + 3] = b"too"
    (tmp_path / "d" / "big.jsonl").write_bytes(changed)
    fails(more, 2, ["out was made with another files"])


# ----------------------------------------------------------------------------------------------------- train, by itself


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(start, tiny, tmp_path, dataset, out, **sections):
    config = tiny(dataset=dataset, checkpoint={"save_dir": out}, training={"total_train_steps": 4, "eval_interval": 2}, **sections)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = start(["train", "--config", "config.json"], environment={"PICOTRON_CACHE": str(tmp_path / "cache")}).end(60)
    assert ended.code == 0, ended.err
    return ended


def test_train_prepares_once_and_finds_it_again(start, tiny, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 100) for i in range(300)])
    text = {"name": "a.jsonl", "tokenizer": str(tokenizer), "document_masking": True}
    first = train(start, tiny, tmp_path, text, "one")
    assert "300 documents" in first.out and "made in" in first.out
    second = train(start, tiny, tmp_path, text, "two", distributed={"use_cpu": True, "dp_size": 1})
    assert "found in" in second.out and losses(tmp_path / "two") == losses(tmp_path / "one")

    prepare(start, tokenizer, "--dataset", "a.jsonl", "--out_dir", "tokens")
    train(start, tiny, tmp_path, {"name": "tokens", "document_masking": True}, "three")  # its tokenizer lies in it
    assert losses(tmp_path / "three") == losses(tmp_path / "one")
    train(start, tiny, tmp_path, {"name": "tokens"}, "four")
    assert losses(tmp_path / "four") != losses(tmp_path / "one")
    # A checkpoint takes the tokenizer along: generate needs nothing else.
    assert (tmp_path / "three" / "4" / "model" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    ended = start(["generate", "--checkpoint", "three", "--prompt", "the king", "--max_new_tokens", 5]).end(20)
    assert ended.code == 0 and ended.out.startswith("the king"), ended.err

    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 100) for i in range(301)])
    assert "301 documents" in train(start, tiny, tmp_path, text, "five").out


def test_ranks_that_start_at_once_prepare_once(start, tiny, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 2000) for i in range(500)])
    config = tiny(dataset={"name": "a.jsonl", "tokenizer": str(tokenizer)})
    (tmp_path / "config.json").write_text(json.dumps(config))
    cache = {"PICOTRON_CACHE": str(tmp_path / "cache")}
    runs = [start(["train", "--config", "config.json", "--save_dir", f"out{i}"], environment=cache) for i in range(3)]
    ended = [run.end(90) for run in runs]
    assert all(one.code == 0 for one in ended), [one.err for one in ended]
    assert sum("made in" in one.out for one in ended) == 1


def test_a_mixture_keeps_its_shares(start, tiny, tokenizer, tmp_path):
    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 100) for i in range(300)])
    prepare(start, tokenizer, "--dataset", "a.jsonl", "--out_dir", "a")
    np.save(tmp_path / "b.npy", np.full(40000, 7, dtype=np.uint16))
    mixture = {"name": "0.75 a 0.25 b.npy"}
    first = train(start, tiny, tmp_path, mixture, "one")
    assert "an epoch of the mixture is" in first.out
    train(start, tiny, tmp_path, mixture, "two", distributed={"use_cpu": True, "dp_size": 2, "tp_size": 1})
    assert losses(tmp_path / "one") != losses(tmp_path / "two")  # twice the batch
    both = {"use_cpu": True, "cp_size": 2, "ranks": "threads"}
    train(start, tiny, tmp_path, mixture, "three", distributed=both)
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    # Tokens that know no vocabulary may come first: it and the tokenizer are those of the other.
    train(start, tiny, tmp_path, {"name": "0.25 b.npy 0.75 a"}, "four")
    assert (tmp_path / "four" / "4" / "model" / "tokenizer.json").exists()


def test_data_of_two_tokenizers_is_remarked_upon(start, tiny, tokenizer, tmp_path):
    """Of one size, so that nothing else would show it."""
    write_lines(tmp_path / "a.jsonl", [text_of(random.Random(i), 100) for i in range(300)])
    other = tmp_path / "other"
    other.mkdir()
    made = json.loads((tokenizer / "tokenizer.json").read_text())
    ids = made["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(made))
    for name, of in (("a", tokenizer), ("b", other), ("c", tokenizer)):
        prepare(start, of, "--dataset", "a.jsonl", "--out_dir", name)
    remark = "were prepared with tokenizer files that differ"
    assert f"a and b {remark}" in train(start, tiny, tmp_path, {"name": "0.5 a 0.5 b"}, "one").out
    assert f"a and b {remark}" in train(start, tiny, tmp_path, {"name": "a", "validation": "b"}, "two").out
    assert remark not in train(start, tiny, tmp_path, {"name": "0.5 a 0.5 c"}, "three").out


def test_masking_without_an_end_is_refused(fails, tiny, tmp_path):
    np.save(tmp_path / "b.npy", np.full(40000, 7, dtype=np.uint16))
    (tmp_path / "config.json").write_text(json.dumps(tiny(dataset={"name": "b.npy", "document_masking": True})))
    fails(["train", "--config", "config.json"], 2, ["dataset.document_masking: nothing says which token ends a document of b.npy"])
    fails(["train", "--config", "config.json", "--dataset", "0.5 b.npy x"], 2, ["a mixture is a list of a positive weight and a name"])


def test_the_documentation_is_true_of_the_index(start, tokenizer, tmp_path):
    """docs/data.md names every key of index.json."""
    write_lines(tmp_path / "a.jsonl", ["one"])
    prepare(start, tokenizer, "--dataset", "a.jsonl", "--out_dir", "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for key in [*index, *index["shards"][0], *index["files"][0]]:
        assert f"`{key}`" in page, key
