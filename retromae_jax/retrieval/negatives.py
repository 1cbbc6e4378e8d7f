"""Hard negatives: passages that a search ranks high for a query and that are not relevant to it."""

from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """What came of a query's window of ranks.

    Attributes:
        negatives: indices of the chosen passages, int64, the hardest first.
        window: how many passages stand in the window.
        relevant: how many of them are relevant, and left out.
        likely_relevant: how many of them score too close to a relevant one, and are left out.
    """

    negatives: np.ndarray
    window: int
    relevant: int
    likely_relevant: int


class NegativeSampler:
    """Draws hard negatives; a query's are a pure function of the seed, the query's number and what was found for it.

    Args:
        from_rank: first rank of the window, counted from 1 in all that was found, relevant passages included.
        to_rank: last rank of the window.
        margin: passages that score above the query's best-scored relevant passage less this are left out, because many
            of them are relevant and only not judged (Moreira et al., 2024, "NV-Retriever", TopK-MarginPos); all are,
            where no relevant passage was found. Not negative; None leaves none out.
        per_query: negatives to draw for each query; None takes all.
        seed: of the draws.
    """

    def __init__(self, from_rank: int, to_rank: int, margin: float | None, per_query: int | None, seed: int):
        self.window = slice(from_rank - 1, to_rank)
        self.margin, self.per_query, self.seed = margin, per_query, seed

    def sample(self, query: int, scores: np.ndarray, indices: np.ndarray, relevant: np.ndarray) -> Candidates:
        """Draws a query's negatives.

        Args:
            query: the query's number.
            scores: float32 [k], of what was found, best first, at least as deep as the window.
            indices: int64 [k], the passages; -1 behind the last that was found.
            relevant: indices of the query's relevant passages.
        """
        scores, indices = scores[indices >= 0], indices[indices >= 0]
        is_relevant = np.isin(indices, relevant)
        is_likely = np.zeros_like(is_relevant)
        if self.margin is not None:
            is_likely = ~is_relevant & (scores > scores[is_relevant].max(initial=-np.inf) - self.margin)
        in_window = indices[self.window]
        negatives = in_window[~(is_relevant | is_likely)[self.window]]
        if self.per_query is not None and self.per_query < len(negatives):
            generator = np.random.default_rng([self.seed, query])
            negatives = negatives[np.sort(generator.permutation(len(negatives))[: self.per_query])]
        counts = (int(np.count_nonzero(mask[self.window])) for mask in (is_relevant, is_likely))
        return Candidates(negatives, len(in_window), *counts)
