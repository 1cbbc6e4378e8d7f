"""Attention for CPUs: a tile of queries at a time, and only the keys around those that its queries may look at.

Where several texts share a row, most keys are other texts', and are never computed with. The scores of a tile stay in
the cache. Of each tile, the keys from the first to the last visible one are a window; there are windows of few widths,
so that each is compiled, and a loop for each width goes over the tiles that need it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retromae_jax.attention import plain

# Queries of a tile, and the fewest keys of a window: smaller ones leave out more, and cost more time to begin.
TILE = 128
# Widths of windows that there may be.
MOST_WIDTHS = 4
# The most scores in memory at once where there are no tiles: keys are no more than a tile, queries no multiple of one,
# or all queries may look at the same keys.
MOST_SCORES = 2**22


class Tiles(NamedTuple):
    """Where the tiles of a batch and their windows are: T tiles, those of W widths of windows behind each other.

    Attributes:
        row_T: int32, each tile's row.
        query_T: int32, its first query.
        key_T: int32, its window's first key.
        bounds_W: int32 [W + 1], each width's first tile, and the end. Before are tiles whose queries see nothing.
    """

    row_T: jax.Array
    query_T: jax.Array
    key_T: jax.Array
    bounds_W: jax.Array

    @classmethod
    def of(cls, visible_BxLxM: jax.Array) -> "Tiles":
        """The tiles of rows in which a query may look at these keys."""
        rows, queries, keys = visible_BxLxM.shape
        visible_BxUxM = jnp.any(visible_BxLxM.reshape(rows, queries // TILE, TILE, keys), axis=2)
        first_BxU = jnp.argmax(visible_BxUxM, axis=2)
        end_BxU = keys - jnp.argmax(visible_BxUxM[:, :, ::-1], axis=2)
        seen_BxU = jnp.where(jnp.any(visible_BxUxM, axis=2), end_BxU - first_BxU, 0)
        step = widths(keys)[0]
        steps_BxU = -(-seen_BxU // step)
        row_BxU, tile_BxU = jnp.indices(first_BxU.shape)
        order_T = jnp.argsort(steps_BxU.reshape(-1))
        places = (row_BxU, tile_BxU * TILE, jnp.clip(first_BxU, max=jnp.maximum(keys - steps_BxU * step, 0)))
        row_T, query_T, key_T = (x.reshape(-1)[order_T].astype(jnp.int32) for x in places)
        bounds_W = jnp.searchsorted(steps_BxU.reshape(-1)[order_T], jnp.arange(1, len(widths(keys)) + 2))
        return cls(row_T, query_T, key_T, bounds_W.astype(jnp.int32))


def widths(keys: int) -> list[int]:
    """Widths of windows on so many keys: multiples of the first, and all keys."""
    least = TILE * -(-keys // (TILE * MOST_WIDTHS))
    return [*range(least, keys, least), keys]


def attention(
    rate: float,
    queries_BxLxHxK: jax.Array,
    keys_BxMxHxK: jax.Array,
    values_BxMxHxK: jax.Array,
    visible: jax.Array,
    seeds_BxL: jax.Array,
    key_positions_BxM: jax.Array,
) -> jax.Array:
    """As `retromae_jax.attention.plain.attention`, but that queries that see nothing get something else."""
    inputs = (queries_BxLxHxK, keys_BxMxHxK, values_BxMxHxK, visible, seeds_BxL, key_positions_BxM)
    queries, keys = queries_BxLxHxK.shape[1], keys_BxMxHxK.shape[1]
    if visible.shape[1] == 1 or keys <= TILE or queries % TILE:
        return plain.attention(MOST_SCORES, rate, *inputs)
    return plain.heads_first(functools.partial(_attention, rate), *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(rate, queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible_BxLxM, seeds_BxL, key_positions_BxM):
    inputs = (queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible_BxLxM, seeds_BxL, key_positions_BxM)
    return _forward(rate, *inputs)[0]


def _forward(rate, *inputs):
    queries_BxHxLxK, keys_BxHxMxK, values_BxHxMxK, visible_BxLxM, *_ = inputs
    tiles = Tiles.of(visible_BxLxM)
    zeros_BxHxLx1 = jnp.zeros_like(queries_BxHxLxK[..., :1], jnp.float32)

    def attend(width, row, query, key, results):
        found = plain.attend(rate, *_window(width, row, query, key, *inputs))
        return tuple(_put(x, 2, row, query, part) for x, part in zip(results, found, strict=True))

    start = (jnp.zeros_like(queries_BxHxLxK, values_BxHxMxK.dtype), zeros_BxHxLx1, zeros_BxHxLx1)
    results = _over_tiles(attend, tiles, keys_BxHxMxK.shape[2], start)
    return results[0], (*inputs, tiles, *results)


@jax.named_scope("attention")
def _backward(rate, residuals, d_mixed_BxHxLxK):
    *inputs, tiles, mixed_BxHxLxK, highest_BxHxLx1, sums_BxHxLx1 = residuals
    of_queries = (mixed_BxHxLxK, highest_BxHxLx1, sums_BxHxLx1, d_mixed_BxHxLxK)

    def attend_backward(width, row, query, key, gradients):
        of_tile = (_cut(x, 2, row, query, TILE) for x in of_queries)
        d_queries, *of_window = plain.attend_backward(rate, *_window(width, row, query, key, *inputs), *of_tile)
        sums = (_cut(x, 2, row, key, width) for x in gradients[1:])
        added = (_put(x, 2, row, key, a + b) for x, a, b in zip(gradients[1:], sums, of_window, strict=True))
        return _put(gradients[0], 2, row, query, d_queries), *added

    queries_BxHxLxK, *keys_and_values = inputs[:3]
    # Neighbouring tiles' windows overlap: sums of their gradients are float32.
    start = (jnp.zeros_like(queries_BxHxLxK), *(jnp.zeros_like(x, jnp.float32) for x in keys_and_values))
    gradients = _over_tiles(attend_backward, tiles, keys_and_values[0].shape[2], start)
    of_inputs = (gradient.astype(x.dtype) for gradient, x in zip(gradients, inputs[:3], strict=True))
    return *of_inputs, None, None, None


_attention.defvjp(_forward, _backward)


def _over_tiles(function, tiles, keys, state):
    """Applies a function of width, row, first query, first key and state to all tiles, one after the other."""
    *places, bounds_W = tiles
    for number, width in enumerate(widths(keys)):

        def step(tile, state, width=width):
            return function(width, *(x_T[tile] for x_T in places), state)

        state = jax.lax.fori_loop(bounds_W[number], bounds_W[number + 1], step, state)
    return state


def _window(width, row, query, key, queries, keys, values, visible_BxLxM, seeds_BxL, key_positions_BxM):
    """What a tile needs of attention's inputs, as a batch of one row."""
    return (
        _cut(queries, 2, row, query, TILE),
        _cut(keys, 2, row, key, width),
        _cut(values, 2, row, key, width),
        jax.lax.dynamic_slice(visible_BxLxM, (row, query, key), (1, TILE, width)),
        _cut(seeds_BxL, 1, row, query, TILE),
        _cut(key_positions_BxM, 1, row, key, width),
    )


def _cut(x, axis, row, start, size):
    """A part of one row, [1, ...], along an axis."""
    return jax.lax.dynamic_slice(x, _at(x, axis, row, start), (1, *x.shape[1:axis], size, *x.shape[axis + 1 :]))


def _put(x, axis, row, start, part):
    """The array with such a part replaced."""
    return jax.lax.dynamic_update_slice(x, part, _at(x, axis, row, start))


def _at(x, axis, row, start):
    # All int32, as the tiles' places are: JAX wants one type, and its own may have 64 bits.
    return [jnp.int32({0: row, axis: start}.get(number, 0)) for number in range(x.ndim)]
