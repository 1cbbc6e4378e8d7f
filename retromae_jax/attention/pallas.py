"""Attention as Pallas kernels for TPUs: scores live in a core's vector memory only, forward and backward.

A program of the kernels attends with a block of a text's queries to all of its keys, so that the softmax needs no
running maximum, and the backward pass makes the same scores again. Heads are not moved to an axis of their own: a
program takes 128 columns of the states, the width of a TPU's registers and of its matrix unit, which are two heads of
64. To compute with one of them, the columns of the others are set to zero; the products take no longer for that.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from retromae_jax import random_bits

LANES = 128
# Scores of a program, by the bytes of a state: 1 MB in float32, of which the backward pass has several in vector
# memory, 16 MB at the least. Products of float32 states take more of it.
SCORES_PER_BLOCK = {2: 2**18, 4: 2**17}
# A block's queries are a multiple of the rows that a register of 8-bit numbers has.
ROWS = 32


def fits(heads: int, width: int) -> bool:
    """Whether the kernels can compute with so many heads of states of this width: 128 columns must be whole heads."""
    return width % LANES == 0 and LANES % (width // heads) == 0


class Settings(NamedTuple):
    """What the kernels are compiled for.

    Attributes:
        heads: H.
        rate: share of the probabilities that dropout zeroes.
    """

    heads: int
    rate: float


def attention(
    rate: float,
    queries_BxLxHxK: jax.Array,
    keys_BxMxHxK: jax.Array,
    values_BxMxHxK: jax.Array,
    visible: jax.Array,
    seeds_BxL: jax.Array,
    key_positions_BxM: jax.Array,
) -> jax.Array:
    """As `retromae_jax.attention.plain.attention`."""
    states = [x.reshape(*x.shape[:2], -1) for x in (queries_BxLxHxK, keys_BxMxHxK, values_BxMxHxK)]
    settings = Settings(queries_BxLxHxK.shape[2], rate)
    return _attention(settings, *states, visible, seeds_BxL, key_positions_BxM).reshape(queries_BxLxHxK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, queries_BxLxD, keys_BxMxD, values_BxMxD, visible, seeds_BxL, key_positions_BxM):
    inputs = (queries_BxLxD, keys_BxMxD, values_BxMxD, visible, seeds_BxL, key_positions_BxM)
    return _forward(settings, *inputs)[0]


def _forward(settings, *inputs):
    length = inputs[0].shape[1]
    padded = _padded(*inputs)
    mixed_BxLxD = _call(
        _forward_kernel, settings, padded, results=(padded[0],), products=2, scratch=(), name="attention_forward"
    )[0]
    return mixed_BxLxD[:, :length], inputs


@jax.named_scope("attention")
def _backward(settings, inputs, d_mixed_BxLxD):
    length = inputs[0].shape[1]
    padded = _padded(*inputs)
    d_mixed_BxLxD = _pad_rows(d_mixed_BxLxD, padded[0].shape[1])
    keys = padded[1].shape[1]
    d_queries_BxLxD, d_keys_BxMxD, d_values_BxMxD = _call(
        _backward_kernel,
        settings,
        (d_mixed_BxLxD, *padded),
        results=padded[:3],
        products=5,
        # Sums over the blocks of queries.
        scratch=(pltpu.VMEM((keys, LANES), jnp.float32), pltpu.VMEM((keys, LANES), jnp.float32)),
        name="attention_backward",
    )
    return d_queries_BxLxD[:, :length], d_keys_BxMxD, d_values_BxMxD, None, None, None


_attention.defvjp(_forward, _backward)


def _block(queries_BxLxD: jax.Array, keys: int) -> int:
    """Queries of a program."""
    most = SCORES_PER_BLOCK[queries_BxLxD.dtype.itemsize] // keys // ROWS * ROWS
    return max(ROWS, min(most, -(-queries_BxLxD.shape[1] // ROWS) * ROWS))


def _pad_rows(x, rows):
    return jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


def _padded(queries_BxLxD, keys_BxMxD, values_BxMxD, visible, seeds_BxL, key_positions_BxM):
    """The inputs as the kernels read them: whole blocks of queries, 8-bit visibility, seeds as a column each."""
    block = _block(queries_BxLxD, keys_BxMxD.shape[1])
    rows = -(-queries_BxLxD.shape[1] // block) * block
    visible = visible.astype(jnp.int8)
    return (
        _pad_rows(queries_BxLxD, rows),
        keys_BxMxD,
        values_BxMxD,
        visible if visible.shape[1] == 1 else _pad_rows(visible, rows),
        _pad_rows(seeds_BxL[:, :, None], rows),
        key_positions_BxM[:, None, :],
    )


def _call(kernel, settings, inputs, results, products, scratch, name):
    """Runs a kernel over texts, groups of heads, and blocks of queries, the last one innermost."""
    queries_BxLxD, keys_BxMxD, _, visible, *_ = inputs[-6:]
    batch, length, width = queries_BxLxD.shape
    keys = keys_BxMxD.shape[1]
    block = _block(queries_BxLxD, keys)
    query_states = pl.BlockSpec((None, block, LANES), lambda b, h, q: (b, q, h))
    key_states = pl.BlockSpec((None, keys, LANES), lambda b, h, q: (b, 0, h))
    if visible.shape[1] == 1:
        visibility = pl.BlockSpec((None, 1, keys), lambda b, h, q: (b, 0, 0))
    else:
        visibility = pl.BlockSpec((None, block, keys), lambda b, h, q: (b, q, 0))
    seeds = pl.BlockSpec((None, block, 1), lambda b, h, q: (b, q, 0))
    key_positions = pl.BlockSpec((None, 1, keys), lambda b, h, q: (b, 0, 0))
    in_specs = [query_states, key_states, key_states, visibility, seeds, key_positions]
    in_specs = [query_states] * (len(inputs) - len(in_specs)) + in_specs
    out_specs = [query_states, key_states, key_states][: len(results)]
    scores = batch * settings.heads * length * keys
    size = sum(x.size * x.dtype.itemsize for x in (*inputs, *results))
    return pl.pallas_call(
        functools.partial(kernel, settings, width // settings.heads),
        grid=(batch, width // LANES, length // block),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=jax.typeof(queries_BxLxD).manual_axis_type)
            for x in results
        ],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * width // settings.heads, bytes_accessed=size, transcendentals=scores
        ),
        name=name,
    )(*inputs)


def _product(x, y, contracting):
    return jax.lax.dot_general(x, y, ((contracting[:1], contracting[1:]), ((), ())), preferred_element_type=jnp.float32)


def _heads(head_width, *states):
    """For each head of the 128 columns, its number there and the states with the other heads' columns zero."""
    column = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    for number in range(LANES // head_width):
        own = (column >= number * head_width) & (column < (number + 1) * head_width)
        yield number, tuple(jnp.where(own, x, jnp.zeros((), x.dtype)) for x in states)


def _probabilities(rate, head, scale, queries, keys, is_visible, seeds, key_positions):
    """Exponentials of a head's scores, their sums, and by how much dropout scales each."""
    scores = jnp.where(is_visible, _product(queries, keys, (1, 1)) * scale, jnp.finfo(jnp.float32).min)
    exponentials = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    sums = jnp.sum(exponentials, axis=1, keepdims=True)
    if rate == 0:
        return exponentials, sums, None
    kept = random_bits.kept(random_bits.bits(seeds, head), key_positions, rate)
    return exponentials, sums, jnp.where(kept, jnp.float32(1 / (1 - rate)), 0)


def _dropped(probabilities, scale):
    return probabilities if scale is None else probabilities * scale


def _forward_kernel(settings, head_width, queries, keys, values, visible, seeds, key_positions, mixed):
    is_visible, scale = visible[...].astype(jnp.int32) != 0, jnp.float32(1 / math.sqrt(head_width))
    first = pl.program_id(1) * (LANES // head_width)
    result = jnp.zeros(mixed.shape, jnp.float32)
    for number, (own_queries, own_values) in _heads(head_width, queries[...], values[...]):
        head = (first + number).astype(jnp.uint32)
        exponentials, sums, dropout = _probabilities(
            settings.rate, head, scale, own_queries, keys[...], is_visible, seeds[...], key_positions[...]
        )
        weights = _dropped(exponentials, dropout).astype(values.dtype)
        result += _product(weights, own_values, (1, 0)) / sums
    mixed[...] = result.astype(mixed.dtype)


def _backward_kernel(
    settings,
    head_width,
    d_mixed,
    queries,
    keys,
    values,
    visible,
    seeds,
    key_positions,
    d_queries,
    d_keys,
    d_values,
    d_keys_sum,
    d_values_sum,
):
    is_visible, scale = visible[...].astype(jnp.int32) != 0, jnp.float32(1 / math.sqrt(head_width))
    first = pl.program_id(1) * (LANES // head_width)

    @pl.when(pl.program_id(2) == 0)
    def _():
        d_keys_sum[...] = jnp.zeros_like(d_keys_sum)
        d_values_sum[...] = jnp.zeros_like(d_values_sum)

    result = jnp.zeros(d_queries.shape, jnp.float32)
    for number, (own_queries, own_keys, own_d_mixed) in _heads(head_width, queries[...], keys[...], d_mixed[...]):
        head = (first + number).astype(jnp.uint32)
        exponentials, sums, dropout = _probabilities(
            settings.rate, head, scale, own_queries, keys[...], is_visible, seeds[...], key_positions[...]
        )
        probabilities = exponentials / sums
        dropped = _dropped(probabilities, dropout)
        d_dropped = _product(own_d_mixed, values[...], (1, 1))
        d_scores = dropped * d_dropped
        d_scores = d_scores - probabilities * jnp.sum(d_scores, axis=1, keepdims=True)
        d_scores = jnp.where(is_visible, d_scores * scale, 0).astype(queries.dtype)
        result += _product(d_scores, own_keys, (1, 0))
        d_keys_sum[...] += _product(d_scores, own_queries, (0, 0))
        d_values_sum[...] += _product(dropped.astype(values.dtype), own_d_mixed, (0, 0))
    d_queries[...] = result.astype(d_queries.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        d_keys[...] = d_keys_sum[...].astype(d_keys.dtype)
        d_values[...] = d_values_sum[...].astype(d_values.dtype)
