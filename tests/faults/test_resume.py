"""What `--resume`, `--load_path`, `--save_seconds`, `--keep_last` and `--async` do, as a person sees it."""

import json

import pytest

FLAGS = (
    "--hidden_size 32 --intermediate_size 64 --num_hidden_layers 2 --num_attention_heads 4 --num_key_value_heads 2 "
    "--dtype float32 --seq_len 32 --mbs 2 --use_cpu --shuffle --training.lr_schedule constant --training.warmup_steps 0"
).split()


@pytest.fixture
def train(start):
    """train(steps, flags…) → what it printed, once it has ended well. It saves at its last step, and where it is told."""

    def run(steps, *flags, save_frequency=None, save_dir="out"):
        every = ["--save_frequency", save_frequency or steps, "--save_dir", save_dir]
        ended = start(["train", *FLAGS, "--total_train_steps", steps, *every, *flags]).end(within=30)
        assert ended.code == 0, ended.err
        return ended

    return run


def steps(folder, name="metrics.jsonl"):
    return [json.loads(line)["step"] for line in (folder / name).read_text().splitlines()]


def complete(folder):
    return sorted(int(path.parent.name) for path in folder.glob("*/state.json") if path.parent.name.isdigit())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_auto_begins_goes_on_and_then_has_nothing_to_do(train, tmp_path):
    out = tmp_path / "out"
    train(2, "--resume", "auto")
    assert "Going on from out/2" in train(4, "--resume", "auto").out
    assert steps(out) == [1, 2, 3, 4]
    before = contents(out)
    said = train(4, "--resume", "auto").out
    assert "4" in said and "Step:" not in said
    assert contents(out) == before, "a run that is done changes nothing"


def test_never_sets_aside_what_an_earlier_run_has_left(train, tmp_path):
    out = tmp_path / "out"
    train(2)
    first = contents(out / "2")
    train(3)
    assert steps(out) == [1, 2, 3] and steps(out, "metrics.1.jsonl") == [1, 2]
    assert contents(out / "2.old1") == first and complete(out) == [3]
    train(3, "--resume", "never")
    assert (out / "3.old1").is_dir() and steps(out, "metrics.2.jsonl") == [1, 2, 3]


def test_what_was_done_after_the_checkpoint_is_cut(train, tmp_path):
    out = tmp_path / "out"
    train(4, save_frequency=2)
    (out / "4" / "state.json").unlink()  # as if it had never become complete
    train(4, "--resume", "auto", save_frequency=2)
    assert steps(out) == [1, 2, 3, 4] and complete(out) == [2, 4]
    assert (out / "4.old1").is_dir()


def test_load_path_branches_off_and_only_reads(train, tmp_path):
    train(4, save_frequency=2)
    before = contents(tmp_path / "out")
    for number, (path, begins) in enumerate({"out": 5, "out/2": 3}.items()):
        said = train(6, "--load_path", path, save_dir=f"branch{number}").out
        assert "Going on from" in said
        assert steps(tmp_path / f"branch{number}") == list(range(begins, 7))
    assert contents(tmp_path / "out") == before


def test_auto_prefers_its_own_checkpoints_to_load_path(train, tmp_path):
    train(2)
    train(4, save_dir="other")
    assert "Going on from other/4" in train(5, "--resume", "auto", "--load_path", "other", save_dir="new").out
    assert "Going on from out/2" in train(5, "--resume", "auto", "--load_path", "other").out


def test_each_difference_is_a_line_and_the_new_one_wins(train, tmp_path):
    train(2, "--learning_rate", 0.001)
    said = train(4, "--resume", "auto", "--learning_rate", 0.01, "--mbs", 1, "--grad_acc_steps", 1)
    assert "training.learning_rate is 0.01, was 0.001" in said.out
    assert "training.micro_batch_size is 1, was 2" in said.out
    assert "the global batch stays 2 sequences, as saved: the config says 1" in said.out
    assert "gradient_accumulation_steps" not in said.out
    last = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["learning_rate"] == 0.01
    assert last["trained_tokens"] == 4 * 2 * 32


def test_the_last_ones_are_kept(train, tmp_path):
    train(6, "--keep_last", 2, save_frequency=1)
    assert complete(tmp_path / "out") == [5, 6]
    assert (tmp_path / "out" / "latest").read_text() == "6\n"


@pytest.mark.parametrize("frequency, expected", [(3, [3, 5]), (5, [5]), (6, [])])
def test_the_last_step_saves_unless_the_interval_is_longer(train, tmp_path, frequency, expected):
    train(5, save_frequency=frequency)
    assert complete(tmp_path / "out") == expected


def test_by_the_clock(train, tmp_path):
    train(4, "--save_seconds", 1e-3, save_frequency=100)
    assert complete(tmp_path / "out") == [1, 2, 3, 4]


def test_asynchronous_saves_are_the_same_files(train, tmp_path):
    train(4, save_frequency=2)
    said = train(4, "--async", save_frequency=2, save_dir="async").out
    assert "training paused" in said
    for step in (2, 4):
        ours, theirs = (contents(tmp_path / run / str(step)) for run in ("out", "async"))
        assert ours.keys() == theirs.keys()
        assert [p for p in ours if ours[p] != theirs[p] and p.name != "state.json"] == []
