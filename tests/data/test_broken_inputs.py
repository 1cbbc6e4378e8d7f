"""Broken inputs of every reader: each ends in one line that names file, place and remedy, none in a library's error."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from retromae_jax.errors import InputError
from retromae_jax.retrieval.runs import read_run
from tests.readers import BEIR, EMBEDDINGS, READERS, Reader, npy, parquet, put, read_blocks, read_texts


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


LINES = b'{"text": "one"}\n{"text": "two"}\n' * 2000
TEXTS = parquet(pa.table({"text": [f"text number {number}" for number in range(3000)]}))

# Of each reader and file: what the file holds, and what the message says behind the file's name, the line first.
BROKEN = {
    ("text", "a.jsonl"): [
        (b'{"text": "a"}\n{"text": "\xff"}\n', "2: byte 11 of the line is not UTF-8; mend"),
        (b'{"text": "a"}\n{"text": "b"\n', "2: no valid JSON: .*; mend or remove"),
        (b'{"title": "a"}\n', r"1: no key 'text', but the keys \['title'\]; mend"),
        (b'["a"]\n', "1: a JSON list where one object a line is expected; write"),
        (b'{"text": 1}\n', "1: 'text' holds a int, not text; mend"),
        (b'{"text": "\\ud800"}\n', "1: 'text' holds half of a surrogate pair .*; mend"),
        (b"[" * 200_000 + b"\n", "1: no valid JSON: .*; mend or remove"),
        (b'{"text": ' + b"9" * 5000 + b"}\n", "1: no valid JSON: .*; mend or remove"),
        (b'{"text": "a\x00"}\n', "1: no valid JSON: .*; mend or remove"),
        ('{"text": "a"}\n'.encode("utf-16"), "1: byte 1 of the line is not UTF-8; mend"),
    ],
    ("text", "a.jsonl.gz"): [
        (gzip.compress(LINES)[:-40], r"\d+: the file cannot be read on .*fetch it again"),
        (flipped(gzip.compress(LINES), 30), r"\d+: the file cannot be read on .*fetch"),
        (LINES, "1: the file cannot be read on .*fetch it again"),
    ],
    ("text", "a.jsonl.bz2"): [
        (b"BZh9" + bytes(40), "1: the file cannot be read on .*fetch it again"),
    ],
    ("text", "a.jsonl.xz"): [
        (b"\xfd7zXZ" + bytes(40), "1: the file cannot be read on .*fetch it again"),
    ],
    ("text", "a.txt"): [
        (b"\xff\xfeo\x00n\x00e\x00", "1: byte 1 of the line is not UTF-8; mend"),
        (b"one\ntw\xe9o\n", "2: byte 3 of the line is not UTF-8; mend"),
    ],
    ("text", "a.tsv"): [
        (b"1\t" + b"x" * 10**7 + b"\xff\n", "1: byte 10000003 of the line is not UTF-8; mend"),
        (b"1\tone\n2\n", "2: 1 columns between tabs where the 2 of the first line are .*; mend"),
        (b"1\tone\n2\tt\two\n", "2: 3 columns between tabs where the 2 .*; mend"),
        (b"1\t2\t3\t4\t5\n", "1: 5 columns between tabs where id, .*; mend"),
    ],
    ("text", "a.parquet"): [
        (parquet(pa.table({"body": ["a"]})), " no column 'text', but 'body'; set"),
        (parquet(pa.table({"text": [1]})), " column 'text' holds int64, not text; set"),
        (b"", " the parquet file cannot be read on from row 1: .*fetch it again"),
        (TEXTS[:-100], " the parquet file cannot be read on from row 1: .*fetch it again"),
        (flipped(TEXTS, 60), " the parquet file cannot be read on from row 1: .*fetch"),
        (b"no parquet at all", " the parquet file cannot be read on from row 1: .*fetch"),
    ],
    ("text", "a.xml"): [
        (b"<mediawiki>\n<page><ns>0</ns>\n", "3: no valid XML at column 1: .*fetch it again"),
        (b"<rss></rss>", " no MediaWiki dump: it begins with <rss> instead of <mediawiki>"),
    ],
    ("text", "a.pdf"): [
        (b"%PDF", " its name does not end in a known format .*; rename it"),
    ],
    ("beir", "corpus.jsonl"): [
        (b'{"_id": "d1", "text": "\xff"}\n', "1: byte 24 .* not UTF-8; mend"),
        (b'{"_id": "d1"}\n', r"1: no text under the key 'text', but the keys \['_id'\]; mend"),
        (b'{"text": "a"}\n', r"1: no text under the key '_id', but the keys \['text'\]; mend"),
        (b'{"_id": 1.5, "text": "a"}\n', "1: no text under the key '_id', but .*; mend"),
        (b'{"_id": "d 1", "text": "a"}\n', "1: the id 'd 1' .* white space .*; give"),
        (BEIR["corpus.jsonl"] * 2, "3: the id 'd1' stands on line 1 already; remove"),
        (b"", " the file is empty; fetch or make it again"),
        (b"\n\n\n", " the file is empty; fetch or make it again"),
        (b'{"_id": "d1", "text": "a"}\n\n{"_id": "d2", "text": "a"}\n', "2: no valid"),
        (b"[" * 200_000, "1: no valid JSON: .*; mend or remove"),
        (b'{"_id": "d1", "text": NaN}\n', "1: no text under the key 'text', but the keys .*; mend"),
        (b'{"_id": "d1", "text": "' + b"x" * 10**7 + b"\n", "1: no valid JSON: .*; mend or remove"),
    ],
    ("beir", "queries.jsonl"): [
        (b'{"_id": "q1", "text": "\xff"}\n', "1: byte 24 of the line is not UTF-8; mend"),
        (b'{"_id": "q1", "text": " "}\n', "1: the query 'q1' is empty; give it words"),
        (BEIR["queries.jsonl"] * 2, "2: the id 'q1' stands on line 1 already; remove"),
    ],
    ("beir", "qrels/test.tsv"): [
        (b"q1\td1\t1\n", "1: the header is missing; put"),
        (b"query-id\tcorpus-id\tscore\nq1\td\xff\t1\n", "2: byte 5 of the line is not UTF-8; mend"),
        (b"query-id\tcorpus-id\tscore\nq1\td1\tnan\n", "2: the grade 'nan' is no integer; mend"),
        (b"query-id\tcorpus-id\tscore\nq1\td1\t1e999\n", "2: the grade '1e999' is no integer; mend"),
        (b"query-id\tcorpus-id\tscore\n", " there is no judgement in it; fetch"),
        (b"query-id\tcorpus-id\tscore\nq1\td1\n", "2: 2 fields where 3 .*; mend"),
        (b'query-id\tcorpus-id\tscore\nq1\t"' + b"x" * 10**6 + b"\t1\n", "2: no line of a csv file: .*; mend"),
        (b"query-id\tcorpus-id\tscore\nq1\td1\thigh\n", "2: the grade 'high' is no .*mend"),
        (b"query-id\tcorpus-id\tscore\nq1\td1\t1.5\n", r"2: the grade '1\.5' is no .*mend"),
        (b"query-id\tcorpus-id\tscore\nq9\td1\t1\n", " 1 line of 1 have a query that .*take"),
        (b"query-id\tcorpus-id\tscore\nq1\td9\t1\n", r" 1 line .* 'd9' \(line 2\); take"),
        (
            b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t2\n",
            "3: query 'q1' and passage 'd1' were judged 1 on an earlier line; remove",
        ),
    ],
    ("msmarco", "collection.tsv"): [
        (b"0\tCats\n1\tDo\tgs\n", "2: 3 fields where 2 are expected.*; mend"),
        (b"0\tCats\n1\tD\xffgs\n", "2: byte 4 of the line is not UTF-8; mend"),
        (b"0\tCats\n1\n", "2: 1 field where 2 are expected.*; mend"),
        (b"0\tCats\n0\tDogs\n", "2: the id '0' stands on line 1 already; remove"),
        (b"0\tCats\n\tDogs\n", "2: the id '' is empty or has white space.*; give"),
    ],
    ("msmarco", "queries.dev.tsv"): [
        (b"10\twho\n10\twho\n", "2: the id '10' stands on line 1 already; remove"),
        (b"10\tw\xffho\n", "1: byte 5 of the line is not UTF-8; mend"),
        (b"10\t\n", "1: the query '10' is empty; give it words or remove"),
    ],
    ("msmarco", "qrels.dev.tsv"): [
        (b"10 0 0\n", "1: 3 fields where 4 are expected.*; mend"),
        (b"10\t0\t0\tone\n", "1: the grade 'one' is no integer; mend"),
        (b"10\t0\t0\t" + b"9" * 5000 + b"\n", "1: the grade .*; mend"),
    ],
    ("negatives", "negatives.tsv"): [
        (b"10\t1\t0\n", "1: 3 fields where 2 are expected.*; mend"),
        (b"10\t1,7\n", r"1: .*collection\.tsv has no passage '7'; mend"),
        (b"10\t1,,0\n", r"1: .*collection\.tsv has no passage ''; mend"),
        (b"99\t1\n", " none of its queries is judged in the split; take"),
        (b"10\t\xff\n", "1: byte 4 of the line is not UTF-8; mend"),
        (b"", " the file is empty; fetch or make it again"),
    ],
    ("scores", "scores.txt"): [
        (b"10\t0\t1\n10\t1\t1e999\n", "2: the score '1e999' is no finite number; mend"),
        (b"10\t0\t-inf\n", "1: the score '-inf' is no finite number; mend"),
        (b"10\t0\t[nan]\n", r"1: the score '\[nan\]' is no finite number; mend"),
        (b"10\t0\t\n", "1: the score '' is no finite number; mend"),
        (b"10\t0\t" + b"9" * 5000 + b"\n", "1: the score .* is no finite number; mend"),
        (b"10\t0\t1\n10\t\xff\t1\n", "2: byte 4 of the line is not UTF-8; mend"),
        (b"\n\n", " none of its queries is trained on; take"),
    ],
    ("prepared", "train_qrels.txt"): [
        (b"q1\td1\nq1\t\xff\n", "2: byte 4 of the line is not UTF-8; mend"),
        (b"q1\td1,,d2\n", "1: .*corpus has no passage ''; prepare"),
        (b"q1\n", "1: not `query-id TAB passage-id,passage-id,...`; mend"),
        (b"", " the file is empty; fetch or make it again"),
    ],
    ("prepared", "corpus/mapping_id.txt"): [
        (b"d1\t0\nd1\t1\n", "2: the id 'd1' stands on line 1 already; remove"),
        (b"d1\t0\nd2\t0\n", " does not give each of the 2 rows of .*corpus one id; prepare"),
        (b"d1\t0\nd2\tnan\n", " does not give each of the 2 rows of .*corpus one id; prepare"),
        (b"d1\t0\nd\xff2\t1\n", " not lines `id TAB row`: .*; prepare"),
        (b"", " not lines `id TAB row`: .*; prepare"),
    ],
    ("examples", "a.jsonl"): [
        (b'{"query": "x", "positive": "\xff"}\n', "1: byte 29 of the line is not UTF-8; mend"),
        (b'{"query": "x", "positive": "\\ud800"}\n', "1: 'positive' holds half of a surrogate pair .*; mend"),
        (b'{"query": " ", "positive": "y"}\n', "1: no text under 'query' or 'anchor', but the keys .*; mend"),
        (b'{"query": "x", "positive": []}\n', "1: no positive passage, but the keys .*; mend"),
        (b'{"query": "x", "positive_passages": true}\n', "1: 'positive_passages' is no list; mend"),
        (
            b'{"query": "x", "positive_passages": [{"docid": 1, "text": "y", "title": 7}]}\n',
            "1: a passage without 'docid' or 'text', or whose title is no text; mend",
        ),
        (b'{"query": "x", "positive": "y"}\n{"query"\n', "2: no valid JSON: .*; mend"),
        (b"", " the file is empty; fetch or make it again"),
    ],
    ("model", "modules.json"): [
        (b"{", " not valid JSON: .*; fetch or make it again"),
        (b"{}", " a JSON dict where a list is expected; fetch"),
        (b'[{"path": ""}]', " .* is no type and directory of a module; fetch"),
        (b'[{"type": "Transformer", "path": "../other"}]', " .* is no type and directory of a module; fetch"),
        (b'[{"type": "Transformer", "path": "/etc"}]', " .* is no type and directory of a module; fetch"),
        (b'[{"type": "x.Dropout", "path": ""}]', " the modules Dropout are not supported"),
    ],
    ("model", "config.json"): [
        (b"[]", " a JSON list where a dict is expected; fetch"),
        (b'{"hidden_size": "32"}', " hidden_size is '32', not of type int"),
        (b'{"num_attention_heads": 0}', " num_attention_heads 0 is less than 1"),
        (b'{"model_type": ["bert"]}', r" model_type is \['bert'\]; known are"),
    ],
    ("embeddings", "embeddings.json"): [
        (b"{", " not valid JSON: .*; make"),
        (b'{"count": "3"}', " count is '3', not a number above 0; make"),
        (EMBEDDINGS["embeddings.json"].replace(b"float16", b"int8"), " dtype is 'int8', none of .*; make"),
        (EMBEDDINGS["embeddings.json"].replace(b"3", b"9" * 30), " count is 9+, more than 100,000 shards have; make"),
    ],
    ("embeddings", "ids.txt"): [
        (b"d1\nd2\n", " 2 ids of 3 embeddings; make"),
        (b"d1\nd2\nd\xff\n", "3: byte 2 of the line is not UTF-8; mend"),
        (b"d1\nd2\nd1\n", "3: the id 'd1' stands on line 1 already; remove"),
        (b"d1\nd 2\nd3\n", "2: the id 'd 2' .* white space .*; give"),
    ],
    ("run", "a.trec"): [
        (b"q1 Q0 d1 1 0.5\n", "1: 5 fields where 6 are expected.*; mend"),
        (b"q1 Q0 d1 1 high t\n", "1: the score 'high' is no finite 32-bit number; mend"),
        (b"q1 Q0 d1 1 nan t\n", "1: the score 'nan' is no finite 32-bit number; mend"),
        (b"q1 Q0 d1 1 -inf t\n", "1: the score '-inf' is no finite 32-bit number; mend"),
        (b"q1 Q0 d1 1 1e999 t\n", "1: the score '1e999' is no finite 32-bit number; mend"),
        (b"q1 Q0 d1 1 1e99 t\n", "1: the score '1e99' is no finite 32-bit number; mend"),
        (b"q1 Q0 d1 1 1 t\nq1 Q0 d1 2 1 t\n", "2: passage 'd1' stands twice .*; remove"),
        (b"q1 Q0 d\xff1 1 1 t\n", "1: byte 8 of the line is not UTF-8; mend"),
        (b"q1 Q0 d1 1 1 t\n\nq1 Q0 d2 1 1 t\n", "2: the line is blank; remove it"),
        (b"", " the file is empty; "),
    ],
}


def refused(read: Callable[[Path], object], directory: Path) -> str:
    """The message of the InputError; it is one line, not too long to read."""
    with pytest.raises(InputError) as error:
        read(directory)
    message = str(error.value)
    assert str(directory) in message and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("reader", "name", "row"),
    [(reader, name, row) for (reader, name), rows in BROKEN.items() for row in range(len(rows))],
)
def test_broken_file(tmp_path, reader, name, row):
    content, message = BROKEN[reader, name][row]
    reader = READERS.get(reader, Reader(read_texts, {}))
    put(tmp_path, reader.files | {name: content})
    said = refused(reader.read, tmp_path)
    assert re.search(f"{re.escape(str(tmp_path / name))}:{message}", said), said


def test_a_packed_collection_that_ends_early(tmp_path):
    packed = gzip.compress(b"".join(b'{"_id": "d%d", "text": "a text"}\n' % number for number in range(5000)))
    put(tmp_path, BEIR | {"corpus.jsonl.gz": packed[:-40]})
    (tmp_path / "corpus.jsonl").unlink()
    said = refused(READERS["beir"].read, tmp_path)
    assert re.search(r"corpus\.jsonl\.gz:\d+: cannot be unpacked any further: .*fetch it again", said), said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        EMBEDDINGS["vectors-00000-of-00002.npy"][:-1],
        npy(np.ones((2, 3), np.float16)),
        npy(np.ones((2, 2), np.float64)),
        npy(np.array([["a", "b"], ["c", None]], object)),
    ],
)
def test_embeddings_that_are_cut_short_or_others(tmp_path, content):
    put(tmp_path, EMBEDDINGS | {"vectors-00000-of-00002.npy": content})
    said = refused(READERS["embeddings"].read, tmp_path)
    assert re.search(
        r"1 of 2 shards are missing or cut short, the first is vectors-00000-of-00002\.npy; start", said
    ), said


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
    said = refused(read_blocks, tmp_path / "blocks")
    assert re.search(message, said), said


def test_token_blocks_without_rows(tmp_path):
    Dataset.from_dict({"token_ids": [[1]]}).select([]).save_to_disk(tmp_path / "blocks")
    assert "make it again" in refused(read_blocks, tmp_path / "blocks")


def test_a_directory_that_is_no_saved_dataset(tmp_path):
    for name, content in (("readme.txt", b""), ("state.json", b"{")):
        put(tmp_path, {name: content})
        assert "no saved Hugging Face dataset that can be read: " in refused(read_blocks, tmp_path)


def test_a_saved_dataset_keeps_to_its_directory(tmp_path):
    Dataset.from_dict({"token_ids": [[1]]}).save_to_disk(tmp_path / "other")
    Dataset.from_dict({"token_ids": [[1]]}).save_to_disk(tmp_path / "blocks")
    (data,) = (tmp_path / "other").glob("*.arrow")
    state = json.loads((tmp_path / "blocks" / "state.json").read_text())
    for outside in (str(data), f"../other/{data.name}"):
        (tmp_path / "blocks" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": outside}]}))
        assert f"its file '{outside}' is outside of it; make" in refused(read_blocks, tmp_path / "blocks")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "offsets", "description"])
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
    elif damage == "offsets":
        content = data.read_bytes()
        offset = content.index(np.arange(0, 300, 3, np.int32).tobytes()) + 40 * 4
        data.write_bytes(content[:offset] + np.int32(2**30).tobytes() + content[offset + 4 :])
    else:
        (directory / "prepare.json").write_text("{")
    said = refused(read_blocks, directory)
    assert "make it again" in said or "make token blocks with" in said


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
