"""Small texts for tests, as rows of the model's input."""

import numpy as np

from retromae_jax.data.packing import Layout, fill
from retromae_jax.masking import CONTINUATION, SPECIAL, WORD_START, Vocabulary
from retromae_jax.rows import Rows

# A vocabulary of 60: [PAD], [CLS], [SEP], [MASK], 36 beginnings of words, 20 continuations.
PAD, CLS, SEP, MASK = 0, 1, 2, 3
FIRST_CONTINUATION = 40
KINDS = np.full(60, WORD_START, np.int8)
KINDS[:3], KINDS[40:] = SPECIAL, CONTINUATION
VOCABULARY = Vocabulary(KINDS, MASK)


def rows(token_ids, lengths=None, samples=None, seed=0) -> Rows:
    """Rows on the device from token ids [R, L]; by default one text a row, as long as the row."""
    token_ids = np.asarray(token_ids, np.int32)
    if lengths is None:
        lengths = np.full(len(token_ids), token_ids.shape[1])
    lengths = np.asarray(lengths, np.int32)
    if samples is None:
        samples = np.arange(lengths.size).reshape(lengths.shape)
    batch = {"token_ids": token_ids, "lengths": lengths, "samples": np.asarray(samples, np.uint32)}
    return Rows.of(batch, seed)


def random_texts(count, lengths=(4, 14), seed=0):
    """Token ids without [CLS] and [SEP] of texts whose rows would have from lengths[0] to lengths[1] tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(4, 60, generator.integers(lengths[0], lengths[1] + 1) - 2) for _ in range(count)]


def token_counts(texts):
    """Tokens of each text, [CLS] and [SEP] included."""
    return np.array([len(text) + 2 for text in texts])


def filled(layout: Layout, texts, samples=None):
    """All rows of a batch with this layout; by default the texts are the first samples of a run."""
    samples = np.arange(len(texts)) if samples is None else samples
    return fill(layout, texts, samples, slice(0, layout.rows), CLS, SEP, PAD)
