"""From token states to one sentence embedding."""

import dataclasses

import jax
import jax.numpy as jnp

from retromae_jax.errors import InputError

POOLINGS = ("cls", "mean")


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How texts become embeddings: `cls` or `mean` pooling, length 1 or not, longest text in tokens."""

    pooling: str
    normalize: bool
    max_length: int


def pool(hidden_BxLxD: jax.Array, visible_BxL: jax.Array, pooling: str, normalize: bool) -> jax.Array:
    """Sentence embeddings, float32 [B, D].

    Args:
        hidden_BxLxD: the encoder's last states.
        visible_BxL: bool, True where there is a token.
        pooling: `cls` (the first state) or `mean` (over all tokens).
        normalize: whether to scale to length 1.

    Raises:
        InputError: if `pooling` is unknown.
    """
    hidden_BxLxD = hidden_BxLxD.astype(jnp.float32)
    if pooling == "cls":
        sentence_BxD = hidden_BxLxD[:, 0]
    elif pooling == "mean":
        weights_BxLx1 = visible_BxL.astype(jnp.float32)[:, :, None]
        sentence_BxD = jnp.sum(hidden_BxLxD * weights_BxLx1, axis=1) / jnp.sum(weights_BxLx1, axis=1)
    else:
        raise InputError(f"pooling {pooling!r} is unknown; known are {', '.join(POOLINGS)}")
    return _normalized(sentence_BxD) if normalize else sentence_BxD


def truncate(sentence_BxD: jax.Array, dimension: int, normalize: bool) -> jax.Array:
    """The first dimensions of sentence embeddings, [..., D] -> [..., dimension]; of length 1 again with `normalize`."""
    if dimension == sentence_BxD.shape[-1]:
        return sentence_BxD
    sentence_BxD = sentence_BxD[..., :dimension]
    return _normalized(sentence_BxD) if normalize else sentence_BxD


def _normalized(sentence_BxD: jax.Array) -> jax.Array:
    return sentence_BxD / jnp.maximum(jnp.linalg.norm(sentence_BxD, axis=-1, keepdims=True), 1e-12)
