"""Encoding many texts: sorted by length within windows, padded to a few fixed lengths, in input order at the end."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from retromae_jax import hosts
from retromae_jax.data.batches import by_length, one_behind
from retromae_jax.data.tokenization import encode_batch
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.logging import Progress

# Texts whose lengths are sorted together. Every batch of a window but the last is full.
WINDOW = 16384


class EmbeddingFiles:
    """Embeddings that each process has written its share of, memory-mapped and read as one array [N, D].

    Args:
        files: float32 .npy files, in the order of the embeddings.
    """

    def __init__(self, files: Sequence[Path]):
        self._parts = [np.load(file, mmap_mode="r") for file in files]
        self._ends = np.cumsum([len(part) for part in self._parts])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._ends[-1]), self._parts[0].shape[1]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        offsets = zip(self._parts, self._ends - [len(part) for part in self._parts], strict=True)
        return np.concatenate([part[max(start - begin, 0) : max(stop - begin, 0)] for part, begin in offsets])

    def __len__(self) -> int:
        return self.shape[0]


def encode_on_all_hosts(
    encoder: Encoder, texts: Sequence[str], max_length: int, batch_size: int, task: str, directory: Path
) -> EmbeddingFiles:
    """Embeddings of texts as of `encode_texts`, each process making a share of them, for all to read.

    Args:
        directory: seen by all processes; the embeddings stay in files in it, N x D x 4 bytes together. No host holds
            more of them in memory than it reads.
    """
    files, own = hosts.files(directory, f"{task}.npy"), hosts.share(len(texts))
    shape = (len(own), encoder.dimension)
    embeddings = np.lib.format.open_memmap(files[jax.process_index()], "w+", np.float32, shape)
    encode_texts(encoder, texts, max_length, batch_size, task, own, embeddings)
    embeddings.flush()
    hosts.wait_for_all(f"{task} encoded")
    return EmbeddingFiles(files)


def encode_texts(
    encoder: Encoder,
    texts: Sequence[str],
    max_length: int,
    batch_size: int = 64,
    task: str = "passages",
    share: range | None = None,
    into: np.ndarray | None = None,
) -> np.ndarray:
    """Embeddings of texts, float32 [N, D], in their order.

    Args:
        encoder: the encoder.
        texts: the texts, N of them unless `share` says less.
        max_length: longer texts are cut, in tokens, [CLS] and [SEP] included.
        batch_size: texts encoded at once; rounded up to a multiple of the number of devices.
        task: what the progress is called.
        share: successive numbers of the N texts to encode; None takes all.
        into: float32 [N, D], say a memory-map, that the embeddings are written to; None makes an array.

    Raises:
        InputError: if `max_length` is beyond the encoder's positions.
    """
    positions = encoder.config.max_length
    if not 3 <= max_length <= positions:
        raise InputError(f"maximum length {max_length} is not between 3 and the encoder's {positions} positions")
    batch_size = -(-batch_size // encoder.mesh.size) * encoder.mesh.size
    share = range(len(texts)) if share is None else share
    embeddings = np.empty((len(share), encoder.dimension), np.float32) if into is None else into
    with Progress(f"encode {task}", len(share), task) as progress:
        batches = _batches(encoder, texts, share, max_length, batch_size)
        embedded = ((rows, encoder.embed(token_ids, lengths)) for rows, token_ids, lengths in batches)
        for rows, result in one_behind(embedded):
            embeddings[rows] = np.asarray(result)[: len(rows)]
            progress.update(len(rows))
    return embeddings


def _batches(
    encoder: Encoder, texts: Sequence[str], share: range, max_length: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Up to `batch_size` texts: their numbers in the share; token ids, int32 [batch_size, L]; lengths [batch_size]."""
    for start in range(0, len(share), WINDOW):
        window = share[start : start + WINDOW]
        token_ids, lengths = encode_batch(encoder.tokenizer, texts[window.start : window.stop], max_length)
        pad_id = encoder.tokenizer.pad_token_id
        for rows, filled, batch in by_length(token_ids, lengths, batch_size, max_length, pad_id):
            yield start + rows, batch, lengths[filled]
