"""From token states to one sentence embedding."""

import dataclasses
from typing import Any

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
        max_length: longest text in tokens, [CLS] and [SEP] included.
        projection: width that a linear layer gives the pooled state; 0 for no such layer.
        lexical_top_k: words of the vocabulary in an embedding's lexical part (see `models.lexical`); 0 for none.
        untie_encoder: whether queries and passages have an encoder each.
        query_max_length: longest query in tokens; 0 takes `max_length`.
        query_prompt: stands before every query.
        passage_prompt: stands before every passage, its title included.
        titles: whether a passage's title, where it has one, stands before its text.
        title_separator: between title and text.
    """

    pooling: str
    normalize: bool
    max_length: int
    projection: int = 0
    lexical_top_k: int = 0
    untie_encoder: bool = False
    query_max_length: int = 0
    query_prompt: str = ""
    passage_prompt: str = ""
    titles: bool = True
    title_separator: str = " "

    def max_length_of(self, kind: str) -> int:
        """Longest text of a kind, `query` or `passage`, in tokens."""
        return self.query_max_length or self.max_length if kind == "query" else self.max_length

    def changed(self, **changes: Any) -> "EncoderSettings":
        """These settings with other values; None leaves one as it is."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def prompt_of(self, kind: str) -> str:
        """What stands before every text of a kind, `query` or `passage`."""
        return self.query_prompt if kind == "query" else self.passage_prompt


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
