"""BM25, the lexical baseline: lower-cased words of two or more characters, no stemming, no stop words."""

from collections.abc import Sequence

import numpy as np

from retromae_jax.errors import InputError
from retromae_jax.logging import progress

K1 = 0.9
B = 0.4


class BM25:
    """An index of passages by their words (k1 = 0.9, b = 0.4), in memory.

    Args:
        passages: N texts.

    Raises:
        InputError: if no passage has a word.
    """

    def __init__(self, passages: Sequence[str]):
        import bm25s  # brings up JAX where that is installed

        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        words = bm25s.tokenize(progress(passages, "BM25 index", "passages"), stopwords=[], show_progress=False)
        if not words.vocab:
            raise InputError("no passage has a word of two or more characters")
        self._index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the passages with the highest BM25 scores, best first, equal scores by index.

        Args:
            queries: Q texts.
            k: how many passages to find for each query.

        Returns:
            Scores, float32 [Q, k], and passage indices, int64 [Q, k]. Where fewer than k passages share a word with the
            query, its row ends in score -inf and index -1.
        """
        import bm25s

        scores = np.full((len(queries), k), -np.inf, np.float32)
        indices = np.full((len(queries), k), -1, np.int64)
        for row, query in enumerate(progress(queries, "BM25 search", "queries")):
            (query_words,) = bm25s.tokenize([query], stopwords=[], return_ids=False, show_progress=False)
            passage_scores = self._index.get_scores_from_ids(self._index.get_tokens_ids(query_words))
            found = _top_k(passage_scores, k)
            scores[row, : len(found)] = passage_scores[found]
            indices[row, : len(found)] = found
        return scores, indices


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest positive scores, equal ones by index."""
    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > k:
        threshold = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= threshold]
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
