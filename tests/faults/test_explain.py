"""`picotron explain` as people type it: a step of any layout, told line by line, and wrong flags refused."""

import os
import re

import pytest

LAYOUT = "--dp 2 --tp 2 --pp 2 --grad_acc_steps 2 --mbs 1 --dtype float32 --use_cpu".split()

# In the order in which they must be told.
TOLD_BY_RANK_0 = [
    r"Rank 0 \(dp 0, pp 0, tp 0\)",
    r"forward · microbatch 0, chunk 0 +src/parallel/pipeline_parallel\.cpp:\d+",
    r"embedding",
    r"all_reduce +embed_tokens .*partial\(tp\) → sum +over tp \{0, 1\}, \d+ bytes sent +src/parallel/vocab_parallel\.cpp:\d+",
    r"layer 0",
    r"product +q_proj, k_proj, v_proj +x .* · W.*ᵀ → y .* +src/parallel/tensor_parallel\.cpp:\d+",
    r"attention +q \[1 rows, 2 of 4 heads, 12 tokens, 16\] +src/parallel/context_parallel\.cpp:\d+",
    r"product +o_proj .*partial\(tp\)",
    r"all_reduce +o_proj",
    r"send activation · microbatch 0",
    r"send .*→ rank 2 \(dp 0, pp 1, tp 0\), \d+ bytes sent",
    r"receive .*← rank 2",
    r"backward · microbatch 1",
    r"product +down_proj +dy .* → dW .* partial\(dp_cp\)",
    r"reduce_scatter .*over dp_cp \{0, 4\}",
    r"norm of the gradient",
    r"all_reduce .*over world \{0, 1, 2, 3, 4, 5, 6, 7\}",
    r"adamw .*src/train/optimizer\.cpp:\d+",
    r"all_gather .*over dp_cp \{0, 4\}",
    r"Sent in this step: tp \d+, pp \d+, dp_cp \d+, world \d+ bytes\.",
]


def test_a_step_is_told_in_order(start, tmp_path):
    ended = start(["explain", *LAYOUT]).end(60)
    assert ended.code == 0 and ended.err == "", ended.err
    place = 0
    for pattern in TOLD_BY_RANK_0:
        found = re.compile(pattern).search(ended.out, place)
        assert found, f"{pattern} does not follow in\n{ended.out}"
        place = found.end()
    assert os.listdir(tmp_path) == []


def test_other_ranks_and_all_of_them(start):
    ended = start(["explain", *LAYOUT, "--rank", "7", "--step", "2"]).end(60)
    assert ended.code == 0 and "Rank 7 (dp 1, pp 1, tp 1)" in ended.out and "Rank 0 (" not in ended.out
    assert "head and loss" in ended.out and "Step 2 " in ended.out
    ended = start(["explain", *LAYOUT, "--rank", "all"]).end(60)
    assert ended.code == 0 and re.findall(r"^Rank (\d) ", ended.out, re.MULTILINE) == list("01234567")


@pytest.mark.parametrize("flags, says", [
    (["--rank", "8"], ["--rank 8", "0 to 7", "all"]),
    (["--rank", "first"], ["--rank first", "0 to 7"]),
    (["--step", "0"], ["--step", "1"]),
    (["--rnk", "1"], ["unknown flag --rnk", "did you mean --rank?"]),
    (["--tp", "3"], ["tp_size 3"]),
])
def test_wrong_flags(fails, flags, says):
    fails(["explain", *LAYOUT, *flags], 2, says)
