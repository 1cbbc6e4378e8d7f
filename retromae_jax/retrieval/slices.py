"""Embeddings that may be larger than memory and of half precision, read a slice after the other."""

from collections.abc import Callable, Iterator
from typing import Protocol

import faiss
import ml_dtypes
import numpy as np

from retromae_jax.data.batches import one_ahead
from retromae_jax.errors import InputError
from retromae_jax.logging import Progress

# What a slice takes as float32; two of them are in memory, because the next one is read meanwhile.
SLICE_BYTES = 2**28

HALF_PRECISION = {
    np.dtype(np.float16): faiss.ScalarQuantizer.QT_fp16,
    np.dtype(ml_dtypes.bfloat16): faiss.ScalarQuantizer.QT_bf16,
}


class StoredEmbeddings(Protocol):
    """Stored embeddings, or an array of them."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


class Slices:
    """Successive embeddings, which are read in slices.

    Args:
        embeddings: [N, D].
        share: successive numbers of those to read.
        task: what the progress is called.
    """

    def __init__(self, embeddings: StoredEmbeddings, share: range, task: str):
        self.embeddings, self.share, self.task = embeddings, share, task

    def float32(self) -> Iterator[tuple[int, np.ndarray]]:
        """Where each slice begins, and its embeddings as float32.

        Raises:
            InputError: if a value is not finite.
        """
        rows = max(1, SLICE_BYTES // (4 * self.embeddings.shape[1]))
        return self.read(rows, lambda embeddings, start: finite(as_float32(embeddings), "passage", start))

    def read(self, rows: int, prepare: Callable[[np.ndarray, int], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Where each slice begins, and what is made of it, in a thread of its own: the next one while this one is used.

        Args:
            rows: embeddings of a slice; the last one may have fewer.
            prepare: makes something of the embeddings, given where they begin.
        """

        def slice_at(start: int) -> tuple[int, np.ndarray]:
            return start, prepare(self.embeddings[start : min(start + rows, self.share.stop)], start)

        with Progress(self.task, len(self.share), "passages") as progress:
            for start, prepared in one_ahead(slice_at, self.share[::rows]):
                yield start, prepared
                progress.update(min(rows, self.share.stop - start))


def as_float32(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] as float32, contiguous."""
    half = HALF_PRECISION.get(embeddings.dtype)
    if half is None:
        return np.ascontiguousarray(embeddings, np.float32)
    # Ten times as fast as NumPy's conversion.
    quantizer = faiss.ScalarQuantizer(embeddings.shape[1], half)
    return quantizer.decode(np.ascontiguousarray(embeddings).view(np.uint8))


def finite(embeddings: np.ndarray, kind: str, start: int = 0) -> np.ndarray:
    """The float32 embeddings [N, D] themselves.

    Args:
        embeddings: to check.
        kind: what they are of, query or passage.
        start: number of the first one.

    Raises:
        InputError: if a value is not finite.
    """
    with np.errstate(all="ignore"):
        sums = embeddings.sum(axis=1)
    # A sum may overflow; only a value that is not finite is wrong.
    suspects = np.flatnonzero(~np.isfinite(sums))
    wrong = suspects[~np.isfinite(embeddings[suspects]).all(axis=1)]
    if len(wrong):
        raise not_finite(kind, start + int(wrong[0]))
    return embeddings


def not_finite(kind: str, number: int) -> InputError:
    """The error that an embedding is not finite."""
    return InputError(f"the embedding of {kind} {number} is not finite; encode it again")
