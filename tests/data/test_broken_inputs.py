"""Broken inputs of every reader: each ends in one line that names file, place and remedy, none in a library's error."""

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.data.retrieval import load_collection, read_negatives
from retromae_jax.data.text import open_sources
from retromae_jax.errors import InputError
from retromae_jax.retrieval.runs import read_run

BEIR = {
    "corpus.jsonl": b'{"_id": "d1", "title": "", "text": "Cats purr."}\n{"_id": "d2", "text": "Dogs bark."}\n',
    "queries.jsonl": b'{"_id": "q1", "text": "who purrs"}\n',
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n",
}
MSMARCO = {
    "collection.tsv": b"0\tCats purr.\n1\tDogs bark.\n",
    "queries.dev.tsv": b"10\twho purrs\n",
    "qrels.dev.tsv": b"10\t0\t0\t1\n",
}


def read_texts(directory):
    (path,) = directory.iterdir()
    return [document.text for source in open_sources([str(path)], "text") for document in source.documents()]


def read_negatives_of(directory):
    collection = load_collection(directory, "dev")
    return read_negatives([directory / "negatives.tsv"], list(collection.queries), collection.passages, 10)


def read_blocks(directory):
    blocks = TokenBlocks(directory)
    return [blocks[index].tolist() for index in range(len(blocks))]


class Reader(NamedTuple):
    """A reader, and the good files that one is put among."""

    read: Callable
    files: dict[str, bytes]


READERS = {
    "text": Reader(read_texts, {}),
    "beir": Reader(lambda directory: load_collection(directory, "test"), BEIR),
    "msmarco": Reader(lambda directory: load_collection(directory, "dev"), MSMARCO),
    "negatives": Reader(read_negatives_of, MSMARCO),
    "run": Reader(lambda directory: read_run(next(directory.iterdir())), {}),
    "blocks": Reader(read_blocks, {}),
}


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


LINES = b'{"text": "one"}\n{"text": "two"}\n' * 2000
TEXTS = parquet(pa.table({"text": [f"text number {number}" for number in range(3000)]}))

# Reader, file, its content, and where (file and line) and what the message says.
BROKEN = [
    # Text.
    ("text", "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2: byte 11 of the line is not UTF-8; mend"),
    ("text", "a.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"a\.jsonl:2: no valid JSON: .*; mend or remove"),
    ("text", "a.jsonl", b'{"title": "a"}\n', r"a\.jsonl:1: no key 'text', but the keys \['title'\]; mend"),
    ("text", "a.jsonl", b'["a"]\n', r"a\.jsonl:1: a JSON list where one object a line is expected; write"),
    ("text", "a.jsonl", b'{"text": 1}\n', r"a\.jsonl:1: 'text' holds a int, not text; mend"),
    ("text", "a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: 'text' holds half of a surrogate pair .*; mend"),
    ("text", "a.jsonl", b"[" * 200_000 + b"\n", r"a\.jsonl:1: no valid JSON: .*; mend or remove"),
    ("text", "a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:1: no valid JSON: .*; mend or remove"),
    ("text", "a.jsonl", b'{"text": "a\x00"}\n', r"a\.jsonl:1: no valid JSON: .*; mend or remove"),
    ("text", "a.jsonl", '{"text": "a"}\n'.encode("utf-16"), r"a\.jsonl:1: byte 1 of the line is not UTF-8; mend"),
    (
        "text",
        "a.jsonl.gz",
        gzip.compress(LINES)[:-40],
        r"a\.jsonl\.gz:\d+: the file cannot be read on .*fetch it again",
    ),
    ("text", "a.jsonl.gz", flipped(gzip.compress(LINES), 30), r"a\.jsonl\.gz:\d+: the file cannot be read on .*fetch"),
    ("text", "a.jsonl.gz", LINES, r"a\.jsonl\.gz:1: the file cannot be read on .*fetch it again"),
    ("text", "a.jsonl.bz2", b"BZh9" + bytes(40), r"a\.jsonl\.bz2:1: the file cannot be read on .*fetch it again"),
    ("text", "a.jsonl.xz", b"\xfd7zXZ" + bytes(40), r"a\.jsonl\.xz:1: the file cannot be read on .*fetch it again"),
    ("text", "a.txt", b"one\ntw\xe9o\n", r"a\.txt:2: byte 3 of the line is not UTF-8; mend"),
    ("text", "a.tsv", b"1\tone\n2\n", r"a\.tsv:2: 1 columns between tabs where the 2 of the first line are .*; mend"),
    ("text", "a.tsv", b"1\tone\n2\tt\two\n", r"a\.tsv:2: 3 columns between tabs where the 2 .*; mend"),
    ("text", "a.tsv", b"1\t2\t3\t4\t5\n", r"a\.tsv:1: 5 columns between tabs where id, .*; mend"),
    ("text", "a.parquet", parquet(pa.table({"body": ["a"]})), r"a\.parquet: no column 'text', but 'body'; set"),
    ("text", "a.parquet", parquet(pa.table({"text": [1]})), r"a\.parquet: column 'text' holds int64, not text; set"),
    ("text", "a.parquet", b"", r"a\.parquet: the parquet file cannot be read on from row 1: .*fetch it again"),
    ("text", "a.parquet", TEXTS[:-100], r"a\.parquet: the parquet file cannot be read on from row 1: .*fetch it again"),
    ("text", "a.parquet", flipped(TEXTS, 60), r"a\.parquet: the parquet file cannot be read on from row 1: .*fetch"),
    ("text", "a.parquet", b"no parquet at all", r"a\.parquet: the parquet file cannot be read on from row 1: .*fetch"),
    ("text", "a.xml", b"<mediawiki>\n<page><ns>0</ns>\n", r"a\.xml:3: no valid XML at column 1: .*fetch it again"),
    ("text", "a.xml", b"<rss></rss>", r"a\.xml: no MediaWiki dump: it begins with <rss> instead of <mediawiki>"),
    ("text", "a.pdf", b"%PDF", r"a\.pdf: its name does not end in a known format .*; rename it"),
    # BEIR.
    ("beir", "corpus.jsonl", b'{"_id": "d1", "text": "\xff"}\n', r"corpus\.jsonl:1: byte 24 .* not UTF-8; mend"),
    (
        "beir",
        "corpus.jsonl",
        b'{"_id": "d1"}\n',
        r"corpus\.jsonl:1: no text under the key 'text', but the keys \['_id'\]; mend",
    ),
    (
        "beir",
        "corpus.jsonl",
        b'{"text": "a"}\n',
        r"corpus\.jsonl:1: no text under the key '_id', but the keys \['text'\]; mend",
    ),
    (
        "beir",
        "corpus.jsonl",
        b'{"_id": 1.5, "text": "a"}\n',
        r"corpus\.jsonl:1: no text under the key '_id', but .*; mend",
    ),
    (
        "beir",
        "corpus.jsonl",
        b'{"_id": "d 1", "text": "a"}\n',
        r"corpus\.jsonl:1: the id 'd 1' .* white space .*; give",
    ),
    (
        "beir",
        "corpus.jsonl",
        BEIR["corpus.jsonl"] * 2,
        r"corpus\.jsonl:3: the id 'd1' stands on line 1 already; remove",
    ),
    ("beir", "corpus.jsonl", b"", r"corpus\.jsonl: the file is empty; fetch or make it again"),
    ("beir", "corpus.jsonl", b"\n\n\n", r"corpus\.jsonl: the file is empty; fetch or make it again"),
    (
        "beir",
        "corpus.jsonl",
        b'{"_id": "d1", "text": "a"}\n\n{"_id": "d2", "text": "a"}\n',
        r"corpus\.jsonl:2: no valid",
    ),
    ("beir", "corpus.jsonl", b"[" * 200_000, r"corpus\.jsonl:1: no valid JSON: .*; mend or remove"),
    (
        "beir",
        "queries.jsonl",
        b'{"_id": "q1", "text": " "}\n',
        r"queries\.jsonl:1: the query 'q1' is empty; give it words",
    ),
    (
        "beir",
        "queries.jsonl",
        BEIR["queries.jsonl"] * 2,
        r"queries\.jsonl:2: the id 'q1' stands on line 1 already; remove",
    ),
    ("beir", "qrels/test.tsv", b"q1\td1\t1\n", r"test\.tsv:1: the header is missing; put"),
    ("beir", "qrels/test.tsv", b"query-id\tcorpus-id\tscore\n", r"test\.tsv: there is no judgement in it; fetch"),
    ("beir", "qrels/test.tsv", b"query-id\tcorpus-id\tscore\nq1\td1\n", r"test\.tsv:2: 2 fields where 3 .*; mend"),
    (
        "beir",
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\nq1\td1\thigh\n",
        r"test\.tsv:2: the grade 'high' is no .*mend",
    ),
    (
        "beir",
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\nq1\td1\t1.5\n",
        r"test\.tsv:2: the grade '1\.5' is no .*mend",
    ),
    (
        "beir",
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\nq9\td1\t1\n",
        r"test\.tsv: 1 line of 1 have a query that .*take",
    ),
    (
        "beir",
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\nq1\td9\t1\n",
        r"test\.tsv: 1 line .* 'd9' \(line 2\); take",
    ),
    (
        "beir",
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t2\n",
        r"test\.tsv:3: query 'q1' and passage 'd1' were judged 1 on an earlier line; remove",
    ),
    # MS MARCO.
    ("msmarco", "collection.tsv", b"0\tCats\n1\tDo\tgs\n", r"collection\.tsv:2: 3 fields where 2 are expected.*; mend"),
    ("msmarco", "collection.tsv", b"0\tCats\n1\n", r"collection\.tsv:2: 1 field where 2 are expected.*; mend"),
    (
        "msmarco",
        "collection.tsv",
        b"0\tCats\n0\tDogs\n",
        r"collection\.tsv:2: the id '0' stands on line 1 already; remove",
    ),
    (
        "msmarco",
        "collection.tsv",
        b"0\tCats\n\tDogs\n",
        r"collection\.tsv:2: the id '' is empty or has white space.*; give",
    ),
    ("msmarco", "queries.dev.tsv", b"10\tw\xffho\n", r"queries\.dev\.tsv:1: byte 5 of the line is not UTF-8; mend"),
    ("msmarco", "queries.dev.tsv", b"10\t\n", r"queries\.dev\.tsv:1: the query '10' is empty; give it words or remove"),
    ("msmarco", "qrels.dev.tsv", b"10 0 0\n", r"qrels\.dev\.tsv:1: 3 fields where 4 are expected.*; mend"),
    ("msmarco", "qrels.dev.tsv", b"10\t0\t0\tone\n", r"qrels\.dev\.tsv:1: the grade 'one' is no integer; mend"),
    ("msmarco", "qrels.dev.tsv", b"10\t0\t0\t" + b"9" * 5000 + b"\n", r"qrels\.dev\.tsv:1: the grade .*; mend"),
    # Hard negatives.
    ("negatives", "negatives.tsv", b"10\t1\t0\n", r"negatives\.tsv:1: 3 fields where 2 are expected.*; mend"),
    ("negatives", "negatives.tsv", b"10\t1,7\n", r"negatives\.tsv:1: .*collection\.tsv has no passage '7'; mend"),
    ("negatives", "negatives.tsv", b"10\t1,,0\n", r"negatives\.tsv:1: .*collection\.tsv has no passage ''; mend"),
    ("negatives", "negatives.tsv", b"99\t1\n", r"negatives\.tsv: none of its queries is judged in the split; take"),
    ("negatives", "negatives.tsv", b"10\t\xff\n", r"negatives\.tsv:1: byte 4 of the line is not UTF-8; mend"),
    ("negatives", "negatives.tsv", b"", r"negatives\.tsv: the file is empty; fetch or make it again"),
    # Runs.
    ("run", "a.trec", b"q1 Q0 d1 1 0.5\n", r"a\.trec:1: 5 fields where 6 are expected.*; mend"),
    ("run", "a.trec", b"q1 Q0 d1 1 high t\n", r"a\.trec:1: the score 'high' is no finite 32-bit number; mend"),
    ("run", "a.trec", b"q1 Q0 d1 1 nan t\n", r"a\.trec:1: the score 'nan' is no finite 32-bit number; mend"),
    ("run", "a.trec", b"q1 Q0 d1 1 1e99 t\n", r"a\.trec:1: the score '1e99' is no finite 32-bit number; mend"),
    ("run", "a.trec", b"q1 Q0 d1 1 1 t\nq1 Q0 d1 2 1 t\n", r"a\.trec:2: passage 'd1' stands twice .*; remove"),
    ("run", "a.trec", b"q1 Q0 d\xff1 1 1 t\n", r"a\.trec:1: byte 8 of the line is not UTF-8; mend"),
    ("run", "a.trec", b"q1 Q0 d1 1 1 t\n\nq1 Q0 d2 1 1 t\n", r"a\.trec:2: 0 fields where 6 are expected.*; mend"),
    ("run", "a.trec", b"", r"a\.trec: the file is empty; "),
    # Token blocks.
    ("blocks", "state.json", b"{", r"no saved Hugging Face dataset that can be read: .*; make it again"),
    ("blocks", "readme.txt", b"", r"no saved Hugging Face dataset that can be read: .*; make it again"),
]


def put(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def refused(reader: str, directory: Path) -> str:
    """The message of the InputError; it is one line, not too long to read."""
    with pytest.raises(InputError) as error:
        READERS[reader].read(directory)
    message = str(error.value)
    assert str(directory) in message and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize(("reader", "name", "content", "message"), BROKEN, ids=range(len(BROKEN)))
def test_broken_file(tmp_path, reader, name, content, message):
    put(tmp_path, READERS[reader].files | {name: content})
    said = refused(reader, tmp_path)
    assert re.search(message, said), said


TABLES = {
    "other column": ({"ids": [[1, 2]]}, "no column 'token_ids', but 'ids'; make"),
    "no lists": ({"token_ids": [1, 2]}, "column 'token_ids' holds int64, not lists of integers"),
    "lists of floats": ({"token_ids": [[1.5]]}, "holds list<.*double>, not lists of integers"),
    "nulls": ({"token_ids": [[1], None]}, "column 'token_ids' has nulls; make token blocks with"),
}


@pytest.mark.parametrize("table", TABLES)
def test_token_blocks_of_the_wrong_kind(tmp_path, table):
    columns, message = TABLES[table]
    Dataset(pa.table(columns)).save_to_disk(tmp_path / "blocks")
    said = refused("blocks", tmp_path / "blocks")
    assert re.search(message, said), said


def test_token_blocks_without_rows(tmp_path):
    Dataset.from_dict({"token_ids": [[1]]}).select([]).save_to_disk(tmp_path / "blocks")
    assert "make it again" in refused("blocks", tmp_path / "blocks")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "description"])
def test_token_blocks_that_are_damaged(tmp_path, damage):
    directory = tmp_path / "blocks"
    Dataset.from_dict({"token_ids": [[1, 2, 3]] * 5000}).save_to_disk(directory)
    (data,) = directory.glob("*.arrow")
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:2000])
    elif damage == "emptied":
        data.write_bytes(b"")
    elif damage == "missing":
        data.unlink()
    else:
        (directory / "prepare.json").write_text("{")
    assert "make it again" in refused("blocks", directory)


# What is put up with: Windows' line ends and byte order marks, lines of ten megabytes, and empty texts where they are
# counted (by train.prepare) or said (by collections).
LONG = "word " * 2_000_000


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": ""}\r\n{"text": null}\r\n', ["one", "", ""]),
        ("a.jsonl", json.dumps({"text": LONG}).encode(), [LONG]),
        ("a.tsv", b"\xef\xbb\xbf1\tone\r\n\r\n2\t\r\n", ["one", ""]),
        ("a.tsv", f"1\t{LONG}\n".encode(), [LONG]),
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\n\r\ntwo\r\n", ["one", "two"]),
        ("a.parquet", parquet(pa.table({"text": ["one", "", None, LONG]})), ["one", "", "", LONG]),
        ("a.jsonl", b"", []),
    ],
    ids=range(7),
)
def test_unusual_texts_are_read(tmp_path, name, content, texts):
    put(tmp_path, {name: content})
    assert read_texts(tmp_path) == texts


@pytest.mark.parametrize("layout", ["beir", "msmarco"])
def test_unusual_collections_are_read(tmp_path, layout, capsys):
    reader = READERS[layout]
    for directory, changed in {
        "plain": lambda x: x,
        "windows": lambda x: b"\xef\xbb\xbf" + x.replace(b"\n", b"\r\n"),
    }.items():
        put(tmp_path / directory, {name: changed(content) for name, content in reader.files.items()})
    plain, windows = (reader.read(tmp_path / directory) for directory in ("plain", "windows"))
    assert list(plain.passages) == list(windows.passages)
    assert (plain.queries, plain.qrels) == (windows.queries, windows.qrels)
    name = next(iter(reader.files))
    line = json.dumps({"_id": "9", "text": LONG}) if layout == "beir" else f"9\t{LONG}"
    empty = '{"_id": "8", "text": ""}' if layout == "beir" else "8\t"
    put(tmp_path / "plain", {name: reader.files[name] + f"{line}\n{empty}\n".encode()})
    capsys.readouterr()
    assert [len(passage.text) for passage in reader.read(tmp_path / "plain").passages][2:] == [len(LONG), 0]
    assert f"{name}:4: a passage without title and text, one of 1 such" in capsys.readouterr().err


def test_unusual_runs_are_read(tmp_path):
    (tmp_path / "a.trec").write_bytes(b"\xef\xbb\xbfq1 Q0 d1 1 0.5 t\r\nq1 Q0 d2 2 -1e3 t\r\n")
    assert read_run(tmp_path / "a.trec") == {"q1": {"d1": 0.5, "d2": -1000.0}}
