"""The highest vocabulary logit of each text's tokens, without the logits of all tokens in memory.

A part of the vocabulary at a time is projected and reduced to the highest logit of each text and the token that has
it. The backward pass sends each gradient to that token.
"""

import functools

import jax
import jax.numpy as jnp

from retromae_jax import parallel
from retromae_jax.linear import product
from retromae_jax.rows import take

WORDS_PER_CHUNK = 2048
# Lower than any logit, and finite, so that texts without counted tokens give no NaN.
LOWEST = -1e4


@jax.named_scope("vocabulary_max")
def vocabulary_max(
    hidden_RxLxD: jax.Array,
    text_RxL: jax.Array,
    counted_RxL: jax.Array,
    table_VxD: jax.Array,
    bias_V: jax.Array,
    texts: int,
) -> jax.Array:
    """The maximum over each text's counted tokens of hidden @ table.T + bias.

    Args:
        hidden_RxLxD: transformed hidden states.
        text_RxL: int32, which of the row's texts a token belongs to.
        counted_RxL: bool, tokens that take part.
        table_VxD: output embeddings, cast to the dtype of `hidden` for the products.
        bias_V: output bias.
        texts: T, texts in a row.

    Returns:
        float32 [R, T, V]; -10,000 for texts without counted tokens.
    """
    local = parallel.per_device(
        lambda *arguments: (_highest(texts, *arguments),),
        batched=(True, True, True, False, False),
        summed=(False,),
        dtype=hidden_RxLxD.dtype,
    )
    return local(hidden_RxLxD, text_RxL, counted_RxL, table_VxD, bias_V)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _highest(texts, hidden_RxLxD, text_RxL, counted_RxL, table_VxD, bias_V):
    return _forward(texts, hidden_RxLxD, text_RxL, counted_RxL, table_VxD, bias_V)[0]


def _forward(texts, hidden_RxLxD, text_RxL, counted_RxL, table_VxD, bias_V):
    rows, length, _ = hidden_RxLxD.shape
    # Tokens that are not counted go to a text of their own, which is dropped.
    segment_RxL = jnp.where(counted_RxL, text_RxL, texts)
    index_L = jnp.arange(length, dtype=jnp.int32)

    def of_chunk(chunk):
        table_CxD, bias_C = chunk
        logits_RxLxC = product("RLD,CD->RLC", hidden_RxLxD, table_CxD.astype(hidden_RxLxD.dtype)) + bias_C

        def of_row(logits_LxC, segment_L):
            highest_TxC = jnp.full((texts + 1, logits_LxC.shape[1]), LOWEST).at[segment_L].max(logits_LxC)
            is_highest_LxC = logits_LxC >= highest_TxC[segment_L]
            at_TxC = jnp.full((texts + 1, logits_LxC.shape[1]), length, jnp.int32)
            at_TxC = at_TxC.at[segment_L].min(jnp.where(is_highest_LxC, index_L[:, None], length))
            return highest_TxC[:texts], at_TxC[:texts]

        return jax.vmap(of_row)(logits_RxLxC, segment_RxL)

    highest, at = jax.lax.map(of_chunk, _chunks(table_VxD, bias_V))
    join = functools.partial(_join, rows=rows, words=len(bias_V))
    return join(highest), (hidden_RxLxD, text_RxL, table_VxD, join(at))


@jax.named_scope("vocabulary_max")
def _backward(texts, residuals, d_highest_RxTxV):
    hidden_RxLxD, text_RxL, table_VxD, at_RxTxV = residuals
    words = len(table_VxD)
    index_L = jnp.arange(hidden_RxLxD.shape[1], dtype=jnp.int32)

    def split(x_RxTxV):
        size = min(words, WORDS_PER_CHUNK)
        padded = jnp.pad(x_RxTxV, ((0, 0), (0, 0), (0, -words % size)))
        return jnp.moveaxis(padded.reshape(*x_RxTxV.shape[:2], -1, size), 2, 0)

    def body(d_hidden_RxLxD, chunk):
        (table_CxD, _), d_highest_RxTxC, at_RxTxC = chunk
        is_highest_RxLxC = take(at_RxTxC, text_RxL) == index_L[:, None]
        d_logits_RxLxC = jnp.where(is_highest_RxLxC, take(d_highest_RxTxC, text_RxL), 0).astype(hidden_RxLxD.dtype)
        d_hidden_RxLxD += product("RLC,CD->RLD", d_logits_RxLxC, table_CxD.astype(hidden_RxLxD.dtype))
        return d_hidden_RxLxD, product("RLC,RLD->CD", d_logits_RxLxC, hidden_RxLxD)

    start = jnp.zeros_like(hidden_RxLxD, jnp.float32)
    chunks = (_chunks(table_VxD, jnp.zeros(words)), split(d_highest_RxTxV), split(at_RxTxV))
    d_hidden_RxLxD, d_table = jax.lax.scan(body, start, chunks)
    d_table_VxD = d_table.reshape(-1, d_table.shape[-1])[:words]
    # Texts without counted tokens have the constant, which no bias is part of.
    d_bias_V = jnp.sum(jnp.where(at_RxTxV < len(index_L), d_highest_RxTxV, 0), axis=(0, 1))
    return d_hidden_RxLxD.astype(hidden_RxLxD.dtype), None, None, d_table_VxD, d_bias_V


_highest.defvjp(_forward, _backward)


def _chunks(table_VxD, bias_V):
    """The vocabulary in parts of equal size, the last one padded: [N, C, D] and [N, C]."""
    words = len(bias_V)
    size = min(words, WORDS_PER_CHUNK)
    padding = -words % size
    table = jnp.pad(table_VxD, ((0, padding), (0, 0))).reshape(-1, size, table_VxD.shape[1])
    return table, jnp.pad(bias_V, (0, padding)).reshape(-1, size)


def _join(chunks_NxRxTxC, rows, words):
    """[N, R, T, C] -> [R, T, V]."""
    moved = jnp.moveaxis(chunks_NxRxTxC, 0, 2)
    return moved.reshape(rows, moved.shape[1], -1)[:, :, :words]
