"""From token states to one sentence embedding."""

import dataclasses

import jax
import jax.numpy as jnp

from retromae_jax.errors import InputError
from retromae_jax.linear import product
from retromae_jax.rows import Rows, take

POOLINGS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How texts become embeddings.

    Attributes:
        pooling: `cls` or `mean`.
        normalize: whether embeddings have length 1.
        max_length: longest text in tokens.
        projection: width that a linear layer gives the pooled state; 0 for no such layer.
        lexical_top_k: words of the vocabulary in an embedding's lexical part (see `models.lexical`); 0 for none.
        untie_encoder: whether queries and passages have an encoder each.
    """

    pooling: str
    normalize: bool
    max_length: int
    projection: int = 0
    lexical_top_k: int = 0
    untie_encoder: bool = False


def pool(hidden_RxLxD: jax.Array, rows: Rows, pooling: str) -> jax.Array:
    """Sentence embeddings of rows' texts, float32 [R, T, D]; where there is no text, any finite numbers.

    Args:
        hidden_RxLxD: the encoder's last states.
        rows: the texts.
        pooling: `cls` (the state of the first token) or `mean` (over all tokens).

    Raises:
        InputError: if `pooling` is unknown.
    """
    if pooling == "cls":
        return take(hidden_RxLxD, rows.first_RxT).astype(jnp.float32)
    if pooling == "mean":
        texts_Tx1 = jnp.arange(rows.lengths_RxT.shape[1])[:, None]
        is_of_RxTxL = (rows.text_RxL[:, None, :] == texts_Tx1) & rows.is_token_RxL[:, None, :]
        sums_RxTxD = product("RTL,RLD->RTD", is_of_RxTxL.astype(jnp.float32), hidden_RxLxD.astype(jnp.float32))
        return sums_RxTxD / jnp.maximum(rows.lengths_RxT, 1)[:, :, None]
    raise InputError(f"pooling {pooling!r} is unknown; known are {', '.join(POOLINGS)}")


def truncate(sentence_BxD: jax.Array, dimension: int, normalize: bool) -> jax.Array:
    """The first dimensions of sentence embeddings, [..., D] -> [..., dimension]; of length 1 again with `normalize`."""
    if dimension == sentence_BxD.shape[-1]:
        return sentence_BxD
    sentence_BxD = sentence_BxD[..., :dimension]
    return normalized(sentence_BxD) if normalize else sentence_BxD


def normalized(sentence: jax.Array) -> jax.Array:
    """Sentence embeddings scaled to length 1, [..., D]."""
    # Not by `jnp.linalg.norm`, whose gradient at 0 is NaN: there is no text in some places.
    squares = jnp.sum(sentence**2, axis=-1, keepdims=True)
    return sentence / jnp.sqrt(jnp.maximum(squares, 1e-24))
