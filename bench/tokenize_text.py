#!/usr/bin/env python3
"""How fast text becomes tokens: python3 bench/tokenize_text.py TOKENIZER.json TEXT   (after ./run test, which builds `tokenize`)

50 MB of the text, repeated as often as it takes, in documents of 10 kB: our tokenizer and the `tokenizers` library on one
core, in turn, and ours on two threads. Prints MB/s and the ratios of each round.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer  # noqa: E402  (reads the two variables)

PROGRAM = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[1] / "build")) / "tests" / "tokenize"
ROUNDS, BYTES = 5, 50_000_000


def documents_of(text):
    """As tests/interop/tokenize.cpp cuts it."""
    documents, at = [], 0
    while at < len(text):
        end = text.find("\n\n", at + min(len(text) - at, 10_000))
        end = len(text) if end < 0 else end + 2
        documents.append(text[at:end])
        at = end
    return documents


def ours(tokenizer, file, threads):
    done = subprocess.run([PROGRAM, "time", tokenizer, file, str(threads)], check=True, capture_output=True, text=True)
    seconds, tokens = done.stdout.split()
    return float(seconds), int(tokens)


def theirs(tokenizer, documents):
    began = time.perf_counter()
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(documents, add_special_tokens=False))
    return time.perf_counter() - began, tokens


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main():
    name, source = sys.argv[1:]
    text = Path(source).read_text()
    text = (text * (BYTES // len(text.encode()) + 1))[:BYTES]
    judge = Tokenizer.from_file(name)
    judge.no_truncation()
    judge.no_padding()
    documents = documents_of(text)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        size = len(text.encode()) / 1e6
        one, other, two = [], [], []
        for _ in range(ROUNDS):
            seconds, tokens = ours(name, file.name, 1)
            one.append(seconds)
            seconds, expected = theirs(judge, documents)
            other.append(seconds)
            if tokens != expected:
                sys.exit(f"{tokens} tokens, and {expected} of the library")
            two.append(ours(name, file.name, 2)[0])
    print(f"{size:.1f} MB, {tokens} tokens, {len(documents)} documents, {ROUNDS} rounds")
    print(f"ours, one core       {spread([size / s for s in one])} MB/s")
    print(f"tokenizers, one core {spread([size / s for s in other])} MB/s")
    print(f"ours to theirs       {spread([b / a for a, b in zip(one, other, strict=True)])}")
    print(f"two threads to one   {spread([a / b for a, b in zip(one, two, strict=True)])}")


main()
