"""Fused linear cross-entropy: vocabulary projection and softmax loss without the logits in memory.

The logits of BERT-base for 32 texts of 512 tokens are 2 GB in float32, and several copies of them live in a plain
backward pass. Here a chunk of positions at a time is projected, its loss and its gradients are computed at once,
and its logits are dropped. The gradients wait in the residuals until the backward pass scales them.
"""

import functools

import jax
import jax.numpy as jnp

from retromae_jax import parallel

POSITIONS_PER_CHUNK = 512


def linear_cross_entropy(
    hidden_BxKxD: jax.Array,
    labels_BxK: jax.Array,
    weights_BxK: jax.Array,
    table_VxD: jax.Array,
    bias_V: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted cross-entropy of the labels under softmax(hidden @ table.T + bias).

    Gradients flow to `hidden`, `table` and `bias`, through the first result only.

    Args:
        hidden_BxKxD: transformed hidden states of K positions of each text.
        labels_BxK: int32; any valid id where the weight is 0.
        weights_BxK: float32.
        table_VxD: output embeddings, cast to the dtype of `hidden` for the products.
        bias_V: output bias.

    Returns:
        Sum over all positions of weight times cross-entropy in nats (scalar float32); each position's
        cross-entropy, float32 [B, K]; whether the label has the highest score, bool [B, K].
    """
    local = parallel.per_device(_chunked, batched=(True, True, True, False, False), summed=(True, False, False))
    return local(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V)


@jax.custom_vjp
def _chunked(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V):
    return _scan(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V, with_gradients=False)[0]


def _forward(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V):
    return _scan(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V, with_gradients=True)


def _backward(gradients, cotangents):
    d_hidden_BxKxD, d_table_VxD, d_bias_V = gradients
    scale = cotangents[0]
    return (
        (d_hidden_BxKxD * scale).astype(d_hidden_BxKxD.dtype),
        None,
        None,
        d_table_VxD * scale,
        d_bias_V * scale,
    )


_chunked.defvjp(_forward, _backward)


def _scan(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V, *, with_gradients):
    batch, positions, _ = hidden_BxKxD.shape
    total = batch * positions
    chunk = min(total, POSITIONS_PER_CHUNK)
    chunks = -(-total // chunk)
    cast_table_VxD = table_VxD.astype(hidden_BxKxD.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def split(x):
        """[B, K, ...] -> [chunks, chunk, ...], zero-padded: the padding's weight is 0."""
        x = x.reshape(total, *x.shape[2:])
        x = jnp.pad(x, [(0, chunks * chunk - total)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(chunks, chunk, *x.shape[1:])

    def join(x):
        return x.reshape(chunks * chunk, *x.shape[2:])[:total].reshape(batch, positions, *x.shape[2:])

    def body(sums, inputs):
        hidden_CxD, labels_C, weights_C = inputs
        logits_CxV = product("CD,VD->CV", hidden_CxD, cast_table_VxD) + bias_V
        highest_C = jnp.max(logits_CxV, axis=-1)
        exponentials_CxV = jnp.exp(logits_CxV - highest_C[:, None])
        sum_C = jnp.sum(exponentials_CxV, axis=-1)
        label_C = jnp.take_along_axis(logits_CxV, labels_C[:, None], axis=-1)[:, 0]
        losses_C = highest_C + jnp.log(sum_C) - label_C
        loss, d_table_VxD, d_bias_V = sums
        outputs = (losses_C, label_C >= highest_C)
        loss += jnp.sum(losses_C * weights_C)
        if not with_gradients:
            return (loss, d_table_VxD, d_bias_V), (outputs, None)
        is_label_CxV = labels_C[:, None] == jnp.arange(bias_V.size, dtype=labels_C.dtype)
        d_logits_CxV = exponentials_CxV * (weights_C / sum_C)[:, None]
        d_logits_CxV = jnp.where(is_label_CxV, d_logits_CxV - weights_C[:, None], d_logits_CxV)
        d_bias_V += jnp.sum(d_logits_CxV, axis=0)
        d_logits_CxV = d_logits_CxV.astype(hidden_CxD.dtype)
        d_table_VxD += product("CV,CD->VD", d_logits_CxV, hidden_CxD)
        d_hidden_CxD = product("CV,VD->CD", d_logits_CxV, cast_table_VxD).astype(hidden_CxD.dtype)
        return (loss, d_table_VxD, d_bias_V), (outputs, d_hidden_CxD)

    # The sums start from zeros made of the inputs, so that inside shard_map they vary over devices as they must.
    zero = jnp.zeros_like(weights_BxK[0, 0])
    sums = (zero, jnp.zeros_like(table_VxD), jnp.zeros_like(bias_V)) if with_gradients else (zero, None, None)
    (loss, d_table_VxD, d_bias_V), (outputs, d_hidden) = jax.lax.scan(
        body, sums, (split(hidden_BxKxD), split(labels_BxK), split(weights_BxK))
    )
    results = (loss, *map(join, outputs))
    return results, (join(d_hidden), d_table_VxD, d_bias_V) if with_gradients else None
