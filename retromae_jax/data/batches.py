"""Batches: the order of the training data, a pure function of the seed; and batches of texts of similar lengths."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

# Texts of a batch for each device where there is no training, if nobody says another number: accelerators have to be
# filled, and a CPU's cache has room for little.
BATCH_SIZES = {"cpu": 4, "gpu": 256, "tpu": 256}

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def row_length(longest: int, limit: int) -> int:
    """The row length for texts of up to `longest` tokens where there is no training: few lengths, and little padding.

    From one power of two to the next there are eight lengths, so at most an eighth is added; none is less than 8 apart.
    """
    step = max(8, 1 << longest.bit_length() >> 4)
    return min(limit, -(-longest // step) * step)


def by_length(
    token_ids: np.ndarray, lengths: np.ndarray, batch_size: int, limit: int, pad_id: int, devices: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of about as many tokens each, longest texts first, in a few shapes.

    Args:
        token_ids: int32 [N, L].
        lengths: tokens of each text, [N].
        batch_size: texts of a batch for each device where they are as long as `limit`; of shorter ones there are as
            many more.
        limit: the longest text that there may be.
        pad_id: id of [PAD].
        devices: the number of a batch's texts is a multiple of theirs.

    Yields:
        Numbers of texts; numbers of B texts, which begin with those, because the last batch repeats some to have one of
        a few shapes; and the token ids of those, int32 [B, length].
    """
    longest_first = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(longest_first):
        length = row_length(int(lengths[longest_first[first]]), limit)
        most, left = batch_size * limit // length, -(-(len(longest_first) - first) // devices)
        texts = devices * min(most, 1 << (left - 1).bit_length())
        rows = longest_first[first : first + texts]
        filled = np.resize(rows, texts)
        batch = np.full((len(filled), length), pad_id, np.int32)
        width = min(length, token_ids.shape[1])
        batch[:, :width] = token_ids[filled, :width]
        yield rows, filled, batch
        first += len(rows)


def one_behind(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each when the next one has been made: a device works on that while this one's result is fetched."""
    running: list[Item] = []
    for item in items:
        yield from running
        running = [item]
    yield from running


def one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What a function makes of the items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        running: list[Future[Result]] = []
        for item in items:
            running.append(thread.submit(function, item))
            if len(running) > 1:
                yield running.pop(0).result()
        for future in running:
            yield future.result()
