import math
import re

import numpy as np
import pytest

from retromae_jax.errors import InputError
from retromae_jax.retrieval.bm25 import BM25

PASSAGES = [
    "The cat sat on the mat.",
    "Dogs chase the cat; the CAT runs.",
    "Nothing here fits",
    "dogs dogs dogs",
    "The cat sat on the mat.",
    "",
]


def words(text: str) -> list[str]:
    return [word for word in re.split(r"\W+", text.lower()) if len(word) > 1]


def expected(query: str, passage: str) -> float:
    """BM25 as Lucene defines it, k1 = 0.9, b = 0.4."""
    documents = [words(text) for text in PASSAGES]
    average = sum(map(len, documents)) / len(documents)
    document = words(passage)
    total = 0.0
    for word in words(query):
        containing = sum(word in other for other in documents)
        idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        count = document.count(word)
        total += idf * count / (count + 0.9 * (1 - 0.4 + 0.4 * len(document) / average))
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_against_the_formula(k):
    queries = ["cat", "Dogs and a CAT", "the mat, the mat"]
    scores, indices = BM25(PASSAGES).search(queries, k)
    assert (scores.shape, scores.dtype, indices.dtype) == ((3, k), np.float32, np.int64)
    for query, row_scores, row in zip(queries, scores, indices, strict=True):
        wanted = [expected(query, passage) for passage in PASSAGES]
        order = sorted((i for i, value in enumerate(wanted) if value > 0), key=lambda i: (-wanted[i], i))[:k]
        assert row[row >= 0].tolist() == order
        np.testing.assert_allclose(row_scores[row >= 0], [wanted[i] for i in order], rtol=1e-5)
        assert (row_scores[row < 0] == -np.inf).all()


def test_ties_at_the_cut_go_by_index():
    assert BM25(PASSAGES).search(["mat"], 1)[1].tolist() == [[0]]
    assert BM25(PASSAGES).search(["mat"], 3)[1].tolist() == [[0, 4, -1]]


def test_query_without_known_words():
    scores, indices = BM25(PASSAGES).search(["unheard of", "?"], 2)
    assert indices.tolist() == [[-1, -1], [-1, -1]]
    assert (scores == -np.inf).all()


def test_no_words_at_all():
    with pytest.raises(InputError, match="no passage has a word"):
        BM25(["", "?"]).search(["cat"], 2)


def test_no_noise(capfd):
    BM25(PASSAGES).search(["cat"], 2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["BM25 index", "BM25 search"]
