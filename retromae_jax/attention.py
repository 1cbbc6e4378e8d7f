"""Attention whose scores are never in memory for the whole batch, forward or backward.

The scores of 32 texts of 512 tokens are 400 MB a layer in float32, and a plain backward pass keeps several copies of
them for every layer. Here a few texts at a time are attended to, and the backward pass makes their scores again from
queries and keys and the softmax's normalizers (Dao et al., 2022, "FlashAttention", section 3.1).
"""

import functools
import math

import jax
import jax.numpy as jnp

from retromae_jax import parallel, random_bits
from retromae_jax.linear import materialized, product
from retromae_jax.random_bits import Dropout

# Scores of so many elements, 16 MB, stay in a CPU's cache and in a TPU core's vector memory.
SCORES_PER_CHUNK = 2**22


@jax.named_scope("attention")
def attention(
    queries_BxLxHxK: jax.Array,
    keys_BxMxHxK: jax.Array,
    values_BxMxHxK: jax.Array,
    visible: jax.Array,
    dropout: Dropout | None,
    rate: float,
) -> jax.Array:
    """Multi-head attention, softmax(queries keys^T / sqrt(K)) values (Vaswani et al., 2017, equation 1).

    Scores and softmax are float32; the products with the values take the values' dtype.

    Args:
        queries_BxLxHxK: L queries of each row.
        keys_BxMxHxK: M keys.
        values_BxMxHxK: M values.
        visible: bool [B, L, M] or [B, 1, M], whether a query may look at a key. One that may look at nothing gets
            the mean of all values.
        dropout: of the probabilities; None at evaluation.
        rate: share of the probabilities that dropout zeroes.

    Returns:
        [B, L, H, K], of the values' dtype.
    """
    batch, _, heads, _ = queries_BxLxHxK.shape
    if dropout is None or rate == 0:
        rate = 0.0
        seeds_BxHxL = jnp.zeros((batch, 1, 1), jnp.uint32)
        key_positions_BxM = jnp.zeros((batch, 1), jnp.uint32)
    else:
        seeds_BxHxL, key_positions_BxM = dropout.attention_seeds(heads), dropout.key_positions_BxL
    local = parallel.per_device(
        lambda *arguments: (_attention(rate, *arguments),), batched=(True,) * 6, summed=(False,)
    )
    heads_first = [_swapped(x, 1, 2) for x in (queries_BxLxHxK, keys_BxMxHxK, values_BxMxHxK)]
    return jnp.swapaxes(local(*heads_first, visible, seeds_BxHxL, key_positions_BxM)[0], 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(rate, queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible, seeds_BxHxL, key_positions_BxM):
    inputs = (queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible, seeds_BxHxL, key_positions_BxM)
    return _by_chunks(functools.partial(_attend, rate), inputs)[0]


def _forward(rate, *inputs):
    results = _by_chunks(functools.partial(_attend, rate), inputs)
    return results[0], (*inputs, *results)


@jax.named_scope("attention")
def _backward(rate, residuals, d_mixed_BxHxLxK):
    gradients = _by_chunks(functools.partial(_attend_backward, rate), (*residuals, d_mixed_BxHxLxK))
    return (*gradients, None, None, None)


_attention.defvjp(_forward, _backward)


def _by_chunks(function, inputs):
    """Applies a function of arrays with a leading batch axis to a few rows of the batch at a time."""
    batch, heads, length, _ = inputs[0].shape
    rows = max(1, SCORES_PER_CHUNK // (heads * length * inputs[1].shape[2]))
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


def _dropped(rate, probabilities_BxHxLxM, seeds_BxHxL, key_positions_BxM):
    if rate == 0:
        return probabilities_BxHxLxM
    kept = random_bits.kept(seeds_BxHxL[..., None], key_positions_BxM[:, None, None, :], rate)
    return jnp.where(kept, probabilities_BxHxLxM * jnp.float32(1 / (1 - rate)), 0)


def _attend(rate, queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible, seeds_BxHxL, key_positions_BxM):
    scores_BxHxLxM = _scores(queries_BxHxLxK, keys_BxHxMxK, visible)
    highest_BxHxLx1 = jnp.max(scores_BxHxLxM, axis=-1, keepdims=True)
    exponentials_BxHxLxM = jnp.exp(scores_BxHxLxM - highest_BxHxLx1)
    sums_BxHxLx1 = jnp.sum(exponentials_BxHxLxM, axis=-1, keepdims=True)
    weights_BxHxLxM = _dropped(rate, exponentials_BxHxLxM, seeds_BxHxL, key_positions_BxM)
    mixed_BxHxLxK = product("BHLM,BHMK->BHLK", weights_BxHxLxM.astype(values_BxHxMxK.dtype), values_BxHxMxK)
    mixed_BxHxLxK = (mixed_BxHxLxK / sums_BxHxLx1).astype(values_BxHxMxK.dtype)
    return mixed_BxHxLxK, highest_BxHxLx1, sums_BxHxLx1


def _attend_backward(
    rate,
    queries_BxHxLxK,
    keys_BxHxMxK,
    values_BxHxMxK,
    visible,
    seeds_BxHxL,
    key_positions_BxM,
    mixed_BxHxLxK,
    highest_BxHxLx1,
    sums_BxHxLx1,
    d_mixed_BxHxLxK,
):
    scores_BxHxLxM = _scores(queries_BxHxLxK, keys_BxHxMxK, visible)
    probabilities_BxHxLxM = jnp.exp(scores_BxHxLxM - highest_BxHxLx1) / sums_BxHxLx1
    dropped_BxHxLxM = _dropped(rate, probabilities_BxHxLxM, seeds_BxHxL, key_positions_BxM)
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
