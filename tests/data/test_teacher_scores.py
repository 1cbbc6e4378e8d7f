import gzip

import numpy as np
import pyarrow as pa
import pytest

from retromae_jax.data.retrieval import load_passages
from retromae_jax.data.teacher_scores import TeacherScores, read_teacher_scores, with_scores
from retromae_jax.errors import InputError


@pytest.fixture
def passages(tmp_path):
    (tmp_path / "collection.tsv").write_text("".join(f"d{number}\ttext\n" for number in range(6)))
    return load_passages(tmp_path)


def written(tmp_path, content, name="scores.txt"):
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return tmp_path / name


def test_files_with_tabs_blanks_and_brackets(passages, tmp_path):
    first = written(tmp_path, "q1\td3\t1.5\nq9\td77\t1\nq0\td0\t-2e1\r\n")
    second = written(tmp_path, "q1 d2 [0.25]\nq1 d3 9\n", "more.txt.gz")
    scores = read_teacher_scores([first, second], ["q0", "q1", "q2"], passages)
    np.testing.assert_array_equal(scores.of(1, [3, 1, 2]), np.array([1.5, np.nan, 0.25], np.float32))
    np.testing.assert_array_equal(scores.of(0, np.array([0, 5])), np.array([-20, np.nan], np.float32))
    assert np.isnan(scores.of(2, [0, 3])).all()
    assert scores.of(1, []).shape == (0,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q0\td0\t1\nq0\td1\n", r"scores\.txt:2: 2 fields where 3 are expected, .* with TAB between"),
        ("q0 d0 1\nq0  d1 2\n", r"scores\.txt:2: 4 fields where 3 are expected, .* with one blank between"),
        ("q0\td0\t1\nq0\td1\thigh\n", r"scores\.txt:2: the score 'high' is no finite number"),
        ("q0\td0\tnan\n", r"scores\.txt:1: the score 'nan' is no finite number"),
        ("q0\td0\t1\nq0\td9\t1\n", r"collection\.tsv has no passage 'd9'"),
        ("q7\td0\t1\n", r"none of its queries is trained on"),
        ("", r"scores\.txt: the file is empty"),
    ],
)
def test_broken_files(passages, tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_teacher_scores([written(tmp_path, content)], ["q0"], passages)


def test_missing_file(passages, tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: cannot be read: No such file"):
        read_teacher_scores([tmp_path / "none.txt"], ["q0"], passages)


def chosen(missing, group_size=3):
    """The first query has all scores; the second lacks a positive's and a negative's; the third its only positive's."""
    pairs = [(0, 0), (0, 1), (0, 2), (1, 3), (1, 5), (2, 1)]
    queries, numbers = map(np.array, zip(*pairs, strict=True))
    scores = TeacherScores(queries, numbers, np.arange(len(pairs)), 3)
    positives = [np.array([0]), np.array([3, 4]), np.array([5])]
    negatives = {0: np.array([1, 0, 2]), 1: np.array([5, 0]), 2: np.array([1])}
    ids = pa.array([f"d{number}" for number in range(6)], pa.large_string())
    trained, positives, negatives = with_scores(
        scores, ["q0", "q1", "q2"], ids, positives, negatives, group_size, missing
    )
    return [(int(query), positives[query].tolist(), negatives[query].tolist()) for query in trained]


def test_passages_or_queries_without_scores_are_dropped_as_asked(capsys):
    assert chosen("drop_passage") == [(0, [0], [1, 2]), (1, [3], [5])]
    said = capsys.readouterr().err
    assert "2 of 3 queries have passages without a score, as passage 'd4' of query 'q1'" in said
    assert "with drop_passage, 2 queries are left" in said
    assert chosen("drop_query") == [(0, [0], [1, 2])]


def test_missing_scores_are_an_error_by_default():
    with pytest.raises(InputError, match=r"2 of 3 .* passage 'd4' of query 'q1'; score them too, or set --config"):
        chosen("error")
    with pytest.raises(InputError, match=r"3 of 3 .* the random passages beside the 2 hard negatives of query 'q0'"):
        chosen("error", group_size=4)
    with pytest.raises(InputError, match="no query is left"):
        chosen("drop_query", group_size=4)
