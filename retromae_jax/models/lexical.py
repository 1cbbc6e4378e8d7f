"""The lexical part of embeddings: which words of the vocabulary a text is about, and how much.

Liu et al., 2023, "RetroMAE-2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models",
represent a text by a linear reduction of its [CLS] state beside the k highest of its words' scores; the inner product
of two texts is that of their reductions plus that of their scores, over the words that both kept. A word's score
follows from the highest logit that the masked-language-model head gives it at any of the text's tokens but [CLS].

An embedding is a row of numbers, D + 2 K: the dense part, the scores of K words, and the numbers of these words in the
vocabulary (whole numbers, exact in float32 below 2^24). So it is as wide for every text, small enough to be gathered
over devices and kept for millions of passages, and lies in an array like any other. `expand` makes of it the vector of
D + V numbers whose inner products count.
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax.models.bert import Bert, MaskedLanguageModelHead
from retromae_jax.rows import Rows
from retromae_jax.vocabulary_max import vocabulary_max

Array = TypeVar("Array", jax.Array, np.ndarray)


def highest_logits(bert: Bert, head: MaskedLanguageModelHead, states_RxLxD: jax.Array, texts: Rows) -> jax.Array:
    """Each word's highest logit among a text's tokens but [CLS], float32 [R, T, V].

    Args:
        bert: the encoder, whose word embeddings are the head's table.
        head: the masked-language-model head.
        states_RxLxD: the encoder's last states.
        texts: the texts.
    """
    return vocabulary_max(
        head(states_RxLxD),
        texts.text_RxL,
        texts.is_token_RxL & (texts.position_RxL > 0),
        bert.embeddings.word_embeddings.embedding[...],
        head.bias[...],
        texts.lengths_RxT.shape[1],
    )


def word_scores(highest: jax.Array) -> jax.Array:
    """Scores of words with these highest logits, log(1 + max(0, logit)), of the same shape.

    Formal et al., 2021, "SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval", equation 1, where
    the maximum is over tokens. Order is kept, so the k highest words are the logits' own; but a word that a text speaks
    against scores 0, like one that it does not speak of, and no single word outweighs all others.
    """
    return jnp.log1p(jax.nn.relu(highest))


def pack(dense: jax.Array, word_scores: jax.Array, top_k: int) -> jax.Array:
    """Embeddings [..., D + 2 K] of dense parts [..., D] and the K highest of the scores [..., V] of each text."""
    scores, words = jax.lax.top_k(word_scores, top_k)
    return jnp.concatenate([dense, scores, words.astype(jnp.float32)], axis=-1)


def unpack(embeddings: Array, top_k: int) -> tuple[Array, Array, Array]:
    """Dense parts [..., D], scores [..., K] and words' numbers, int32 [..., K], of embeddings [..., D + 2 K]."""
    dense, scores, words = (
        embeddings[..., part] for part in (slice(-2 * top_k), slice(-2 * top_k, -top_k), slice(-top_k, None))
    )
    return dense, scores, words.astype(np.int32)


def expand(embeddings: jax.Array, top_k: int, words: int) -> jax.Array:
    """Vectors [..., D + V] whose inner products are the texts', of embeddings [..., D + 2 K] and V words."""
    dense, scores, numbers = unpack(embeddings, top_k)

    @functools.partial(jnp.vectorize, signature="(k),(k)->(v)")
    def of_all_words(scores_K, numbers_K):
        return jnp.zeros(words).at[numbers_K].set(scores_K)

    return jnp.concatenate([dense, of_all_words(scores, numbers)], axis=-1)
