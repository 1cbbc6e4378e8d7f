"""Attention whose scores are never in memory for the whole batch, forward or backward.

The scores of 32 texts of 512 tokens are 400 MB a layer in float32, and a plain backward pass keeps several copies of
them for every layer. Here a few texts at a time are attended to, and the backward pass makes their scores again from
queries and keys and the softmax's normalizers (Dao et al., 2022, "FlashAttention", section 3.1).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from retromae_jax import random_bits
from retromae_jax.linear import materialized, product

# The most scores that are in memory at once: the more, the fewer operations has a device that each costs time to start.
MOST_SCORES = 2**27


def attention(
    most_scores: int,
    rate: float,
    queries_BxLxHxK: jax.Array,
    keys_BxMxHxK: jax.Array,
    values_BxMxHxK: jax.Array,
    visible: jax.Array,
    seeds_BxL: jax.Array,
    key_positions_BxM: jax.Array,
) -> jax.Array:
    """As `retromae_jax.attention.attention`, of one device's rows.

    Args:
        most_scores: how many scores may be in memory at once, but for those of one row.
        rate: share of the probabilities that dropout zeroes.
        seeds_BxL: seeds of the queries' probabilities, from `Dropout.attention_seeds`.
        key_positions_BxM: the keys' positions in their texts.
    """
    inputs = (queries_BxLxHxK, keys_BxMxHxK, values_BxMxHxK, visible, seeds_BxL, key_positions_BxM)
    return heads_first(functools.partial(_attention, most_scores, rate), *inputs)


def heads_first(function: Callable[..., jax.Array], *inputs: jax.Array) -> jax.Array:
    """Calls a function whose queries, keys, values and result have the heads before the tokens, [B, H, L, K]."""
    swapped = [_swapped(x, 1, 2) for x in inputs[:3]]
    return jnp.swapaxes(function(*swapped, *inputs[3:]), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(most_scores, rate, queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible, seeds_BxL, key_positions_BxM):
    inputs = (queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible, seeds_BxL, key_positions_BxM)
    return _by_chunks(most_scores, functools.partial(attend, rate), inputs)[0]


def _forward(most_scores, rate, *inputs):
    results = _by_chunks(most_scores, functools.partial(attend, rate), inputs)
    return results[0], (*inputs, *results)


@jax.named_scope("attention")
def _backward(most_scores, rate, residuals, d_mixed_BxHxLxK):
    gradients = _by_chunks(most_scores, functools.partial(attend_backward, rate), (*residuals, d_mixed_BxHxLxK))
    return (*gradients, None, None, None)


_attention.defvjp(_forward, _backward)


def _by_chunks(most_scores, function, inputs):
    """Applies a function of arrays with a leading batch axis to a few rows of the batch at a time."""
    batch, heads, length, _ = inputs[0].shape
    rows = max(1, most_scores // (heads * length * inputs[1].shape[2]))
    if rows >= batch:
        return function(*inputs)
    rows = max(divisor for divisor in range(1, rows + 1) if batch % divisor == 0)
    chunked = [x.reshape(batch // rows, rows, *x.shape[1:]) for x in inputs]
    results = jax.lax.map(lambda chunk: function(*chunk), chunked)
    return tuple(x.reshape(batch, *x.shape[2:]) for x in results)


def _swapped(x, *axes):
    """The array with two axes swapped, in the layout that products are fastest with."""
    swapped = jnp.swapaxes(x, *axes)
    # Not bfloat16: of these products of it, JAX 0.10.2's compiler for CPUs makes some that it cannot run.
    return materialized(swapped) if x.dtype == jnp.float32 else swapped


def _scores(queries_BxHxLxK, keys_BxHxMxK, visible):
    scores_BxHxLxM = product("BHLK,BHMK->BHLM", queries_BxHxLxK, keys_BxHxMxK)
    scale = jnp.float32(1 / math.sqrt(queries_BxHxLxK.shape[-1]))
    return jnp.where(visible[:, None], scores_BxHxLxM * scale, jnp.finfo(jnp.float32).min)


def _dropped(rate, probabilities_BxHxLxM, seeds_BxL, key_positions_BxM):
    if rate == 0:
        return probabilities_BxHxLxM
    heads_Hx1 = jnp.arange(probabilities_BxHxLxM.shape[1], dtype=jnp.uint32)[:, None]
    seeds_BxHxL = random_bits.bits(seeds_BxL[:, None, :], heads_Hx1)
    kept = random_bits.kept(seeds_BxHxL[..., None], key_positions_BxM[:, None, None, :], rate)
    return jnp.where(kept, probabilities_BxHxLxM * jnp.float32(1 / (1 - rate)), 0)


def attend(
    rate: float,
    queries_BxHxLxK: jax.Array,
    keys_BxHxMxK: jax.Array,
    values_BxHxMxK: jax.Array,
    visible: jax.Array,
    seeds_BxL: jax.Array,
    key_positions_BxM: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `attention`, all at once: what it returns, [B, H, L, K], and the highest scores and sums, [B, H, L, 1]."""
    scores_BxHxLxM = _scores(queries_BxHxLxK, keys_BxHxMxK, visible)
    highest_BxHxLx1 = jnp.max(scores_BxHxLxM, axis=-1, keepdims=True)
    exponentials_BxHxLxM = jnp.exp(scores_BxHxLxM - highest_BxHxLx1)
    sums_BxHxLx1 = jnp.sum(exponentials_BxHxLxM, axis=-1, keepdims=True)
    weights_BxHxLxM = _dropped(rate, exponentials_BxHxLxM, seeds_BxL, key_positions_BxM)
    mixed_BxHxLxK = product("BHLM,BHMK->BHLK", weights_BxHxLxM.astype(values_BxHxMxK.dtype), values_BxHxMxK)
    mixed_BxHxLxK = (mixed_BxHxLxK / sums_BxHxLx1).astype(values_BxHxMxK.dtype)
    return mixed_BxHxLxK, highest_BxHxLx1, sums_BxHxLx1


def attend_backward(
    rate: float,
    queries_BxHxLxK: jax.Array,
    keys_BxHxMxK: jax.Array,
    values_BxHxMxK: jax.Array,
    visible: jax.Array,
    seeds_BxL: jax.Array,
    key_positions_BxM: jax.Array,
    mixed_BxHxLxK: jax.Array,
    highest_BxHxLx1: jax.Array,
    sums_BxHxLx1: jax.Array,
    d_mixed_BxHxLxK: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by queries, keys and values, of what `attend` was given and made, and of the gradient by its result."""
    scores_BxHxLxM = _scores(queries_BxHxLxK, keys_BxHxMxK, visible)
    probabilities_BxHxLxM = jnp.exp(scores_BxHxLxM - highest_BxHxLx1) / sums_BxHxLx1
    dropped_BxHxLxM = _dropped(rate, probabilities_BxHxLxM, seeds_BxL, key_positions_BxM)
    d_dropped_BxHxLxM = product("BHLK,BHMK->BHLM", d_mixed_BxHxLxK, values_BxHxMxK)
    # The softmax's gradient needs the sum over keys of probability times its gradient: that of output times its own.
    shift_BxHxLx1 = jnp.sum(
        d_mixed_BxHxLxK.astype(jnp.float32) * mixed_BxHxLxK.astype(jnp.float32), axis=-1, keepdims=True
    )
    d_scores_BxHxLxM = dropped_BxHxLxM * d_dropped_BxHxLxM - probabilities_BxHxLxM * shift_BxHxLx1
    d_scores_BxHxLxM = jnp.where(visible[:, None], d_scores_BxHxLxM, 0).astype(queries_BxHxLxK.dtype)
    dropped_BxHxLxM = dropped_BxHxLxM.astype(values_BxHxMxK.dtype)
    scale = jnp.float32(1 / math.sqrt(queries_BxHxLxK.shape[-1]))
    # With the small operands transposed instead of the scores.
    queries_BxHxKxL, d_mixed_BxHxKxL = (_swapped(x, 2, 3) for x in (queries_BxHxLxK, d_mixed_BxHxLxK))
    d_keys_BxHxKxM = product("BHKL,BHLM->BHKM", queries_BxHxKxL, d_scores_BxHxLxM) * scale
    d_values_BxHxKxM = product("BHKL,BHLM->BHKM", d_mixed_BxHxKxL, dropped_BxHxLxM)
    return (
        (product("BHLM,BHMK->BHLK", d_scores_BxHxLxM, keys_BxHxMxK) * scale).astype(queries_BxHxLxK.dtype),
        jnp.swapaxes(d_keys_BxHxKxM, 2, 3).astype(keys_BxHxMxK.dtype),
        jnp.swapaxes(d_values_BxHxKxM, 2, 3).astype(values_BxHxMxK.dtype),
    )
