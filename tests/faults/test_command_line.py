"""The commands as people type them: slips of the pen, good input that looks odd, Ctrl-C, and ranks that are lost."""

import json
import os
import signal
import subprocess
import time

import pytest

WRONG = {
    "no command": ("trian", ["no command 'trian'", "train, prepare-data"]),
    "unknown flag": ("train --learning_rat 1", ["unknown flag --learning_rat", "did you mean --learning_rate?"]),
    "unknown flag with a value": ("train --sede=1", ["unknown flag --sede", "--help"]),
    "unknown dotted key": ("train --training.seq_len 8", ["training.seq_len", "did you mean training.seq_length?"]),
    "stray word": ("train config.json", ["unexpected argument 'config.json'", "train --help"]),
    "config without a file": ("train --config", ["--config needs a value"]),
    "config that is absent": ("train --config nope.json", ["nope.json", "No such file", "--config"]),
    "config that is a folder": ("train --config .", ["is a folder", "config.json"]),
    "flag without its value": ("train --mbs", ["--mbs needs a value", "whole number"]),
    "flag before a flag": ("train --mbs --seq_len 8", ["--mbs needs a value", "whole number"]),
    "number that is none": ("train --mbs four", ["--mbs", '"four"', "whole number"]),
    "infinite rate": ("train --learning_rate inf", ["--learning_rate", '"inf"', "number from 0 to 1000"]),
    "choice that is none": ("train --pp_engine 2f2b", ["--pp_engine", '"2f2b"', '"1f1b"']),
    "boolean that is none": ("train --use_cpu=perhaps", ["--use_cpu", '"perhaps"', "true or false"]),
    "rope_scaling no JSON": ("train --model.rope_scaling {factor:8}", ["--model.rope_scaling", "double quotes"]),
    "tensor parallel": ("train --tp 5", ["tp_size 5", "num_attention_heads", "use 1"]),
    "recompute": ("train --training.recompute some", ["recompute", "selective"]),
    "no model": ("train --dataset bytes.txt --model_name null", ["bytes.txt", "does not exist"]),
    "generate from nothing": ("generate", ["--checkpoint DIR or --model DIR"]),
    "generate, no such folder": ("generate --checkpoint nope", ["nope is not a folder", "checkpoint"]),
    "generate, no checkpoint there": ("generate --checkpoint .", ["holds no model", "config.json"]),
    "generate from both": ("generate --checkpoint CKPT --model CKPT", ["--checkpoint excludes --model", "--help"]),
    "temperature below 0": ("generate --checkpoint CKPT --temperature -1", ["--temperature -1", "0.001 to 1000"]),
    "temperature not a number": ("generate --checkpoint CKPT --temperature nan", ["--temperature nan", "0.001"]),
    "temperature a word": ("generate --checkpoint CKPT --temperature hot", ["--temperature", "hot"]),
    "temperature of nothing": ("generate --checkpoint CKPT --temperature 1e-300", ["--temperature", "0.001"]),
    "negative top_k": ("generate --checkpoint CKPT --top_k -1", ["--top_k", "-1", "range 0 to"]),
    "top_k a word": ("generate --checkpoint CKPT --top_k few", ["--top_k", "few", "range 0 to"]),
    "no new tokens": ("generate --checkpoint CKPT --max_new_tokens 0", ["--max_new_tokens", "range 1 to"]),
    "too many new tokens": ("generate --checkpoint CKPT --max_new_tokens 99999999999", ["--max_new_tokens", "range 1"]),
    "no samples": ("generate --checkpoint CKPT --num_samples 0", ["--num_samples", "range 1 to"]),
    "negative seed": ("generate --checkpoint CKPT --seed -1", ["--seed", "-1"]),
    "unknown prompt word": ("generate --checkpoint CKPT --prompt Qwertz", ['"Qwertz"', "near ones are"]),
    "unknown tokenizer": ("generate --checkpoint CKPT --tokenizer gpt2", ['"gpt2"', 'use "bytes"']),
    "generate, unknown flag": ("generate --checkpoint CKPT --temprature 1", ["--temprature", "mean --temperature?"]),
    "generate, prompt missing": ("generate --checkpoint CKPT --prompt", ["--prompt needs a value"]),
    "export of nothing": ("export --out x", ["--checkpoint is required", "--help"]),
    "export to nowhere": ("export --checkpoint CKPT", ["--out is required", "--help"]),
    "export, misspelt flag": ("export --checkpoint CKPT --outt x", ["unknown flag --outt", "did you mean --out?"]),
    "export of no folder": ("export --checkpoint nope --out x", ["nope is not a folder"]),
    "export over something": ("export --checkpoint CKPT --out CKPT", ["not an empty folder", "choose another"]),
    "export below a file": ("export --checkpoint CKPT --out /dev/null/x", ["/dev/null/x", "choose"]),
    "export, unknown dtype": ("export --checkpoint CKPT --out x --dtype int8", ["--dtype int8", "float32 or bfloat16"]),
    "explain what is not": ("config --explain training.lerning_rate", ["did you mean training.learning_rate?"]),
    "config of nothing": ("config --config nope.json", ["nope.json", "No such file"]),
    "config, stray word": ("config nope", ["unexpected argument 'nope'", "--help"]),
    "create-config below a file": ("create-config --out_dir /dev/null", ["/dev/null/dummy_exp", "another --out_dir"]),
    "create-config without a name": ("create-config --exp_name=", ["--exp_name", "name"]),
    "create-config above its folder": ("create-config --exp_name ../../x", ["--exp_name ../../x", "as --out_dir"]),
    "create-config, a path for a name": ("create-config --exp_name /tmp/x", ["--exp_name /tmp/x", "as --out_dir"]),
    "create-config in the folder above": ("create-config --exp_name ..", ["--exp_name ..", "as --out_dir"]),
    "create-config, value missing": ("create-config --out_dir", ["--out_dir needs a value"]),
    "create-config, unknown flag": ("create-config --out_dri x", ["--out_dri", "did you mean --out_dir?"]),
    "create-config, heads": (
        "create-config --num_attention_heads 7 --num_key_value_heads 2",
        ["num_key_value_heads 2 does not divide num_attention_heads 7", "use 1 or 7"],
    ),
    "create-config, unknown model": ("create-config --model_name gpt2", ["gpt2", "known are"]),
}


@pytest.mark.parametrize("line, says", WRONG.values(), ids=WRONG.keys())
def test_wrong_command_line(fails, tmp_path, checkpoint, line, says):
    fails([str(checkpoint) if word == "CKPT" else word for word in line.split()], 2, says)
    assert os.listdir(tmp_path) == []


def test_no_command_shows_the_help(start):
    ended = start([]).end(5)
    assert ended.code == 2 and "create-config" in ended.out + ended.err
    assert start(["--help"]).end(5).code == 0


@pytest.mark.parametrize("command", ["train", "generate", "create-config", "config", "export", "explain", "checkpoint"])
def test_help(start, tmp_path, command):
    ended = start([command, "--help"]).end(5)
    assert ended.code == 0 and "--" in ended.out and ended.err == ""
    assert os.listdir(tmp_path) == []


def test_a_config_that_is_there_is_not_replaced(fails, start, tmp_path):
    line = ["create-config", "--out_dir", "x", "--exp_name", "y"]
    assert start(line).end(5).code == 0
    before = (tmp_path / "x/y/config.json").read_text()
    fails([*line, "--mbs", "3"], 2, ["x/y/config.json exists and differs", "--overwrite"])
    assert (tmp_path / "x/y/config.json").read_text() == before
    assert start([*line, "--mbs", "3", "--overwrite"]).end(5).code == 0
    assert (tmp_path / "x/y/config.json").read_text() != before


def test_a_token_is_never_written(start, tmp_path):
    ended = start(["create-config", "--hf_token", "hf_secret", "--out_dir", "x"]).end(5)
    assert ended.code == 0 and "not written" in ended.err
    ended = start(["train", "--environment.HF_TOKEN", "hf_secret", "--mbs", "x"]).end(5)
    assert "hf_secret" not in ended.err + ended.out
    assert not any("hf_secret" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------- good input that looks odd

FEW_STEPS = ["--training.total_train_steps", "2", "--training.warmup_steps", "0", "--training.micro_batch_size", "2"]


def test_an_empty_config_trains_the_stories(start, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ended = start(["train", "--config", "config.json", *FEW_STEPS]).end(60)
    assert ended.code == 0, ended.err
    assert len((tmp_path / "runs/stories/metrics.jsonl").read_text().splitlines()) == 2


def test_comments_a_byte_order_mark_and_windows_line_ends(start, tmp_path, tiny):
    text = "\ufeff// mine\n/* all\n of it */\n" + json.dumps(tiny(), indent=1).replace("},", "}, // so much")
    (tmp_path / "config.json").write_bytes(text.replace("\n", "\r\n").encode())
    ended = start(["train", "--config", "config.json"]).end(60)
    assert ended.code == 0, ended.err


def test_names_with_spaces_and_signs(start, tmp_path, tiny):
    name = "größe 重み 'x' {}%s"
    (tmp_path / f"{name}.json").write_text(json.dumps(tiny(checkpoint={"save_dir": name})))
    ended = start(["train", "--config", f"{name}.json"]).end(60)
    assert ended.code == 0, ended.err
    assert (tmp_path / name / "2" / "model" / "model.safetensors.index.json").exists()


def test_a_working_directory_that_is_read_only(start, fails, tmp_path, tiny):
    folder = tmp_path / "ro"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], capture_output=True).returncode != 0:
        pytest.skip("only root may mount a folder")
    try:
        (tmp_path / "config.json").write_text(json.dumps(tiny(checkpoint={"save_dir": str(tmp_path / "out")})))
        assert start(["train", "--config", tmp_path / "config.json"], cwd=folder).end(60).code == 0
        says = ["runs/stories", "Read-only file system", "checkpoint.save_dir"]
        fails(["train", *FEW_STEPS], 2, says, cwd=folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_second_run_keeps_the_metrics_of_the_first(start, tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    for _ in range(2):
        assert start(["train", "--config", "config.json"]).end(60).code == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("metrics*")) == ["metrics.1.jsonl", "metrics.jsonl"]


def test_a_key_that_changes_nothing_yet_is_a_warning(start, tmp_path, tiny):
    config = tiny(logging={"use_wandb": True}, dataset={"num_workers": 4})
    (tmp_path / "config.json").write_text(json.dumps(config))
    for layout in ([], ["--dp", "2"]):
        ended = start(["train", "--config", "config.json", *layout]).end(60)
        assert ended.code == 0 and ended.complaint == []
        assert ended.err.count("use_wandb") == 1 and ended.err.count("num_workers") == 1, ended.err


# -------------------------------------------------------------------------------------- ranks that are lost, and Ctrl-C

TIMEOUT = 5


@pytest.fixture
def long_run(start, tmp_path, tiny):
    """long_run(dp) → a run that goes on for long and has done some steps."""

    def begin(dp, ranks="processes", training={}, steps=3):
        config = tiny(training={"total_train_steps": 1_000_000} | training, checkpoint={"save_frequency": 1_000_000})
        (tmp_path / "config.json").write_text(json.dumps(config))
        sizes = ["--dp", dp, "--distributed.ranks", ranks, "--distributed.timeout_seconds", TIMEOUT]
        running = start(["train", "--config", "config.json", *sizes])
        metrics = tmp_path / "out" / "metrics.jsonl"
        until = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= steps):
            assert running.process.poll() is None and time.monotonic() < until, running.said()
            time.sleep(0.05)
        return running

    return begin


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_is_named(long_run, tmp_path, victim, how):
    running = long_run(3)
    pid = running.children()[victim]  # ranks are started in their order
    rank = next(
        variable.split(b"=")[1].decode()
        for variable in open(f"/proc/{pid}/environ", "rb").read().split(b"\0")
        if variable.startswith(b"PICOTRON_RANK=")
    )
    lost = time.monotonic()
    os.kill(pid, how)
    while f"rank {rank}" not in running.said():
        assert time.monotonic() - lost < TIMEOUT, running.said()
        time.sleep(0.05)
    ended = running.end(6)  # the launcher gives the others 4 s to end
    assert ended.code == 1, ended.err
    assert 1 <= len(ended.complaint) <= 3 and f"rank {rank}" in ended.err, ended.err
    assert ("signal 9" if how == signal.SIGKILL else "no sign of life") in ended.err, ended.err
    assert "Exception raised" not in ended.err and "frame #" not in ended.err
    assert steps_of(tmp_path) == list(range(1, len(steps_of(tmp_path)) + 1))


@pytest.mark.parametrize("dp, ranks", [(1, "processes"), (3, "processes"), (2, "threads")])
def test_one_ctrl_c_ends_after_the_step(long_run, tmp_path, dp, ranks):
    running = long_run(dp, ranks)
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal: all of them at once
    ended = running.end(10)
    assert ended.code == 75, ended.err
    assert ended.complaint == [] and ended.err.count("stopping after the running step") == 1, ended.err
    assert "Stopped on request" in ended.out
    steps = steps_of(tmp_path)
    assert steps == list(range(1, len(steps) + 1))
    assert (tmp_path / "out" / str(steps[-1]) / "model" / "model.safetensors.index.json").exists()


def test_a_ctrl_c_reaches_a_rank_that_is_busy(long_run):
    """The terminal's signal and the launcher's wait together for a rank that does not run, and merge if they are one."""
    running = long_run(3)
    ranks = running.children()
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    os.killpg(running.process.pid, signal.SIGINT)
    time.sleep(0.5)
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    ended = running.end(10)
    assert ended.code == 75 and "Stopped on request" in ended.out, ended.err


@pytest.mark.parametrize("dp", [1, 3])
def test_sigterm_ends_after_the_step(long_run, dp):
    running = long_run(dp)
    running.process.send_signal(signal.SIGTERM)
    ended = running.end(10)
    assert ended.code == 75 and "Stopped on request" in ended.out, ended.err


@pytest.mark.parametrize("dp", [1, 3])
def test_two_ctrl_c_end_at_once(long_run, dp):
    running = long_run(dp, training={"micro_batch_size": 768 // dp, "seq_length": 128}, steps=1)  # seconds each
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    pressed = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    ended = running.end(10)
    assert time.monotonic() - pressed < 5
    assert ended.code == 130 and ended.complaint == [], ended.err


def test_the_launcher_is_killed(long_run):
    running = long_run(3)
    running.process.kill()
    until = time.monotonic() + 5
    while running.children():
        assert time.monotonic() < until, "a rank outlives its launcher"
        time.sleep(0.05)
