"""Attention by NVIDIA's cuDNN library, through JAX. It has no dropout that could equal the other implementations'."""

import jax
import jax.numpy as jnp


def attention(
    rate: float,
    queries_BxLxHxK: jax.Array,
    keys_BxMxHxK: jax.Array,
    values_BxMxHxK: jax.Array,
    visible: jax.Array,
    seeds_BxL: jax.Array,
    key_positions_BxM: jax.Array,
    library: str = "cudnn",
) -> jax.Array:
    """As `retromae_jax.attention.attention`, without dropout.

    Args:
        library: `xla` computes the same on any device, for tests.
    """
    if rate > 0:
        raise ValueError("cuDNN's attention drops no probabilities")
    batch, length = queries_BxLxHxK.shape[:2]
    visible_Bx1xLxM = jnp.broadcast_to(visible, (batch, length, visible.shape[2]))[:, None]
    return jax.nn.dot_product_attention(
        queries_BxLxHxK, keys_BxMxHxK, values_BxMxHxK, mask=visible_Bx1xLxM, implementation=library
    )
