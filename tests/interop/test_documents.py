"""The documents of text files, compressed or not, and of Parquet files of every kind, against pyarrow and Python's json."""

import gzip
import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BUILD = Path(os.environ.get("PICOTRON_BUILD", Path(__file__).parents[2] / "build"))
PROGRAM = BUILD / "tests" / "documents"

needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not built")
pytestmark = needs_program


def ask(name, column="text", *place):
    return subprocess.run([PROGRAM, str(name), column, *map(str, place)], capture_output=True, cwd=Path(name).parent)


def documents(name, column="text", *place):
    ended = ask(name, column, *place)
    assert ended.returncode == 0, ended.stderr
    found, out = [], ended.stdout
    while out:
        (size,) = struct.unpack_from("<I", out)
        found.append(out[4 : 4 + size].decode())
        out = out[4 + size :]
    return found


def refusal(name, column="text"):
    ended = ask(name, column)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr.decode().strip()


def texts(count, seed=1):
    chance = random.Random(seed)
    words = ["", "a", "Once upon a time", "naïve", "日本語", "🙂", "\n", "\r\n", '"', "\\", "\t", "\u2028", "\0", "x" * 300]
    return ["".join(chance.choice(words) for _ in range(chance.randrange(9))) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------------- parquet

TYPES = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "binary": pa.binary(),
}


def table_of(values, kind):
    given = [value.encode() if kind == "binary" and value is not None else value for value in values]
    if kind == "dictionary":
        column = pa.array(given, pa.string()).dictionary_encode()
    else:
        column = pa.array(given, TYPES[kind])
    numbers = pa.array(range(len(given)))
    nested = pa.array([{"inner": str(i), "list": [i, i]} for i in range(len(given))])
    return pa.table({"number": numbers, "text": column, "nested": nested})


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_every_type_and_encoding(tmp_path, kind, version, encoding):
    values = texts(3000)
    values[17] = values[2999] = None
    options = {"use_dictionary": True} if encoding is None else {"use_dictionary": False, "column_encoding": {"text": encoding}}
    pq.write_table(table_of(values, kind), tmp_path / "a.parquet", data_page_version=version, data_page_size=4000,
                   row_group_size=700, **options)
    expected = [value or "" for value in values]
    if kind != "dictionary" or encoding not in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):  # pyarrow cannot
        back = pq.read_table(tmp_path / "a.parquet").column("text").to_pylist()
        assert [(b.decode() if isinstance(b, bytes) else b) or "" for b in back] == expected
    assert documents(tmp_path / "a.parquet") == expected


CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


@pytest.mark.parametrize("codec", CODECS)
def test_every_compression(tmp_path, codec):
    values = texts(2000, seed=2)
    pq.write_table(table_of(values, "string"), tmp_path / "a.parquet", compression=codec, write_page_checksum=True)
    assert documents(tmp_path / "a.parquet") == values


def test_a_column_of_another_name_and_one_within_another(tmp_path):
    pq.write_table(table_of(texts(20), "string").rename_columns(["number", "story", "nested"]), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", "story") == texts(20)
    assert documents(tmp_path / "a.parquet", "nested.inner") == [str(i) for i in range(20)]
    assert "has no column text; those of text are story, nested.inner" in refusal(tmp_path / "a.parquet")
    assert "column number is not of strings" in refusal(tmp_path / "a.parquet", "number")


def test_twenty_row_groups_pass_in_constant_memory(tmp_path):
    group = [os.urandom(500).hex() for _ in range(8000)]  # 8 MB each
    peaks = []
    for name, groups in [("one", 1), ("twenty", 20)]:
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
            for _ in range(groups):
                writer.write_table(pa.table({"text": group}))
        assert pq.ParquetFile(tmp_path / f"{name}.parquet").num_row_groups == groups
        with open(tmp_path / f"{name}.out", "wb") as out:
            ended = subprocess.run([PROGRAM, tmp_path / f"{name}.parquet", "text"], stdout=out, stderr=subprocess.PIPE)
        assert (tmp_path / f"{name}.out").stat().st_size == groups * 8000 * 1004
        peaks.append(int(ended.stderr))
    assert peaks[1] < peaks[0] + 30e6, peaks  # all of it is 160 MB


@pytest.mark.parametrize("damage", ["cut off", "no parquet", "a bit", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / "b.parquet"
    pq.write_table(table_of(texts(500), "string"), file, write_page_checksum=True, compression="none")
    whole = bytearray(file.read_bytes())
    if damage == "cut off":
        whole = whole[: len(whole) // 2]
    if damage == "no parquet":
        whole = b"PAR0" + b"x" * 100
    if damage == "a bit":
        whole[len(whole) // 3] ^= 1
    if damage == "empty":
        whole = b""
    file.write_bytes(whole)
    said = refusal(file)
    assert said.startswith(f"{file}: is damaged or no Parquet file: ") and "\n" not in said, said


def test_any_flipped_bit_is_a_sentence_or_another_text(tmp_path):
    file = tmp_path / "b.parquet"
    values = texts(50)
    pq.write_table(table_of(values, "string"), file, write_page_checksum=True)
    whole = file.read_bytes()
    chance = random.Random(5)
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        ended = ask(file)
        assert ended.returncode in (0, 2), (ended.returncode, ended.stderr)
        if ended.returncode == 2:
            assert str(file) in ended.stderr.decode() and ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("rows", [49, 51])
def test_a_page_that_lies_about_its_rows_loses_none_silently(tmp_path, rows):
    file = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": texts(50)}), file, use_dictionary=False, compression="none")
    whole = bytearray(file.read_bytes())
    header = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    # Thrift: a DataPageHeader (0x2c), whose first field is an int32 (0x15): num_values, doubled.
    at = whole.index(bytes([0x2C, 0x15, 2 * 50]), header)
    whole[at + 2] = 2 * rows
    file.write_bytes(whole)
    said = refusal(file)
    assert said.startswith(f"{file}: is damaged or no Parquet file: ") and "\n" not in said, said
    if rows < 50:
        assert said.endswith("row group 0 has 49 of its 50 rows")


def test_a_place_in_a_file_is_found_again(tmp_path):
    values = texts(1000)
    pq.write_table(table_of(values, "string"), tmp_path / "a.parquet", row_group_size=300)
    for record in [1, 299, 300, 301, 899, 999]:
        assert documents(tmp_path / "a.parquet", "text", 0, record) == values[record:]
    assert documents(tmp_path / "a.parquet", "text", 0, 1000) == []
    lines(tmp_path / "a.jsonl", values)
    for record in [1, 500, 999]:
        assert documents(tmp_path / "a.jsonl", "text", 0, record) == values[record:]


# --------------------------------------------------------------------------------------------------------------- jsonl


def lines(path, values, end="\n", last_end=True, **options):
    text = end.join(json.dumps({"id": i, "text": value}, **options) for i, value in enumerate(values)) + end * last_end
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("ascii", [True, False])
def test_lines(tmp_path, end, last_end, ascii):
    values = texts(2000)
    file = lines(tmp_path / "a.jsonl", values, end, last_end, ensure_ascii=ascii)
    assert documents(file) == values
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert documents(tmp_path / "a.jsonl.gz") == values
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as out:
        out.write(file.read_bytes())
    assert documents(tmp_path / "a.jsonl.zst") == values


def test_lines_that_are_odd(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a\\ud83d\\ude42b\\ud83d c\\ude42 \\\\ud83d"}\n\n  \r\n{"text": null}\n{"text": ""}\n'
                     b'{"text": "\xff\xe2\x82 end"}\n{"text": "' + b"x" * 3_000_000 + b'", "other": [1]}')
    assert documents(file) == ["a🙂b\ufffd c\ufffd \\ud83d", "", "", "\ufffd\ufffd end", "x" * 3_000_000]


@pytest.mark.parametrize("line, says", [
    (b'{"text": "a"', "line 3: is no JSON, from byte 13 on"),
    (b"[1]", 'line 3: is no JSON object, {"text": "…"}'),
    (b'{"story": "a", "n": 1}', 'line 3: has no "text"; its texts are story (dataset.text_column)'),
    (b'{"text": 1}', 'line 3: "text" is no string'),
    (b'{"text": "a", "n": 1e400}', "line 3: holds a number beyond 1.8e308, the largest there is in 64 bits"),
])  # fmt: skip
def test_a_line_that_is_wrong_is_named(tmp_path, line, says):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    assert refusal(file) == f"{file}, {says}"


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut off", "cut off in its second part", "empty", "a bit"])
def test_a_damaged_compressed_file_is_named(tmp_path, kind, damage):
    file = tmp_path / f"a.jsonl.{kind}"
    plain = lines(tmp_path / "a.jsonl", [os.urandom(300).hex() for _ in range(3000)]).read_bytes()
    packed = gzip.compress(plain) if kind == "gz" else pa.compress(plain, "zstd", asbytes=True)
    packed = bytearray(packed)
    if damage == "cut off":
        packed = packed[: len(packed) // 2]
    elif damage == "cut off in its second part":
        file.write_bytes(packed + packed)  # parts follow each other, as `cat` puts them
        assert len(documents(file)) == 6000
        packed = packed + packed[:9]
    elif damage == "empty":
        packed = b""
    else:
        packed[2] ^= 0xFF  # of the header, which each of the two kinds has
    file.write_bytes(packed)
    said = refusal(file)
    assert said.startswith(f"{file}"), said
    assert "\n" not in said


# ----------------------------------------------------------------------------------------------------- files and names


def test_text_files_are_documents(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two\r\nlines, no end")
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_bytes(b"\xffthree")
    (tmp_path / ".hidden.txt").write_bytes(b"not this")
    (tmp_path / "README.md").write_bytes(b"nor this")
    assert documents(tmp_path) == ["", "two\r\nlines, no end", "\ufffdthree"]
    assert documents(tmp_path / "?.txt") == ["", "two\r\nlines, no end"]
    big = "0123456789" * 10_000_000
    (tmp_path / "big.txt").write_text(big)
    assert documents(tmp_path / "big.txt") == [big]


def test_names_that_mean_nothing(tmp_path):
    assert "gone.jsonl\" does not exist; use builtin:stories" in refusal(tmp_path / "gone.jsonl")
    assert "?.jsonl\" does not exist; use builtin:stories" in refusal(tmp_path / "?.jsonl")
    assert "holds no file of text" in refusal(tmp_path)
    (tmp_path / "a.csv").write_text("a")
    assert "is of no kind that is read" in refusal(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("a")
    lines(tmp_path / "b.jsonl", ["b"])
    assert f"has .jsonl and .txt files; name one kind with a pattern, such as {tmp_path}/*.jsonl" in refusal(tmp_path)
