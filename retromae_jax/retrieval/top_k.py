"""The best passages of each query so far, while a search goes on."""

import numpy as np

# Scores, float32 [Q, k], best first, and passage indices, int64 [Q, k]; -inf and -1 where there are no more.
Found = tuple[np.ndarray, np.ndarray]


class TopK:
    """The best k passages of each of Q queries, of what comes in the order of the passages' indices."""

    def __init__(self, queries: int, k: int):
        self.scores = np.full((queries, k), -np.inf, np.float32)
        self.indices = np.full((queries, k), -1, np.int64)

    def add(self, scores: np.ndarray, indices: np.ndarray, rows: slice = slice(None)) -> None:
        """Adds what was found among further passages.

        Args:
            scores: float32 [R, any number], best first, equal ones by index.
            indices: int64 of the same shape; all higher than those that were added before.
            rows: R of the queries.
        """
        best_scores, best_indices = self.scores[rows], self.indices[rows]
        # Equal ones do not displace those that were there: these have lower indices.
        width = int((scores > best_scores[:, -1:]).sum(axis=1).max(initial=0))
        if width == 0:
            return
        scores = np.concatenate([best_scores, scores[:, :width]], axis=1)
        indices = np.concatenate([best_indices, indices[:, :width]], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : best_scores.shape[1]]
        self.scores[rows] = np.take_along_axis(scores, order, axis=1)
        self.indices[rows] = np.take_along_axis(indices, order, axis=1)
