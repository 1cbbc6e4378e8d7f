"""Encoding many texts: sorted by length within windows, in batches of few shapes, in input order at the end."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from retromae_jax.data.batches import BATCH_SIZES, by_length, one_ahead, one_behind
from retromae_jax.data.tokenization import encode_batch
from retromae_jax.logging import Progress

if TYPE_CHECKING:
    from retromae_jax.encoder import Encoder

# Texts whose lengths are sorted together. Of a window, one batch at most is not full.
WINDOW = 2**14


def encode_texts(encoder: "Encoder", texts: Sequence[str], kind: str, batch_size: int | None = None) -> np.ndarray:
    """Embeddings of texts, float32 [N, D], in their order.

    Args:
        encoder: the encoder; its settings say at how many tokens texts are cut, and what stands before them.
        texts: N texts.
        kind: of the texts, `query` or `passage`.
        batch_size: as for `encode_windows`.
    """
    windows = [range(start, min(start + WINDOW, len(texts))) for start in range(0, len(texts), WINDOW)]
    encoded = encode_windows(encoder, texts, kind, windows, batch_size)
    return np.concatenate([np.empty((0, encoder.dimension), np.float32), *encoded])


def encode_windows(
    encoder: "Encoder",
    texts: Sequence[str],
    kind: str,
    windows: Sequence[range],
    batch_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Embeddings of one window of texts after the other, float32 [n, D], in the texts' order.

    A thread tokenizes the next window while the devices work on this one.

    Args:
        encoder: the encoder.
        texts: all texts.
        kind: of the texts, `query` or `passage`.
        windows: successive numbers of texts, each; none is empty.
        batch_size: texts that each device encodes at once where they are as long as may be; of shorter ones as many
            more. None takes what suits the devices.
    """
    settings = encoder.settings
    limit, prompt = settings.max_length_of(kind), settings.prompt_of(kind)
    batch_size = batch_size or BATCH_SIZES[encoder.platform]
    pad_id = encoder.tokenizer.pad_token_id

    def tokenized(window: range) -> tuple[range, np.ndarray, np.ndarray]:
        return window, *encode_batch(encoder.tokenizer, texts[window.start : window.stop], limit, prompt)

    def embedded() -> Iterator[tuple[range, np.ndarray, jax.Array]]:
        for window, token_ids, lengths in one_ahead(tokenized, windows):
            for rows, filled, batch in by_length(token_ids, lengths, batch_size, limit, pad_id, encoder.devices):
                yield window, rows, encoder.embed(batch, lengths[filled])

    name = {"query": "queries", "passage": "passages"}[kind]
    with Progress(f"encode {name}", sum(map(len, windows)), name) as progress:
        missing = 0
        for window, rows, result in one_behind(embedded()):
            if not missing:
                missing, embeddings = len(window), np.empty((len(window), encoder.dimension), np.float32)
            embeddings[rows] = np.asarray(result)[: len(rows)]
            progress.update(len(rows))
            missing -= len(rows)
            if not missing:
                yield embeddings
