"""The order of the training data: batch k is a pure function of the seed and k."""

import numpy as np


class BatchOrder:
    """Shuffled passes over `size` items, cut into batches; each item comes once in each pass.

    Args:
        size: number of items.
        batch_size: items in a batch; a batch may span two passes.
        seed: of the shuffles.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._permutations: dict[int, np.ndarray] = {}

    def samples(self, step: int) -> np.ndarray:
        """Numbers of the batch's items in the order of the whole run, uint64 [B]."""
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.uint64)

    def epochs(self, step: int) -> np.ndarray:
        """The pass that each item of the batch belongs to, int64 [B]."""
        return (self.samples(step) // np.uint64(self.size)).astype(np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the batch's items, int64 [B], each less than `size`."""
        epochs = self.epochs(step)
        within = (self.samples(step) % np.uint64(self.size)).astype(np.int64)
        indices = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[within[here]]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {k: v for k, v in self._permutations.items() if k == epoch - 1}
            generator = np.random.default_rng([self.seed, epoch])
            self._permutations[epoch] = generator.permutation(self.size)
        return self._permutations[epoch]


def text_numbers(items_B: np.ndarray, texts_per_item: int) -> np.ndarray:
    """Numbers of the items' texts, [B * texts_per_item], from the items' own: those of one item follow each other."""
    within = np.arange(texts_per_item, dtype=items_B.dtype)
    return (items_B[:, None] * texts_per_item + within).reshape(-1)


def number_of_steps(num_steps: int, num_epochs: float, size: int, batch_size: int) -> int:
    """Optimizer steps of a run: `num_steps` if it is set, else `num_epochs` passes over `size` items, at least 1."""
    return num_steps or max(1, int(num_epochs * size / batch_size))


def padded_length(longest: int, limit: int, buckets: int) -> int:
    """The row length for texts of up to `longest` tokens: the next of `buckets` equal steps up to `limit`."""
    step = -(-limit // buckets)
    return min(limit, -(-longest // step) * step)
