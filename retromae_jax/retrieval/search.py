"""Exact search over passage embeddings that may be larger than memory."""

from collections.abc import Callable

import faiss
import numpy as np
import scipy.sparse

from retromae_jax.errors import InputError
from retromae_jax.logging import Progress
from retromae_jax.models import lexical
from retromae_jax.retrieval.embeddings import Embeddings

# Passages are searched slice by slice; a slice takes this much memory as float32.
SLICE_BYTES = 2**29
QUERIES_AT_ONCE = 4096
# With a lexical part, the scores of all passages of a slice are in memory for so many queries.
LEXICAL_QUERIES_AT_ONCE = 128


def search(
    query_embeddings: np.ndarray, passage_embeddings: np.ndarray | Embeddings, k: int, lexical_top_k: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the passages with the largest inner products, best first, equal scores by index.

    Dense embeddings are searched by Faiss. The vectors as wide as the vocabulary that embeddings with a lexical part
    stand for are made of a few queries at a time only: passages are compared with them as a sparse matrix.

    Args:
        query_embeddings: [Q, D].
        passage_embeddings: [N, D], of any float dtype that holds the numbers of words exactly; maybe memory-mapped: it
            is read once, in slices.
        k: how many passages to find for each query.
        lexical_top_k: words in the lexical part that embeddings end in (see `models.lexical`); 0 for none.

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
    queries_at_once = LEXICAL_QUERIES_AT_ONCE if lexical_top_k else QUERIES_AT_ONCE
    with Progress("search", count, "passages") as progress:
        for start in range(0, count, rows):
            passages = _finite(passage_embeddings[start : start + rows], "passage", start)
            top_k = _lexical_search(passages, lexical_top_k) if lexical_top_k else _dense_search(passages)
            for first in range(0, len(queries), queries_at_once):
                some = slice(first, first + queries_at_once)
                new_scores, new_indices = top_k(queries[some], k)
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


# From queries [Q, D] and k to the scores and indices of the best min(k, N) passages, [Q, min(k, N)]. Of passages that
# tie for the last place, those with the lowest indices.
TopK = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def _dense_search(passages: np.ndarray) -> TopK:
    def top_k(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
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

    return top_k


def _lexical_search(passages: np.ndarray, lexical_top_k: int) -> TopK:
    dense_passages, passage_scores, passage_words = lexical.unpack(passages, lexical_top_k)
    # One more word stands for all that no passage has.
    ends, other = np.arange(len(passages) + 1) * lexical_top_k, 1 + int(passage_words.max(initial=0))
    # The passages' words as a sparse matrix, the queries' as a dense one with a word's scores behind each other: each
    # of a passage's words then costs one multiplication of a vector, for all queries.
    words_NxV = scipy.sparse.csr_array(
        (passage_scores.ravel(), passage_words.ravel(), ends), shape=(len(passages), other + 1)
    )

    def top_k(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(passages))
        dense_queries, query_scores, query_words = lexical.unpack(queries, lexical_top_k)
        words_VxQ = np.zeros((other + 1, len(queries)), np.float32)
        words_VxQ[np.minimum(query_words, other).T, np.arange(len(queries))] = query_scores.T
        scores_QxN = dense_queries @ dense_passages.T + (words_NxV @ words_VxQ).T
        return _best(scores_QxN, k)

    return top_k


def _best(scores_QxN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest scores of each row, and where they are; equal ones by index."""
    lowest_Q = np.partition(scores_QxN, -k, axis=1)[:, -k]
    indices = np.empty((len(scores_QxN), k), np.int64)
    for row, (scores_N, lowest) in enumerate(zip(scores_QxN, lowest_Q, strict=True)):
        found = np.flatnonzero(scores_N >= lowest)
        indices[row] = found[np.argsort(-scores_N[found], kind="stable")[:k]]
    return np.take_along_axis(scores_QxN, indices, axis=1), indices
