"""What the papers point to is there: relative links of every *.md, and files that they name in backticks."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAPERS = sorted(p for p in ROOT.rglob("*.md") if not any(
    part.startswith((".", "build")) for part in p.relative_to(ROOT).parts))

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
# `src/core/error.h`, `train/train.cpp`: a file of the repository, from its root or from src/. NAME stands for any.
NAMED = re.compile(r"`((?:src|tests|docs|configs|bench|cmake|tutorial|core|dist|kernels|parallel|model|data|hub|"
                   r"checkpoint|train|commands|cuda)/[\w./-]+\.(?:h|cpp|py|md|json|sh|txt))`")


def anchors(markdown):
    """The names GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def breaches(page, text):
    """Links and file names in the text of `page` (a path) that lead nowhere."""
    text = FENCE.sub("", text)
    found = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if path and not file.exists():
            found.append(f"link to {target}: there is no {path}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text() if path else text):
            found.append(f"link to {target}: no heading gives #{anchor}")
    for name in NAMED.findall(text):
        if "NAME" not in name and not any((root / name).exists() for root in (ROOT, ROOT / "src")):
            found.append(f"`{name}`: no such file, neither here nor in src/")
    return found


@pytest.mark.parametrize("page", PAPERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_paper_points_to_is_there(page):
    found = breaches(page, page.read_text())
    assert not found, "\n".join(f"{page.relative_to(ROOT)}: {line}" for line in found)


@pytest.mark.parametrize("text, right", [
    ("[a](CONTRIBUTING.md)", True),
    ("[a](CONTRIBUTING.md#tests)", True),
    ("[a](CONTRIBUTING.md#no-such-heading)", False),
    ("[a](no-such-file.md)", False),
    ("[a](https://example.org/no)", True),
    ("`train/train.cpp` and `src/main.cpp`", True),
    ("`train/no_such_file.cpp`", False),
    ("```\n[a](no-such-file.md)\n```\n", True),
    ("# A heading\n[a](#a-heading)", True),
    ("# A heading\n[a](#another)", False),
])
def test_the_rule_itself(text, right):
    assert (breaches(ROOT / "README.md", text) == []) == right
