"""Batches: the order of the training data, a pure function of the seed; and batches of texts of similar lengths."""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

# Row lengths that texts are padded to where they are not trained on; each is compiled once.
LENGTH_BUCKETS = 8

Item = TypeVar("Item")


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


def by_length(
    token_ids: np.ndarray, lengths: np.ndarray, batch_size: int, limit: int, pad_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of one size, longest texts first, padded to a few lengths.

    Args:
        token_ids: int32 [N, L].
        lengths: tokens of each text, [N].
        batch_size: texts of a batch, B.
        limit: the longest text that there may be.
        pad_id: id of [PAD].

    Yields:
        Numbers of up to B texts; numbers of B texts, because the last batch repeats some to keep its shape; and the
        token ids of those, int32 [B, length].
    """
    longest_first = np.argsort(-lengths, kind="stable")
    for first in range(0, len(longest_first), batch_size):
        rows = longest_first[first : first + batch_size]
        length = padded_length(int(lengths[rows].max()), limit, LENGTH_BUCKETS)
        filled = np.resize(rows, batch_size)
        batch = np.full((batch_size, length), pad_id, np.int32)
        width = min(length, token_ids.shape[1])
        batch[:, :width] = token_ids[filled, :width]
        yield rows, filled, batch


def one_behind(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each when the next one has been made: a device works on that while this one's result is fetched."""
    running: list[Item] = []
    for item in items:
        yield from running
        running = [item]
    yield from running
