import gzip

import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval

from retromae_jax.errors import InputError
from retromae_jax.retrieval.runs import iterate_run, make_run, ranking, read_run, write_lines, write_run


def test_ranking_is_by_score_then_descending_id():
    assert ranking({"a": 1.0, "c": 2.0, "10": 1.0, "9": 1.0, "b": 3.0}) == [
        ("b", 3.0),
        ("c", 2.0),
        ("a", 1.0),
        ("9", 1.0),
        ("10", 1.0),
    ]


def test_scores_that_are_equal_in_32_bits_tie():
    assert [passage for passage, _ in ranking({"a": 1.0 + 1e-12, "b": 1.0})] == ["b", "a"]


def test_ranking_is_that_of_trec_eval():
    generator = np.random.default_rng(0)
    ids = ["1", "10", "2", "a", "B", "é", "z", "Ω"]
    for _ in range(50):
        scores = dict(zip(ids, generator.integers(0, 3, len(ids)).astype(float), strict=True))
        for rank, (passage, _) in enumerate(ranking(scores), 1):
            evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage: 1}}, {"recip_rank"})
            assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == pytest.approx(1 / rank)


def test_make_run_names_what_was_found():
    scores = np.array([[3, 2, 1], [5, -np.inf, -np.inf]], np.float32)
    indices = np.array([[2, 0, 1], [1, -1, -1]])
    run = make_run(["q1", "q2"], pa.array(["a", "b", "c"]), scores, indices)
    assert run == {"q1": {"c": 3.0, "a": 2.0, "b": 1.0}, "q2": {"b": 5.0}}


def test_written_run(tmp_path):
    write_run(tmp_path / "run.trec", {"q1": {"a": 0.5, "b": 2.0, "c": 0.5}, "q2": {}, "q3": {"a": -1e-9}}, "mine")
    assert (tmp_path / "run.trec").read_text() == (
        "q1 Q0 b 1 2.0 mine\nq1 Q0 c 2 0.5 mine\nq1 Q0 a 3 0.5 mine\nq3 Q0 a 1 -1e-09 mine\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.trec"]


def test_scores_keep_their_precision(tmp_path):
    scores = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 10.0 ** np.arange(-10, 10).repeat(50)
    run = {"q": {f"d{number}": float(value) for number, value in enumerate(scores.astype(np.float32))}}
    write_run(tmp_path / "run.trec", run, "x")
    assert read_run(tmp_path / "run.trec") == run


def test_rank_column_is_not_used(tmp_path):
    path = tmp_path / "run.trec"
    path.write_bytes(b"q Q0 a 1 1.0 x\r\nq\tQ0\tb\t2\t3.5\tx\n")
    assert ranking(read_run(path)["q"]) == [("b", 3.5), ("a", 1.0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"q Q0 a 1 1.0", "run.trec:2: 5 fields where 6 are expected"),
        (b"\nq Q0 b 2 1.0 x", "run.trec:2: the line is blank"),
        (b"q Q0 b 2 high x", "run.trec:2: the score 'high' is no finite 32-bit number"),
        (b"q Q0 b 2 nan x", "run.trec:2: the score 'nan' is no finite 32-bit number"),
        (b"q Q0 a 2 1.0 x", "run.trec:2: passage 'a' stands twice under query 'q'"),
        (b"q Q0 \xff 2 1.0 x", "run.trec:2: byte 6 of the line is not UTF-8"),
    ],
)
def test_broken_run(tmp_path, line, message):
    path = tmp_path / "run.trec"
    path.write_bytes(b"q Q0 a 1 2.0 x\n" + line + b"\n")
    with pytest.raises(InputError, match=message):
        read_run(path)


def test_runs_of_ms_marco(tmp_path):
    path = tmp_path / "run.tsv"
    path.write_bytes(b"\xef\xbb\xbf7\t30\t1\n7\t4\t2\n8\t4\t1\r\n7\t5\t3\n")
    run = read_run(path)
    assert run == {"7": {"30": -1.0, "4": -2.0, "5": -3.0}, "8": {"4": -1.0}}
    assert [passage for passage, _ in ranking(run["7"])] == ["30", "4", "5"]
    with pytest.raises(InputError, match=r"run.tsv:4: lines of query '7' stand apart"):
        list(iterate_run(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7\t5\t3", "run.tsv:2: rank '3' of query '7' where 2 is expected; sort each query's lines by rank"),
        ("7\t5\t1", "run.tsv:2: rank '1' of query '7' where 2 is expected"),
        ("8\t5\t0", "run.tsv:2: rank '0' of query '8' where 1 is expected"),
        ("8\t5\tfirst", "run.tsv:2: rank 'first' of query '8' where 1 is expected"),
        ("7\t4\t2", "run.tsv:2: passage '4' stands twice under query '7'"),
        ("7 Q0 5 2 0.1 x", "run.tsv:2: 6 fields where 3 are expected, `query-id TAB passage-id TAB rank`"),
    ],
)
def test_broken_run_of_ms_marco(tmp_path, line, message):
    path = tmp_path / "run.tsv"
    path.write_text(f"7\t4\t1\n{line}\n")
    for read in (read_run, lambda path: list(iterate_run(path))):
        with pytest.raises(InputError, match=message):
            read(path)


def test_packed_runs_and_blank_lines_at_the_end(tmp_path):
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress(b"q Q0 a 1 2.0 x\n\n \n"))
    assert read_run(path) == {"q": {"a": 2.0}}
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"run.trec.gz:\d: cannot be unpacked any further"):
        read_run(path)


def test_missing_run(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_run(tmp_path / "run.trec")


@pytest.mark.parametrize(
    ("run", "tag"), [({"q 1": {"a": 1.0}}, "x"), ({"q": {"a\tb": 1.0}}, "x"), ({"q": {"": 1.0}}, "x"), ({}, "my run")]
)
def test_white_space_is_refused(tmp_path, run, tag):
    with pytest.raises(InputError, match="white space"):
        write_run(tmp_path / "run.trec", run, tag)
    assert list(tmp_path.iterdir()) == []


def test_broken_off_write_keeps_the_older_file(tmp_path):
    write_lines(tmp_path / "file", ["old"])

    def lines():
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(tmp_path / "file", lines())
    assert (tmp_path / "file").read_text() == "old\n"


def test_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"run\.trec: cannot be written: No such file or directory"):
        write_run(tmp_path / "nowhere" / "run.trec", {"q": {"a": 1.0}}, "x")
