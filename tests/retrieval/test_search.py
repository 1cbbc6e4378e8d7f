import numpy as np
import pytest

from retromae_jax.errors import InputError
from retromae_jax.models import lexical
from retromae_jax.retrieval import search as module
from retromae_jax.retrieval.search import search


def brute_force(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ passages.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def slices_of(rows: int, dimension: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "SLICE_BYTES", 4 * dimension * rows)


@pytest.mark.parametrize("k", [1, 5, 150, 1000])
@pytest.mark.parametrize("rows", [60, 333, 10**6])
def test_against_brute_force_with_many_ties(k, rows, monkeypatch):
    """Small whole numbers: products are exact, and most passages tie with others, also over slices."""
    slices_of(rows, 8, monkeypatch)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 10)
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (25, 8)).astype(np.float32)
    passages = generator.integers(-1, 2, (1000, 8)).astype(np.float32)
    scores, indices = search(queries, passages, k)
    wanted_scores, wanted_indices = brute_force(queries, passages, k)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("k, rows", [(5, 60), (150, 10**6)])
def test_lexical_parts_against_brute_force_with_many_ties(k, rows, monkeypatch):
    top_k, words, dense = 4, 30, 3
    slices_of(rows, dense + 2 * top_k, monkeypatch)
    monkeypatch.setattr(module, "LEXICAL_QUERIES_AT_ONCE", 10)
    generator = np.random.default_rng(0)

    def embeddings(count: int) -> tuple[np.ndarray, np.ndarray]:
        scores = generator.integers(0, 3, (count, words)).astype(np.float32)
        packed = np.array(lexical.pack(generator.integers(-1, 2, (count, dense)).astype(np.float32), scores, top_k))
        return packed, np.asarray(lexical.expand(packed, top_k, words))

    (queries, query_vectors), (passages, passage_vectors) = embeddings(25), embeddings(400)
    # The last words of the vocabulary are in queries only.
    passages[:, -top_k:][passages[:, -top_k:] >= words - 3] = words - 4
    passages[:, -2 * top_k : -top_k][passages[:, -top_k:] == words - 4] = 0
    passage_vectors = np.asarray(lexical.expand(passages, top_k, words))
    scores, indices = search(queries, passages, k, lexical_top_k=top_k)
    wanted_scores, wanted_indices = brute_force(query_vectors, passage_vectors, k)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(scores, wanted_scores)


def test_all_passages_alike(monkeypatch):
    slices_of(100, 4, monkeypatch)
    _, indices = search(np.ones((3, 4), np.float32), np.ones((350, 4), np.float32), 120)
    np.testing.assert_array_equal(indices, np.tile(np.arange(120), (3, 1)))


def test_real_numbers(monkeypatch):
    slices_of(100, 32, monkeypatch)
    generator = np.random.default_rng(1)
    queries, passages = generator.normal(size=(40, 32)), generator.normal(size=(730, 32))
    scores, indices = search(queries, passages, 20)
    wanted_scores, wanted_indices = brute_force(queries, passages, 20)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=1e-5)


def test_memory_map_of_half_precision(tmp_path, monkeypatch):
    slices_of(50, 16, monkeypatch)
    generator = np.random.default_rng(2)
    stored = np.memmap(tmp_path / "passages.f16", np.float16, "w+", shape=(320, 16))
    stored[:] = generator.normal(size=stored.shape)
    queries = generator.normal(size=(5, 16)).astype(np.float32)
    np.testing.assert_array_equal(search(queries, stored, 7)[1], brute_force(queries, stored, 7)[1])


@pytest.mark.parametrize("rows", [2, 100])
def test_fewer_passages_than_asked_for(rows, monkeypatch):
    slices_of(rows, 2, monkeypatch)
    passages = np.array([[1, 0], [3, 0], [2, 0]], np.float32)
    scores, indices = search(np.array([[1, 0], [-1, 0]], np.float32), passages, 5)
    assert indices.tolist() == [[1, 2, 0, -1, -1], [0, 2, 1, -1, -1]]
    assert scores.tolist() == [[3, 2, 1, -np.inf, -np.inf], [-1, -2, -3, -np.inf, -np.inf]]


def test_values_that_are_not_finite(monkeypatch):
    slices_of(2, 2, monkeypatch)
    passages = np.zeros((5, 2), np.float32)
    passages[3, 1] = np.nan
    with pytest.raises(InputError, match="embedding of passage 3 is not finite"):
        search(np.ones((1, 2), np.float32), passages, 2)
    with pytest.raises(InputError, match="embedding of query 0 is not finite"):
        search(np.full((1, 2), np.inf, np.float32), np.zeros((5, 2), np.float32), 2)


def test_widths_that_differ():
    with pytest.raises(InputError, match="embeddings of 3 numbers, passages of 2"):
        search(np.ones((1, 3), np.float32), np.ones((4, 2), np.float32), 2)
