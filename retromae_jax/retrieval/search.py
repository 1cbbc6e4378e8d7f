"""Exact search with Faiss over passage embeddings that may be larger than memory."""

import faiss
import numpy as np

from retromae_jax.errors import InputError
from retromae_jax.logging import Progress
from retromae_jax.retrieval.encode import EmbeddingFiles

# Passages are searched slice by slice; a slice takes this much memory as float32.
SLICE_BYTES = 2**29
QUERIES_AT_ONCE = 4096


def search_faiss(
    query_embeddings: np.ndarray, passage_embeddings: np.ndarray | EmbeddingFiles, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the passages with the largest inner products, best first, equal scores by index.

    Args:
        query_embeddings: [Q, D].
        passage_embeddings: [N, D], of any float dtype; maybe memory-mapped: read once, in slices.
        k: how many passages to find for each query.

    Returns:
        Scores, float32 [Q, k], and passage indices, int64 [Q, k]. Where k is larger than N, rows end in score -inf and
        index -1.

    Raises:
        InputError: if an embedding has a value that is not finite, or the widths differ.
    """
    count, dimension = passage_embeddings.shape
    if query_embeddings.shape[1] != dimension:
        raise InputError(
            f"queries have embeddings of {query_embeddings.shape[1]} numbers, passages of {dimension}; encode both "
            "with one model"
        )
    queries = _finite(query_embeddings, "query", 0)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    indices = np.full((len(queries), k), -1, np.int64)
    rows = max(1, SLICE_BYTES // (4 * dimension))
    with Progress("search", count, "passages") as progress:
        for start in range(0, count, rows):
            passages = _finite(passage_embeddings[start : start + rows], "passage", start)
            for first in range(0, len(queries), QUERIES_AT_ONCE):
                some = slice(first, first + QUERIES_AT_ONCE)
                new_scores, new_indices = _top_k(queries[some], passages, k)
                all_scores = np.concatenate([scores[some], new_scores], axis=1)
                all_indices = np.concatenate([indices[some], new_indices + start], axis=1)
                # Earlier slices stand first and have lower indices, so a stable sort keeps ties in order of index.
                best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
                scores[some] = np.take_along_axis(all_scores, best, axis=1)
                indices[some] = np.take_along_axis(all_indices, best, axis=1)
            progress.update(len(passages))
    return scores, indices


def _finite(embeddings: np.ndarray, what: str, start: int) -> np.ndarray:
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    is_finite = np.isfinite(embeddings).all(axis=1)
    if not is_finite.all():
        raise InputError(f"the embedding of {what} {start + int(np.argmin(is_finite))} is not finite; encode it again")
    return embeddings


def _top_k(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best min(k, N) passages. Of passages that tie for the last place, those with the lowest indices."""
    k = min(k, len(passages))
    # Faiss does not say which of several tied passages it returns: ask for more until the tie is whole.
    asked = min(k + 1, len(passages))
    while True:
        scores, indices = faiss.knn(queries, passages, asked, metric=faiss.METRIC_INNER_PRODUCT)
        if asked == len(passages) or (scores[:, -1] < scores[:, k - 1]).all():
            break
        asked = min(2 * asked, len(passages))
    tied = (scores[:, 1:] == scores[:, :-1]).any(axis=1)
    order = np.lexsort((indices[tied], -scores[tied]), axis=1)
    scores[tied] = np.take_along_axis(scores[tied], order, axis=1)
    indices[tied] = np.take_along_axis(indices[tied], order, axis=1)
    return scores[:, :k], indices[:, :k]
