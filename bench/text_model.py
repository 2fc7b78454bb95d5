#!/usr/bin/env python3
"""A step of the text model beside nanoGPT's: .venv/bin/python bench/text_model.py FILE.txt   (after ./run test)

Trains configs/text.json on FILE and, in turn, a GPT of nanoGPT's shape for a CPU in PyTorch (4 layers, 4 heads, width
128, 12 rows of 64 characters; learned positions, LayerNorm, GELU, the head tied to the embedding, clipping), with the
same threads: once as nanoGPT trains it (it asks for the fused AdamW on a GPU alone, and reads the loss of each step),
once with the fused AdamW. Prints the milliseconds of a step, the median of each round, and our share of theirs in it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, STEPS, WARMUP = 5, 300, 50
LAYERS, HEADS, WIDTH, ROWS, COLUMNS = 4, 4, 128, 12, 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        heads = self.qkv(self.norms[0](x)).view(ROWS, COLUMNS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(ROWS, COLUMNS, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Gpt(nn.Module):
    def __init__(self, characters):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(characters, WIDTH), nn.Embedding(COLUMNS, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, ids, targets):
        x = self.norm(self.blocks(self.embedding(ids) + self.positions.weight))
        return functional.cross_entropy((x @ self.embedding.weight.T).flatten(0, 1), targets.flatten())


def adamw(model, fused):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=fused)


def pytorch(model, text, fused):
    """Milliseconds of a step."""
    optimizer = adamw(model, fused)
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        begins = torch.randint(len(text) - COLUMNS, (ROWS,))
        ids = torch.stack([text[i : i + COLUMNS] for i in begins])
        targets = torch.stack([text[i + 1 : i + 1 + COLUMNS] for i in begins])
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[WARMUP:])


def picotron(file):
    with tempfile.TemporaryDirectory() as folder:
        command = [ROOT / "build" / "picotron", "train", "--config", "configs/text.json", "--dataset.name", file]
        command += ["--save_dir", folder, "--total_train_steps", STEPS, "--eval_interval", "0", "--save_frequency", "1000000"]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run([*map(str, command)], check=True, cwd=ROOT, capture_output=True, env=os.environ | threads)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return 1000 * statistics.median(json.loads(line)["step_seconds"] for line in lines[WARMUP:])


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    file = Path(sys.argv[1]).resolve()
    characters = file.read_text()
    ids = {character: number for number, character in enumerate(sorted(set(characters)))}
    text, model = torch.tensor([ids[character] for character in characters]), Gpt(len(ids))
    print(f"{torch.get_num_threads()} threads, {STEPS - WARMUP} steps of each in each of {ROUNDS} rounds")
    rounds = [(picotron(file), pytorch(model, text, fused=False), pytorch(model, text, fused=True)) for _ in range(ROUNDS)]
    ours, *others = zip(*rounds, strict=True)
    print(f"picotron                     {spread(ours)} ms a step")
    for name, theirs in zip(("nanoGPT in PyTorch          ", "the same with a fused AdamW "), others, strict=True):
        share = spread([a / b for a, b in zip(ours, theirs, strict=True)])
        print(f"{name} {spread(theirs)} ms a step, ours {share} of it")


main()
