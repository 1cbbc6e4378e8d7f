"""From token states to one sentence embedding."""

import dataclasses

import jax
import jax.numpy as jnp

from retromae_jax.errors import InputError

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


def pool(hidden_BxLxD: jax.Array, visible_BxL: jax.Array, pooling: str) -> jax.Array:
    """Sentence embeddings, float32 [B, D].

    Args:
        hidden_BxLxD: the encoder's last states.
        visible_BxL: bool, True where there is a token.
        pooling: `cls` (the first state) or `mean` (over all tokens).

    Raises:
        InputError: if `pooling` is unknown.
    """
    hidden_BxLxD = hidden_BxLxD.astype(jnp.float32)
    if pooling == "cls":
        return hidden_BxLxD[:, 0]
    if pooling == "mean":
        weights_BxLx1 = visible_BxL.astype(jnp.float32)[:, :, None]
        return jnp.sum(hidden_BxLxD * weights_BxLx1, axis=1) / jnp.sum(weights_BxLx1, axis=1)
    raise InputError(f"pooling {pooling!r} is unknown; known are {', '.join(POOLINGS)}")


def truncate(sentence_BxD: jax.Array, dimension: int, normalize: bool) -> jax.Array:
    """The first dimensions of sentence embeddings, [..., D] -> [..., dimension]; of length 1 again with `normalize`."""
    if dimension == sentence_BxD.shape[-1]:
        return sentence_BxD
    sentence_BxD = sentence_BxD[..., :dimension]
    return normalized(sentence_BxD) if normalize else sentence_BxD


def normalized(sentence_BxD: jax.Array) -> jax.Array:
    """Sentence embeddings scaled to length 1, [..., D]."""
    return sentence_BxD / jnp.maximum(jnp.linalg.norm(sentence_BxD, axis=-1, keepdims=True), 1e-12)
