"""Exact search over embeddings with a lexical part, which has no index.

The vectors as wide as the vocabulary that such embeddings stand for are made a few queries at a time only: passages are
compared with them as a sparse matrix.
"""

import numpy as np
import scipy.sparse

from retromae_jax.models import lexical
from retromae_jax.retrieval.slices import Slices
from retromae_jax.retrieval.top_k import Found, TopK

# The scores of all passages of a slice are in memory for so many queries.
QUERIES_AT_ONCE = 128


def search(queries: np.ndarray, passages: Slices, k: int, lexical_top_k: int) -> Found:
    """The k passages with the largest inner products, equal ones by index; arguments as of `PassageIndex.search`."""
    best = TopK(len(queries), k)
    for start, embeddings in passages.float32():
        dense, scores, words = lexical.unpack(embeddings, lexical_top_k)
        # One more word stands for all that no passage has.
        ends, other = np.arange(len(embeddings) + 1) * lexical_top_k, 1 + int(words.max(initial=0))
        # The passages' words as a sparse matrix, the queries' as a dense one with a word's scores behind each other:
        # each of a passage's words then costs one multiplication of a vector, for all queries.
        words_NxV = scipy.sparse.csr_array((scores.ravel(), words.ravel(), ends), shape=(len(embeddings), other + 1))
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(first, first + QUERIES_AT_ONCE)
            dense_queries, query_scores, query_words = lexical.unpack(queries[rows], lexical_top_k)
            words_VxQ = np.zeros((other + 1, len(dense_queries)), np.float32)
            words_VxQ[np.minimum(query_words, other).T, np.arange(len(dense_queries))] = query_scores.T
            found = _best(dense_queries @ dense.T + (words_NxV @ words_VxQ).T, min(k, len(embeddings)))
            best.add(found[0], start + found[1], rows)
    return best.scores, best.indices


def _best(scores_QxN: np.ndarray, k: int) -> Found:
    """The k highest scores of each row, and where they are; equal ones by index."""
    lowest_Q = np.partition(scores_QxN, -k, axis=1)[:, -k]
    indices = np.empty((len(scores_QxN), k), np.int64)
    for row, (scores_N, lowest) in enumerate(zip(scores_QxN, lowest_Q, strict=True)):
        found = np.flatnonzero(scores_N >= lowest)
        indices[row] = found[np.argsort(-scores_N[found], kind="stable")[:k]]
    return np.take_along_axis(scores_QxN, indices, axis=1), indices
