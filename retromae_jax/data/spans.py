"""Pairs of spans of one document, which coCondenser is trained on."""

import numpy as np

from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.errors import InputError
from retromae_jax.logging import say

# Fewer tokens are no span.
SHORTEST_SPAN = 8


class SpanPairs:
    """The documents of token blocks, each as two spans that are drawn anew in every pass.

    Gao and Callan, 2022, section 3.2, draw two spans of each document at random. Here the spans of a document are its
    blocks, of which any two different ones are equally likely. A document of a single block is cut in its middle, and
    gives the same two spans in every pass. Blocks shorter than `SHORTEST_SPAN` are not drawn; documents that are too
    short for two spans are left out, and said.

    It stands where `TokenBlocks` does in training, with documents for blocks and two texts for one.

    Args:
        blocks: with the number of each one's document.
        seed: of the draws.

    Raises:
        InputError: if the blocks do not tell their documents, or no document has two spans.
    """

    unit, texts_per_item = "documents", 2

    def __init__(self, blocks: TokenBlocks, seed: int):
        self.blocks, self.seed = blocks, seed
        documents = blocks.documents()
        # The spans of each document lie behind each other, from `starts` on.
        spans = np.argsort(documents, kind="stable")
        spans = spans[blocks.lengths[spans] >= SHORTEST_SPAN]
        _, starts, counts = np.unique(documents[spans], return_index=True, return_counts=True)
        usable = (counts > 1) | (blocks.lengths[spans[starts]] >= 2 * SHORTEST_SPAN)
        self._spans, self._starts, self._counts = spans, starts[usable], counts[usable]
        left_out = len(np.unique(documents)) - len(self)
        if not len(self):
            raise InputError(
                f"{blocks.directory}: none of {left_out:,} documents has two spans of {SHORTEST_SPAN} tokens; "
                "prepare longer texts"
            )
        if left_out:
            say(f"{blocks.directory}: {left_out:,} documents are too short for two spans and left out")

    def __len__(self) -> int:
        return len(self._starts)

    def draw(self, indices: np.ndarray, epochs: np.ndarray) -> list[np.ndarray]:
        """Two spans of each document; they follow from the seed, the pass and the document.

        Args:
            indices: documents, integers [B].
            epochs: the pass that each belongs to, [B].

        Returns:
            2 B views of token ids, those of document i at 2i and 2i + 1.
        """
        counts_B = self._counts[indices]
        random_B = _random(self.seed, epochs, indices)
        # One span, and another so many behind it, around the document's end.
        first_B = random_B % counts_B
        second_B = (first_B + 1 + random_B // counts_B % np.maximum(counts_B - 1, 1)) % counts_B
        pairs_Bx2 = self._spans[self._starts[indices][:, None] + np.stack([first_B, second_B], axis=1)]
        texts: list[np.ndarray] = []
        for first, second in pairs_Bx2.tolist():
            block = self.blocks[first]
            middle = len(block) // 2
            texts += (block, self.blocks[second]) if first != second else (block[:middle], block[middle:])
        return texts


def _random(seed: int, epochs_B: np.ndarray, documents_B: np.ndarray) -> np.ndarray:
    """Random numbers, int64 [B], not negative: hashes of their arguments."""
    random_B = _mix(np.full(len(documents_B), seed, np.uint64))
    random_B = _mix(random_B + epochs_B.astype(np.uint64))
    return (_mix(random_B + documents_B.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Hashes uint64 to uint64, one to one: SplitMix64 (Steele et al., 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
