"""A run whose loss becomes NaN stops, names what went wrong first, and saves nothing; replicas are compared; spikes are
marked. What is planted where, and in which layout, is in tests/unit/health_test.cpp."""

import json

import numpy
import pytest
from safetensors.numpy import load_file, save_file

LAYER = "model.layers.1."


@pytest.fixture
def spoilt(checkpoint, tmp_path):
    """spoilt(change): a model folder whose weights change(weights) has spoilt."""

    def copy(change):
        folder, model = tmp_path / "spoilt", checkpoint / "2/model"
        folder.mkdir()
        (folder / "config.json").write_text((model / "config.json").read_text())
        weights = {name: x for file in model.glob("*.safetensors") for name, x in load_file(file).items()}
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return copy


def one_nan(weights):
    weights[LAYER + "mlp.up_proj.weight"][3, 4] = numpy.nan


def overflow(weights):
    for name in ("gate_proj", "up_proj"):
        weights[f"{LAYER}mlp.{name}.weight"][:] = 1e3
    weights[LAYER + "mlp.down_proj.weight"][:] = 3e38


@pytest.mark.parametrize("change, layout, says", [
    (one_nan, {}, [LAYER + "mlp.up_proj.weight itself holds NaN on rank 0, and did before this step"]),
    (overflow, {}, ["the forward pass goes wrong first in " + LAYER + "mlp.down_proj, whose output holds",
                    "in microbatch 0 on rank 0; a lower training.learning_rate"]),
    (overflow, {"dp_size": 2, "pp_size": 2}, [LAYER + "mlp.down_proj", "on rank 1 (dp 0, pp 1)"]),
    (overflow, {"tp_size": 2, "ranks": "threads"}, [LAYER + "mlp.down_proj", "summed over tp", "on rank 0 (tp 0)"]),
], ids=["weight", "forward", "forward, 4 processes", "forward, 2 threads"])
def test_not_finite_stops_the_run_with_one_sentence(fails, tiny, spoilt, tmp_path, change, layout, says):
    config = tiny(model={"init_from": str(spoilt(change))}, distributed=layout)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ended = fails(["train", "--config", "config.json"], 1, ["step 1: loss ", *says], within=30)
    assert len(ended.complaint) == 1, ended.err
    left = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert left[0] == "metrics.jsonl" and not [name for name in left if name[0].isdigit()]
    assert (tmp_path / "out/metrics.jsonl").read_text() == ""


def test_replicas_that_agree_train_as_without_the_check(start, tiny, tmp_path):
    losses = []
    for check in (0, 1):
        config = tiny(distributed={"dp_size": 2, "ranks": "threads"}, logging={"desync_check": check})
        (tmp_path / "config.json").write_text(json.dumps(config))
        ended = start(["train", "--config", "config.json"]).end(30)
        assert ended.code == 0, ended.err
        lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1] and len(losses[0]) == 2
