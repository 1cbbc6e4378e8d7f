import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from retromae_jax.data.retrieval import Passage, load_collection, load_passages, read_negatives
from retromae_jax.errors import InputError

PASSAGES = {"d1": ("Cats", "Cats purr."), "d2": ("", "Dogs bark, naïvely."), "d3": ("Äpfel", "Apples fall.")}
QUERIES = {"q1": "who purrs", "q2": "what falls", "q3": "not judged"}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    directory = tmp_path / "beir"
    corpus = [{"_id": key, "title": title, "text": text} for key, (title, text) in PASSAGES.items()]
    write(directory / "corpus.jsonl", json_lines(corpus))
    write(directory / "queries.jsonl", json_lines([{"_id": key, "text": text} for key, text in QUERIES.items()]))
    write(directory / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq2\td3\t2\nq1\td1\t1\nq1\td2\t0\n")
    return directory


@pytest.fixture
def msmarco(tmp_path: Path) -> Path:
    directory = tmp_path / "msmarco"
    write(directory / "collection.tsv", "0\tCats purr.\n1\tDogs bark.\n2\tApples fall.\n")
    write(directory / "queries.dev.small.tsv", "10\twho purrs\n11\twhat falls\n")
    write(directory / "qrels.dev.small.tsv", "10\t0\t0\t1\n11\t0\t2\t1\n")
    return directory


def expect(message: str, directory: Path, split: str = "test") -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_collection(directory, split)
    assert "\n" not in str(caught.value)


def test_beir(beir):
    collection = load_collection(beir, "test")
    assert list(collection.passages) == [Passage(*passage) for passage in PASSAGES.values()]
    assert collection.passages.ids.to_pylist() == ["d1", "d2", "d3"]
    assert list(collection.queries.items()) == [("q1", "who purrs"), ("q2", "what falls")]
    assert collection.qrels == {"q1": {"d1": 1, "d2": 0}, "q2": {"d3": 2}}
    assert collection.passages.is_titled
    assert collection.relevance_level == 1
    assert [passages.tolist() for passages in collection.relevant_passages()] == [[0], [2]]


def test_passages_in_any_order(beir):
    passages = load_passages(beir)
    assert passages[-1] == passages[np.int64(2)] == Passage("Äpfel", "Apples fall.")
    assert passages[::2] == [Passage("Cats", "Cats purr."), Passage("Äpfel", "Apples fall.")]
    with pytest.raises(IndexError):
        passages[3]
    assert passages.indices(["d3", "d9", "d1"]).tolist() == [2, -1, 0]
    assert passages.indices([]).dtype == np.int64


def test_titles_stand_before_texts(beir):
    passages = load_passages(beir)
    assert list(passages.texts()) == ["Cats Cats purr.", "Dogs bark, naïvely.", "Äpfel Apples fall."]
    assert passages.texts(separator="[SEP]")[:2] == ["Cats[SEP]Cats purr.", "Dogs bark, naïvely."]
    assert list(passages.texts(titles=False)) == ["Cats purr.", "Dogs bark, naïvely.", "Apples fall."]
    assert len(passages.texts()) == 3


def test_text_without_title_key_and_number_as_id(beir):
    write(beir / "corpus.jsonl", '{"_id": 7, "text": "Cats."}\n{"_id": "d3", "title": null, "text": "x", "url": "u"}\n')
    write(beir / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\t7\t1\n")
    passages = load_collection(beir, "test").passages
    assert list(passages) == [Passage("", "Cats."), Passage("", "x")]
    assert passages.indices(["7"]).tolist() == [0]
    assert not passages.is_titled


def test_msmarco(msmarco):
    collection = load_collection(msmarco, "dev")
    assert list(collection.passages.texts()) == ["Cats purr.", "Dogs bark.", "Apples fall."]
    assert collection.queries == {"10": "who purrs", "11": "what falls"}
    assert collection.qrels == {"10": {"0": 1}, "11": {"2": 1}}
    assert collection.relevance_level == 1
    assert not collection.passages.is_titled


def test_msmarco_prefers_the_small_dev_set(msmarco):
    write(msmarco / "queries.dev.tsv", "10\twho purrs\n11\twhat falls\n12\twho barks\n")
    write(msmarco / "qrels.dev.tsv", "12\t0\t1\t1\n")
    assert list(load_collection(msmarco, "dev").queries) == ["10", "11"]
    (msmarco / "qrels.dev.small.tsv").unlink()
    assert list(load_collection(msmarco, "dev").queries) == ["12"]


def test_small_qrels_with_the_full_queries(msmarco):
    (msmarco / "queries.dev.small.tsv").rename(msmarco / "queries.dev.tsv")
    assert list(load_collection(msmarco, "dev").queries) == ["10", "11"]


def test_training_split(msmarco):
    write(msmarco / "queries.train.tsv", "5\ta\n6\tb\n7\tc\n")
    write(msmarco / "qrels.train.tsv", "7\t0\t2\t1\n5\t0\t0\t1\n7\t0\t1\t1\n")
    collection = load_collection(msmarco, "train")
    assert list(collection.queries) == ["5", "7"]
    assert [passages.tolist() for passages in collection.relevant_passages()] == [[0], [2, 1]]


@pytest.mark.parametrize(("split", "year"), [("dl19", "2019"), ("dl20", "2020")])
def test_trec_deep_learning(msmarco, split, year):
    write(msmarco / f"{year}qrels-pass.txt", "19 Q0 0 3\n19 Q0 1 1\n20 0  2 0\n")
    write(
        msmarco / f"msmarco-test{year}-queries.tsv.gz", gzip.compress(b"18\tunjudged\n19\twho purrs\n20\twhat falls\n")
    )
    collection = load_collection(msmarco, split)
    assert collection.qrels == {"19": {"0": 3, "1": 1}, "20": {"2": 0}}
    assert collection.queries == {"19": "who purrs", "20": "what falls"}
    assert collection.relevance_level == 2
    assert [passages.tolist() for passages in collection.relevant_passages()] == [[0], []]


def test_titled_corpus_with_three_columns(msmarco):
    write(msmarco / "corpus.tsv", "0\tCats\tCats purr.\n1\t\tDogs bark.\n2\tFruit\tApples fall.\n")
    passages = load_collection(msmarco, "dev").passages
    assert passages.path.name == "corpus.tsv"
    assert passages.is_titled
    assert list(passages.texts()) == ["Cats Cats purr.", "Dogs bark.", "Fruit Apples fall."]


def test_titles_in_a_file_of_their_own(msmarco):
    (msmarco / "collection.tsv").rename(msmarco / "para.txt")
    write(msmarco / "para.title.txt", "2\tFruit\n0\tCats\n")
    passages = load_collection(msmarco, "dev").passages
    assert passages.is_titled
    assert list(passages.texts()) == ["Cats Cats purr.", "Dogs bark.", "Fruit Apples fall."]
    assert passages[1] == Passage("", "Dogs bark.")
    write(msmarco / "para.title.txt", "2\tFruit\n9\tCats\n")
    expect(r"para\.title\.txt:2: para\.txt has no passage '9'", msmarco, "dev")
    write(msmarco / "para.title.txt", "2\tFruit\n2\tCats\n")
    expect(r"para\.title\.txt:2: the id '2' stands on line 1", msmarco, "dev")


@pytest.mark.parametrize("layout", ["beir", "msmarco"])
def test_same_when_compressed_with_byte_order_mark_and_windows_line_ends(layout, request):
    directory = request.getfixturevalue(layout)
    split = {"beir": "test", "msmarco": "dev"}[layout]
    plain = load_collection(directory, split)
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        content = b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
        write(path.with_name(f"{path.name}.gz"), gzip.compress(content))
        path.unlink()
    packed = load_collection(directory, split)
    assert list(packed.passages) == list(plain.passages)
    assert (packed.queries, packed.qrels) == (plain.queries, plain.qrels)


def test_last_line_without_line_end(msmarco):
    write(msmarco / "collection.tsv", "0\tCats purr.\n1\tDogs bark.\n2\tApples fall.")
    assert load_collection(msmarco, "dev").passages[2].text == "Apples fall."


def test_only_line_feeds_end_lines(msmarco):
    write(msmarco / "collection.tsv", "0\tCats\u2028 purr.\x0b\x85\n1\tDogs\rbark.\n2\tApples fall.\n")
    assert list(load_collection(msmarco, "dev").passages.texts())[:2] == ["Cats\u2028 purr.\x0b\x85", "Dogs\rbark."]


def test_empty_passages_stay_and_are_said(beir, capsys):
    write(beir / "corpus.jsonl", (beir / "corpus.jsonl").read_text() + json_lines([{"_id": "d4", "text": " "}]))
    assert len(load_collection(beir, "test").passages) == 4
    assert re.search(r"corpus\.jsonl:4: a passage without title and text, one of 1", capsys.readouterr().err)


def test_title_alone_is_not_empty(msmarco, capsys):
    write(msmarco / "para.txt", "0\t\n1\tDogs bark.\n2\tApples fall.\n")
    write(msmarco / "para.title.txt", "0\tCats\n")
    assert load_collection(msmarco, "dev").passages.texts()[0] == "Cats"
    assert "without title" not in capsys.readouterr().err


# What is missing.


def test_missing_directory(tmp_path):
    expect("nowhere: no such directory", tmp_path / "nowhere")


def test_unknown_layout_lists_what_is_there(tmp_path):
    write(tmp_path / "notes.txt", "x")
    expect(r"looked for corpus\.jsonl, corpus\.tsv, para\.txt, collection\.tsv .*found notes\.txt", tmp_path)


def test_unknown_split_lists_splits(beir, msmarco):
    expect(r"no qrels of a split 'dev' there: looked for dev\.tsv .*found test\.tsv", beir, "dev")
    expect(r"looked for qrels\.test\.small\.tsv, qrels\.test\.tsv .*qrels\.dev\.small\.tsv", msmarco)
    expect(r"looked for 2019qrels-pass\.txt", msmarco, "dl19")


def test_missing_queries(beir, msmarco):
    (beir / "queries.jsonl").unlink()
    expect(r"no queries there: looked for queries\.jsonl", beir)
    (msmarco / "queries.dev.small.tsv").unlink()
    expect(r"looked for queries\.dev\.small\.tsv, queries\.dev\.tsv", msmarco, "dev")


# What is broken: file, content, the message's beginning.


def line_of(key: str, text: object) -> str:
    return json.dumps({"_id": key, "text": text}) + "\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", line_of("d1", "x") + '{"_id": "d2", "text"\n', r"corpus\.jsonl:2: no valid JSON"),
        ("corpus.jsonl", line_of("d1", "x") + "\n" + line_of("d2", "x"), r"corpus\.jsonl:2: no valid JSON"),
        ("corpus.jsonl", line_of("d1", "x") + '["d2"]\n', r"corpus\.jsonl:2: a JSON list where an object"),
        ("corpus.jsonl", '{"id": "d1", "text": "x"}\n', r"corpus\.jsonl:1: no text under the key '_id'.*'id', 'text'"),
        ("corpus.jsonl", '{"_id": "d1", "contents": "x"}\n', r"corpus\.jsonl:1: no text under the key 'text'"),
        ("corpus.jsonl", line_of("d1", 7), r"corpus\.jsonl:1: no text under the key 'text'"),
        ("corpus.jsonl", line_of("d1", "\ud83d"), r"corpus\.jsonl:1: 'text' holds half of a surrogate pair"),
        ("corpus.jsonl", line_of("d 1", "x"), r"corpus\.jsonl:1: the id 'd 1' is empty or has white space"),
        ("corpus.jsonl", line_of("", "x"), r"corpus\.jsonl:1: the id '' is empty"),
        ("corpus.jsonl", line_of("d1", "x") + line_of("d2", "x") * 2, r"corpus\.jsonl:3: the id 'd2' stands on line 2"),
        ("corpus.jsonl", line_of("d1", "x").encode() + b'{"_id": "\xff"}', r"corpus\.jsonl:2: byte 10 .* not UTF-8"),
        ("corpus.jsonl", "", r"corpus\.jsonl: the file is empty"),
        ("corpus.jsonl", "\n\n", r"corpus\.jsonl: the file is empty"),
        ("queries.jsonl", line_of("q1", "x") + line_of("q2", "  "), r"queries\.jsonl:2: the query 'q2' is empty"),
        (
            "queries.jsonl",
            line_of("q1", "x") * 2 + line_of("q2", "x"),
            r"queries\.jsonl:2: .* stands on line 1",
        ),
        ("qrels/test.tsv", "q1\td1\t1\n", r"test\.tsv:1: the header is missing"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"test\.tsv: there is no judgement"),
        ("qrels/test.tsv", "h\th\th\nq1\td1\n", r"test\.tsv:2: 2 fields where 3 are expected"),
        ("qrels/test.tsv", "h\th\th\nq1\td1\t1\nq1\td2\t1.0\n", r"test\.tsv:3: the grade '1\.0' is no integer"),
        ("qrels/test.tsv", "h\th\th\nq1\td1\t1\nq1\td1\t2\n", r"test\.tsv:3: .* were judged 1 on an earlier line"),
        (
            "qrels/test.tsv",
            "h\th\th\nq1\td1\t1\nq9\td1\t1\n",
            r"1 line of 2 have a query .*'q9' \(line 3\);",
        ),
        (
            "qrels/test.tsv",
            "h\th\th\nq1\td1\t1\n" + "".join(f"q1\tx{number}\t1\n" for number in range(5)),
            r"5 lines of 6 have a passage that .*corpus\.jsonl lacks: 'x0' \(line 3\), .*\(line 5\), \.\.\.;",
        ),
    ],
)
def test_broken_beir_file(beir, file, content, message):
    write(beir / file, content)
    expect(message, beir)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("collection.tsv", "0\tx\n1 y\n", r"collection\.tsv:2: 1 field where 2 are expected, id TAB text"),
        ("collection.tsv", "0\tx\n1\ty\tz\n", r"collection\.tsv:2: 3 fields where 2 are expected"),
        (
            "collection.tsv",
            "0\tt\tx\n1\ty\n",
            r"collection\.tsv:2: 2 fields where 3 are expected, id TAB title",
        ),
        ("collection.tsv", "0\tx\n\n1\ty\n", r"collection\.tsv:2: 1 field where 2"),
        ("collection.tsv", "0\tx\n1\ty\n0\tz\n", r"collection\.tsv:3: the id '0' stands on line 1"),
        ("collection.tsv", "0\tx\n1\tné\n".encode("latin-1"), r"collection\.tsv:2: byte 4 of the line is not UTF-8"),
        ("queries.dev.small.tsv", "10\tx\n11\t\n", r"queries\.dev\.small\.tsv:2: the query '11' is empty"),
        ("qrels.dev.small.tsv", "qid\t0\tpid\tgrade\n", r"qrels\.dev\.small\.tsv:1: the grade 'grade' .* header"),
        ("qrels.dev.small.tsv", "10\t0\t0\n", r"qrels\.dev\.small\.tsv:1: 3 fields where 4 are expected"),
        ("qrels.dev.small.tsv", "10\t0\t0\t1\n10\t0\t7\t1\n", r"1 line of 2 have a passage .* '7' \(line 2\)"),
    ],
)
def test_broken_msmarco_file(msmarco, file, content, message):
    write(msmarco / file, content)
    expect(message, msmarco, "dev")


def test_gzip_cut_short(msmarco):
    whole = "".join(f"{number}\ttext {number * number}\n" for number in range(50_000))
    packed = gzip.compress(whole.encode())
    (msmarco / "collection.tsv").unlink()
    write(msmarco / "collection.tsv.gz", packed[: len(packed) // 2])
    expect(r"collection\.tsv\.gz:\d+: cannot be unpacked any further.*fetch it again", msmarco, "dev")
    write(msmarco / "collection.tsv.gz", b"no gzip")
    expect(r"collection\.tsv\.gz:1: cannot be unpacked", msmarco, "dev")


def test_same_judgement_twice_counts_once(beir):
    write(beir / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t1\n")
    assert load_collection(beir, "test").qrels == {"q1": {"d1": 1}}


def test_judgements_of_passages_that_are_not_there_can_stay(beir, capsys):
    header = "query-id\tcorpus-id\tscore\n"
    write(beir / "qrels/test.tsv", f"{header}q1\td1\t1\nq1\tx1\t1\nq2\tx2\t1\n")
    expect("2 lines of 3 have a passage that", beir)
    collection = load_collection(beir, "test", keep_unknown=True)
    assert collection.qrels == {"q1": {"d1": 1, "x1": 1}, "q2": {"x2": 1}}
    assert [passages.tolist() for passages in collection.relevant_passages()] == [[0], []]
    said = "test.tsv: 2 lines of 3 have a passage that corpus.jsonl lacks; it counts as one that is not found"
    assert said in capsys.readouterr().err
    # A qrels file of another collection is a mistake.
    write(beir / "qrels/test.tsv", f"{header}q1\tx1\t1\n")
    with pytest.raises(InputError, match="1 line of 1 have a passage that"):
        load_collection(beir, "test", keep_unknown=True)


def test_ids_with_quotes_are_quoted_in_beirs_qrels(beir):
    corpus = (beir / "corpus.jsonl").read_text()
    write(beir / "corpus.jsonl", corpus + '{"_id": "\\"Heroes\\"", "text": "an album"}\n')
    write(beir / "qrels/test.tsv", 'query-id\tcorpus-id\tscore\nq1\t"""Heroes"""\t1\n')
    assert load_collection(beir, "test").qrels == {"q1": {'"Heroes"': 1}}


# Hard negatives.


def test_negatives_of_one_file(msmarco, tmp_path):
    path = write(tmp_path / "negatives.tsv", "10\t2,1\n99\t0\n11\t1, 0\n10\t0\n")
    negatives = read_negatives([path], ["11", "10"], load_passages(msmarco), depth=2)
    assert {query: passages.tolist() for query, passages in negatives.items()} == {1: [2, 1], 0: [1, 0]}


def test_negatives_of_several_files_are_interleaved(msmarco, tmp_path):
    write(msmarco / "collection.tsv", "".join(f"{number}\tx\n" for number in range(10)))
    first = write(tmp_path / "first.tsv", "10\t1,2,3\n")
    second = write(tmp_path / "second.tsv.gz", gzip.compress(b"10\t2,7,8,9\n11\t4\n"))
    passages = load_passages(msmarco)
    negatives = read_negatives([first, second], ["10", "11"], passages, depth=4)
    assert negatives[0].tolist() == [1, 2, 7, 3]
    assert negatives[1].tolist() == [4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("10\t1\n11\t0,7\n", r"negatives\.tsv:2: .*collection\.tsv has no passage '7'"),
        ("10\t1,\n", r"negatives\.tsv:1: .*has no passage ''"),
        ("10 1,2\n", r"negatives\.tsv:1: 1 field where 2 are expected"),
        ("98\t1\n99\t2\n", r"negatives\.tsv: none of its queries is judged"),
    ],
)
def test_broken_negatives(msmarco, tmp_path, content, message):
    path = write(tmp_path / "negatives.tsv", content)
    with pytest.raises(InputError, match=message):
        read_negatives([path], ["10", "11"], load_passages(msmarco), depth=10)


def test_missing_negatives(msmarco, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.tsv: cannot be read: No such file"):
        read_negatives([tmp_path / "nothing.tsv"], ["10"], load_passages(msmarco), depth=10)


@pytest.mark.parametrize(
    ("name", "split", "passages", "queries", "judgements"),
    [
        ("cranfield", "test", 1400, 225, 1837),
        ("squad_dev", "test", 2067, 3118, 3118),
        ("medquad", "dev", 15809, None, 1527),
    ],
)
def test_real_collections(retrieval_data, name, split, passages, queries, judgements):
    collection = load_collection(retrieval_data / name, split)
    assert len(collection.passages) == passages
    assert sum(map(len, collection.qrels.values())) == judgements
    assert list(collection.qrels.keys() ^ collection.queries.keys()) == []
    if queries is not None:
        assert len(collection.queries) == queries
