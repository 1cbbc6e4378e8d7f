"""Attention by NVIDIA's cuDNN library, through JAX. It has no dropout that could equal the other implementations'."""

from typing import Literal

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
    library: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """As `retromae_jax.attention.attention`, without dropout.

    Args:
        library: `xla` computes the same on any device, for tests.
    """
    if rate > 0:
        raise ValueError("cuDNN's attention drops no probabilities")
    batch, length = queries_BxLxHxK.shape[:2]
    keys = keys_BxMxHxK.shape[1]
    # A bias, since the library's mask could not tell hidden keys, which a query that may look at nothing still
    # averages over, from those added below. Zeros for such a query: it and the keys get no gradient from it.
    queries_BxLxHxK = jnp.where(visible.any(axis=2)[:, :, None, None], queries_BxLxHxK, 0)
    hidden = jnp.finfo(queries_BxLxHxK.dtype).min.astype(queries_BxLxHxK.dtype)
    bias_BxLxM = jnp.broadcast_to(jnp.where(visible, 0, hidden), (batch, length, keys))
    # The library wants even numbers of queries and keys: added keys count for nothing, added queries see the first key.
    bias_BxLxM = jnp.pad(bias_BxLxM, ((0, 0), (0, length % 2), (0, keys % 2)), constant_values=-jnp.inf)
    bias_BxLxM = bias_BxLxM.at[:, length:, 0].set(0)

    def even(x):
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    mixed_BxLxHxK = jax.nn.dot_product_attention(
        even(queries_BxLxHxK),
        even(keys_BxMxHxK),
        even(values_BxMxHxK),
        bias=bias_BxLxM[:, None],
        implementation=library,
    )
    return mixed_BxLxHxK[:, :length]
