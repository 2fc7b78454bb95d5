"""Our tokenizers against their own libraries: the same ids for text of every kind, and back."""

import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BUILD = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[2] / "build"))
PROGRAM = BUILD / "tests" / "tokenize"
DATA = Path(__file__).parents[3] / "shared" / "data"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
STYLES = ["gpt2", "smollm", "llama3", "qwen2", "odd"]


def need(name):
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there")
    return DATA / name


def text_to_learn():
    """English, and some of what else the tests ask for."""
    text = (DATA / "tinyshakespeare.txt").read_text() if (DATA / "tinyshakespeare.txt").exists() else "to be or not " * 9999
    return text[:300_000] + "".join(random_text(random.Random(seed)) for seed in range(3000))


def learned(style):
    """A tokenizer of the style, trained on a little text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style == "smollm")
    if style == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif style == "odd":  # grouped digits, dashes dropped, an inverted pattern, another normal form
        tokenizer.normalizer = normalizers.NFKD()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("-"), "removed"),
            pre_tokenizers.Split(Regex(r"\s?\S+"), "isolated", invert=True),
            byte_level,
        ])  # fmt: skip
    else:
        pattern = LLAMA3 if style == "llama3" else QWEN2
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    if style == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = {"smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "llama3": ["<|begin_of_text|>", "<|end_of_text|>"]}
    special = special.get(style, ["<|endoftext|>", "<|im_start|>"])
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text_to_learn()], trainer)
    if style == "llama3":
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))]
            ),
        ])  # fmt: skip
    if style == "odd":
        tokenizer.add_tokens([AddedToken("<fill>", lstrip=True, normalized=False), AddedToken("ﬁn", normalized=True)])
        tokenizer.add_special_tokens([AddedToken("<gap>", rstrip=True), AddedToken("<fill><gap>")])
    return tokenizer


@pytest.fixture(scope="module", params=STYLES)
def pair(request, tmp_path_factory):
    """(the library's tokenizer, the file that ours reads)"""
    if request.param == "gpt2":
        file = need("gpt2-tokenizer.json")
        tokenizer = Tokenizer.from_file(str(file))
    else:
        file = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
        tokenizer = learned(request.param)
        tokenizer.save(str(file))
    tokenizer.no_truncation()  # ours reads a corpus, whatever the file says of a model's input
    tokenizer.no_padding()
    return tokenizer, file


def run(command, file, lists):
    """Sends lists of bytes, of one or four each, and receives as many."""
    size = 1 if command == "encode" else 4
    sent = b"".join(struct.pack("<I", len(part) // size) + part for part in lists)
    done = subprocess.run([PROGRAM, command, file], input=sent, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    received, at = [], 0
    while at < len(done.stdout):
        (count,) = struct.unpack_from("<I", done.stdout, at)
        size = count * (4 if command == "encode" else 1)
        received.append(done.stdout[at + 4 : at + 4 + size])
        at += 4 + size
    assert len(received) == len(lists)
    return received


def encode(file, texts):
    return [list(struct.unpack(f"<{len(ids) // 4}i", ids)) for ids in run("encode", file, texts)]


def decode(file, lists):
    return [text.decode() for text in run("decode", file, [struct.pack(f"<{len(ids)}i", *ids) for ids in lists])]


SPACES = "\t\n\v\f\r \x1c\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
KINDS = [
    lambda r: r.choice(["the", "Don't", "we'LL", "I'm", "it's", "’s", "'S", "'ſ", "x'Re", "naïve", "o", "QUEEN"]),
    lambda r: r.choice(SPACES) * r.choice([1, 1, 2, 5]),
    lambda r: " ",
    lambda r: str(r.randrange(10 ** r.choice([1, 2, 5, 30]))),
    lambda r: chr(r.randrange(0x20, 0x7F)),
    lambda r: chr(r.choice([r.randrange(0x20), r.randrange(0x7F, 0xA0)])),  # control characters
    lambda r: chr(r.randrange(0xA1, 0x250)),
    lambda r: "".join(chr(r.randrange(0x4E00, 0x9FFF)) for _ in range(r.randrange(1, 5))),
    lambda r: r.choice(["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🤷🏿‍♀️"]),
    lambda r: r.choice(["مرحبا بالعالم", "שָׁלוֹם", "\u202eabc\u202c", "نص ١٢٣", "हिन्दी ४५", "ไทย", "한국어", "각"]),
    lambda r: "aeounc"[r.randrange(6)] + "".join(chr(r.randrange(0x300, 0x370)) for _ in range(r.randrange(1, 4))),
    lambda r: r.choice(["½", "Ⅻ", "²", "٣", "𝟗", "①", "ﬁ", "ﬃ", "Å", "Ω", "ǆ", "ß", "İ", "K"]),
    lambda r: r.choice(["<|endoftext|>", "<|im_start|>", "<|endoftext", "<|begin_of_text|>", "<fill>", "<gap>", "ﬁn", "fin"]),
    lambda r: chr(r.choice([r.randrange(0xD800), r.randrange(0xE000, 0x110000)])),
    lambda r: "".join(r.choice("-_=.,;:!?()[]{}/\\\"'") for _ in range(r.randrange(1, 6))),
]


def random_text(r):
    return "".join(r.choice(KINDS)(r) for _ in range(r.randrange(1, 16)))


def random_bytes(r):
    """Text, sometimes cut or with a byte that does not belong, or a surrogate as some programs write it."""
    raw = random_text(r).encode()
    kind = r.randrange(12)
    if kind == 0:
        raw = raw[: r.randrange(len(raw) + 1)] + bytes([r.randrange(0x80, 0x100)]) + raw[r.randrange(len(raw) + 1) :]
    elif kind == 1:
        raw += chr(r.randrange(0xD800, 0xE000)).encode("utf-8", "surrogatepass")
    return raw


def first_difference(texts, ours, theirs):
    for text, mine, other in zip(texts, ours, theirs, strict=True):
        assert mine == other, f"{text!r}: {mine} and not {other}"


def test_random_strings_have_the_ids_of_the_library(pair):
    tokenizer, file = pair
    r = random.Random(1)
    texts = [random_bytes(r) for _ in range(200_000 if file.name.startswith("gpt2") else 50_000)]
    theirs = [e.ids for e in tokenizer.encode_batch([t.decode("utf-8", "replace") for t in texts], add_special_tokens=False)]
    first_difference(texts, encode(file, texts), theirs)


def test_a_book_has_the_ids_of_the_library_and_comes_back(pair):
    tokenizer, file = pair
    book = need("tinyshakespeare.txt").read_text()
    texts = [book, *book.split("\n\n"), ""]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ours = encode(file, [text.encode() for text in texts])
    first_difference(texts, ours, [e.ids for e in encodings])
    if "odd" not in str(file):  # which drops dashes
        assert decode(file, ours) == texts


def test_tokens_come_back_as_in_the_library(pair):
    tokenizer, file = pair
    r = random.Random(2)
    size = tokenizer.get_vocab_size()
    lists = [[r.randrange(size) for _ in range(r.randrange(12))] for _ in range(5000)]
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if not token.content.isascii()}
    lists = [ids for ids in lists if not special & set(ids)]  # of which the library spells characters as bytes
    expected = [tokenizer.decode(ids, skip_special_tokens=False) for ids in lists]
    for ids, mine, theirs in zip(lists, decode(file, lists), expected, strict=True):
        assert mine == theirs, ids


def test_every_character_has_the_ids_of_the_library(pair):
    """One by one between letters, but for those that one of the two Unicode versions does not know yet."""
    tokenizer, file = pair
    texts = [f"a{chr(c)}b {chr(c)}" for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (c < 0x30000 or c >= 0xE0000)]
    texts = texts[:: 1 if file.name.startswith("gpt2") else 7]
    theirs = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    ours = encode(file, [text.encode() for text in texts])
    other = [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert other == [], f"{len(other)}: {[hex(ord(t[1])) for t in other[:40]]}"


def test_sentencepiece_has_the_ids_of_the_library():
    sentencepiece = pytest.importorskip("sentencepiece")
    file = need("llama2-tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    r = random.Random(3)
    texts = [random_bytes(r) for _ in range(50_000)]
    texts += [part.encode() for part in need("tinyshakespeare.txt").read_text().split("\n\n")]
    ours = encode(file, texts)
    first_difference(texts, ours, processor.encode([text.decode("utf-8", "replace") for text in texts]))
    assert decode(file, ours[-500:]) == processor.decode(ours[-500:])


def refused(file):
    done = subprocess.run([PROGRAM, "encode", file], input="", capture_output=True, text=True, timeout=20)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


CHANGES = {
    "another model": (("model", "type"), "Unigram", ["model.type", '"Unigram"', "known: BPE"]),
    "dropout": (("model", "dropout"), 0.1, ["model.dropout", "0.1"]),
    "a prefix": (("model", "continuing_subword_prefix"), "##", ["continuing_subword_prefix", '"##"']),
    "a normalizer": (("normalizer",), {"type": "Lowercase"}, ["normalizer.type", '"Lowercase"', "NFKC"]),
    "a pre-tokenizer": (("pre_tokenizer",), {"type": "Whitespace"}, ["pre_tokenizer.type", '"Whitespace"']),
    "no bytes": (("pre_tokenizer",), {"type": "Digits"}, ["pre_tokenizer", "has no ByteLevel"]),
    "a prefix space": (("pre_tokenizer", "add_prefix_space"), True, ["add_prefix_space", "true"]),
    "an expression": (
        ("pre_tokenizer",),
        {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}]},
        ["(a", "is not understood", "parenthesis"],
    ),
    "a behavior": (
        ("pre_tokenizer",),
        {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "MergedWithNext"},
        ["behavior", "MergedWithNext", "Isolated"],
    ),
    "a post-processor": (("post_processor",), {"type": "BertProcessing"}, ["post_processor.type", "BertProcessing"]),
    "a decoder": (("decoder",), {"type": "Metaspace"}, ["decoder.type", "Metaspace"]),
    "a merge of three": (("model", "merges", 0), "a b c", ["model.merges[0]", "two tokens"]),
    "a merge of strangers": (("model", "merges", 1), ["nobody", "knows"], ["model.merges[1]", '"nobody"']),
    "a missing byte": (("model", "vocab", "!"), None, ["model.vocab", "no token for byte 33"]),
    "a negative token": (("model", "vocab", "!"), -1, ['vocab["!"]', "-1"]),
    "a word to be alone": (("added_tokens", 0, "single_word"), True, ["added_tokens[0].single_word"]),
}


@pytest.mark.parametrize("path, value, says", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_not_known_is_named(path, value, says, tmp_path):
    root = json.loads(learned("smollm").to_str())
    root["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    place = root
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    said = refused(tmp_path / "tokenizer.json")
    for text in ["tokenizer.json", *says]:
        assert text in said, said


def end(tmp_path, *more):
    done = subprocess.run([PROGRAM, "eos", tmp_path, *more], capture_output=True, text=True, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else done.stderr


def test_what_ends_a_document(tmp_path):
    tokenizer = learned("llama3")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert end(tmp_path) == str(tokenizer.token_to_id("<|end_of_text|>")), "the only usual one"
    assert end(tmp_path, "<|begin_of_text|>") == str(tokenizer.token_to_id("<|begin_of_text|>")), "asked for"
    assert "is no token of" in end(tmp_path, "<nothing>")
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 8]}')
    assert end(tmp_path) == "7"
    (tmp_path / "config.json").write_text('{"eos_token_id": 99999}')
    assert "config.json: eos_token_id 99999" in end(tmp_path)
    for spelled in ('"the"', '{"content": "the", "lstrip": false}'):
        (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": {spelled}}}')
        assert end(tmp_path) == str(tokenizer.token_to_id("the"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<nothing>"}')
    assert "tokenizer_config.json: eos_token" in end(tmp_path)
    tokenizer.add_special_tokens(["</s>"])
    for file in tmp_path.iterdir():
        file.unlink()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert "give --eos_token" in end(tmp_path) and "<|endoftext|>" in end(tmp_path)
