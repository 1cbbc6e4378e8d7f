"""From token states to one sentence embedding."""

import dataclasses

import jax
import jax.numpy as jnp

from retromae_jax.errors import InputError
from retromae_jax.linear import product
from retromae_jax.models.bert import Bert
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows

POOLINGS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How texts become embeddings: `cls` or `mean` pooling, length 1 or not, longest text in tokens."""

    pooling: str
    normalize: bool
    max_length: int


def embed(bert: Bert, rows: Rows, pooling: str, normalize: bool, dropout: Dropout | None = None) -> jax.Array:
    """Sentence embeddings of rows' texts, float32 [R, T, D]; where there is no text, any finite numbers.

    Args:
        bert: the encoder.
        rows: texts.
        pooling: `cls` (the last state of the first token, the only one that is computed) or `mean` (over all tokens).
        normalize: whether to scale to length 1.
        dropout: None at evaluation.

    Raises:
        InputError: if `pooling` is unknown.
    """
    if pooling == "cls":
        sentence_RxTxD = bert.hidden_states(rows, dropout, rows.first_RxT)[-1].astype(jnp.float32)
    elif pooling == "mean":
        hidden_RxLxD = bert(rows, dropout).astype(jnp.float32)
        texts_Tx1 = jnp.arange(rows.lengths_RxT.shape[1])[:, None]
        is_of_RxTxL = (rows.text_RxL[:, None, :] == texts_Tx1) & rows.is_token_RxL[:, None, :]
        sums_RxTxD = product("RTL,RLD->RTD", is_of_RxTxL.astype(jnp.float32), hidden_RxLxD)
        sentence_RxTxD = sums_RxTxD / jnp.maximum(rows.lengths_RxT, 1)[:, :, None]
    else:
        raise InputError(f"pooling {pooling!r} is unknown; known are {', '.join(POOLINGS)}")
    return _normalized(sentence_RxTxD) if normalize else sentence_RxTxD


def truncate(sentence_BxD: jax.Array, dimension: int, normalize: bool) -> jax.Array:
    """The first dimensions of sentence embeddings, [..., D] -> [..., dimension]; of length 1 again with `normalize`."""
    if dimension == sentence_BxD.shape[-1]:
        return sentence_BxD
    sentence_BxD = sentence_BxD[..., :dimension]
    return _normalized(sentence_BxD) if normalize else sentence_BxD


def _normalized(sentence: jax.Array) -> jax.Array:
    # Not by `jnp.linalg.norm`, whose gradient at 0 is NaN: there is no text in some places.
    squares = jnp.sum(sentence**2, axis=-1, keepdims=True)
    return sentence / jnp.sqrt(jnp.maximum(squares, 1e-24))
