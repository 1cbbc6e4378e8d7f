"""Fused linear cross-entropy: vocabulary projection and softmax loss without the logits in memory.

The logits of BERT-base for 32 texts of 512 tokens are 2 GB in float32, and several copies of them live in a plain
backward pass. Here a chunk of positions at a time is projected, its loss and its gradients are computed at once,
and its logits are dropped. The gradients wait in the residuals until the backward pass scales them. Positions of
weight 0, such as padding, cost nothing.
"""

import jax
import jax.numpy as jnp

from retromae_jax import parallel
from retromae_jax.linear import product, sums_over_rows

# A chunk has at least so many positions, and, beyond that, at most so many logits (256 MB in float32), or as many as
# the table has numbers: each chunk adds to the table's gradient, which would take longer than a smaller one's products.
SMALLEST_CHUNK = 256
LOGITS_PER_CHUNK = 2**26


@jax.named_scope("cross_entropy")
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
        cross-entropy, float32 [B, K]; whether the label has the highest score, bool [B, K]. Where the weight is 0,
        the latter two say nothing.
    """
    local = parallel.per_device(
        _chunked,
        batched=(True, True, True, False, False),
        summed=(True, False, False),
        dtype=hidden_BxKxD.dtype,
    )
    return local(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V)


@jax.custom_vjp
def _chunked(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V):
    return _by_chunks(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V, with_gradients=False)[0]


def _forward(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V):
    return _by_chunks(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V, with_gradients=True)


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


def number_of_chunks(positions: int, vocabulary: int, width: int) -> int:
    """Chunks that the loss of so many positions of one device is computed in, with a table of [vocabulary, width]."""
    return -(-positions // _chunk_size(positions, vocabulary, width))


def _chunk_size(positions: int, vocabulary: int, width: int) -> int:
    """Positions in a chunk: the last chunk is half empty on average, and that should not cost much."""
    largest = max(LOGITS_PER_CHUNK // vocabulary, width)
    return min(positions, max(SMALLEST_CHUNK, min(-(-positions // 16), largest)))


def _by_chunks(hidden_BxKxD, labels_BxK, weights_BxK, table_VxD, bias_V, *, with_gradients):
    batch, positions, _ = hidden_BxKxD.shape
    total = batch * positions
    chunk = _chunk_size(total, *table_VxD.shape)
    padding = -total % chunk
    cast_table_VxD = table_VxD.astype(hidden_BxKxD.dtype)
    # Positions that count come first, and only the chunks that hold some of them are computed.
    order_N = jnp.argsort(weights_BxK.reshape(-1) == 0, stable=True)
    counting = jnp.sum(weights_BxK != 0)

    def ordered(x):
        """[B, K, ...] -> [N, ...] in order, padded with the first position, whose weight there is 0."""
        return x.reshape(total, *x.shape[2:])[jnp.pad(order_N, (0, padding))]

    def restored(x_N):
        """[N, ...] -> [B, K, ...]."""
        return x_N[:total][jnp.argsort(order_N)].reshape(batch, positions, *x_N.shape[1:])

    hidden_NxD, labels_N, weights_N = map(ordered, (hidden_BxKxD, labels_BxK, weights_BxK))
    weights_N = jnp.where(jnp.arange(total + padding) < total, weights_N, 0)

    def body(number, state):
        def here(x_N):
            return jax.lax.dynamic_slice_in_dim(x_N, number * chunk, chunk)

        def put(x_N, x_C):
            return jax.lax.dynamic_update_slice_in_dim(x_N, x_C, number * chunk, axis=0)

        hidden_CxD, labels_C, weights_C = map(here, (hidden_NxD, labels_N, weights_N))
        logits_CxV = product("CD,VD->CV", hidden_CxD, cast_table_VxD) + bias_V
        highest_C = jnp.max(logits_CxV, axis=-1)
        exponentials_CxV = jnp.exp(logits_CxV - highest_C[:, None])
        sum_C = jnp.sum(exponentials_CxV, axis=-1)
        label_C = jnp.take_along_axis(logits_CxV, labels_C[:, None], axis=-1)[:, 0]
        losses_C = highest_C + jnp.log(sum_C) - label_C
        (losses_N, correct_N), gradients = state
        outputs = put(losses_N, losses_C), put(correct_N, label_C >= highest_C)
        if gradients is None:
            return outputs, None
        d_hidden_NxD, d_table_DxV, d_bias_V = gradients
        is_label_CxV = labels_C[:, None] == jnp.arange(bias_V.size, dtype=labels_C.dtype)
        d_logits_CxV = exponentials_CxV * (weights_C / sum_C)[:, None]
        d_logits_CxV = jnp.where(is_label_CxV, d_logits_CxV - weights_C[:, None], d_logits_CxV)
        d_logits_CxV = d_logits_CxV.astype(hidden_CxD.dtype)
        d_hidden_CxD = product("CV,VD->CD", d_logits_CxV, cast_table_VxD).astype(hidden_CxD.dtype)
        table_sum_DxV, bias_sum_V = sums_over_rows(hidden_CxD, d_logits_CxV)
        return outputs, (put(d_hidden_NxD, d_hidden_CxD), d_table_DxV + table_sum_DxV, d_bias_V + bias_sum_V)

    # The state starts from zeros made of the inputs, so that inside shard_map it varies over devices as it must.
    zeros = jnp.zeros_like(weights_N), jnp.zeros_like(weights_N, bool)
    gradients = jnp.zeros_like(hidden_NxD), jnp.zeros_like(table_VxD.T), jnp.zeros_like(bias_V)
    state = (zeros, gradients if with_gradients else None)
    chunks = (counting + chunk - 1) // chunk
    (losses_N, correct_N), gradients = jax.lax.fori_loop(0, chunks, body, state)
    results = (jnp.sum(losses_N * weights_N), restored(losses_N), restored(correct_N))
    if not with_gradients:
        return results, None
    d_hidden_NxD, d_table_DxV, d_bias_V = gradients
    return results, (restored(d_hidden_NxD), d_table_DxV.T, d_bias_V)
