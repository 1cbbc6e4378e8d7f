"""What a search for one query found, for people to read."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        index: of the passage in what was searched.
        score: the query's with it; the higher, the better.
        text: the passage; None where embeddings were searched.
    """

    index: int
    score: float
    text: str | None


def hits(scores: Iterable[float], indices: Iterable[int], passages: Sequence[str] | np.ndarray) -> list[Hit]:
    """The passages at these indices, which are -1 where no more were found."""
    return [
        Hit(int(index), float(score), None if isinstance(passages, np.ndarray) else passages[int(index)])
        for score, index in zip(scores, indices, strict=True)
        if index >= 0
    ]
