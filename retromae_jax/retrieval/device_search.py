"""Exact search in JAX on all devices of this process.

A slice of passages is split over the devices. Each device keeps the best of the passages that it has seen, and all that
the devices have kept is sorted once, at the end. Passages travel to the devices as they are stored, in half precision
for example, and are compared in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from retromae_jax import parallel
from retromae_jax.parallel import DATA
from retromae_jax.retrieval.slices import HALF_PRECISION, Slices, as_float32, not_finite
from retromae_jax.retrieval.top_k import Found

# Each device has the scores of so many passages for so many queries in memory.
PASSAGES_AT_ONCE = 2**14
QUERIES_AT_ONCE = 512

NONE_WRONG = np.iinfo(np.int32).max


class Best(NamedTuple):
    """What devices have found, each for itself.

    Attributes:
        scores: float32 [devices, chunks of queries, C, k], best first, equal ones by index.
        indices: int32 of the same shape, counted from the first passage that is searched; -1 where there is none.
        wrong: int32 [devices], the first passage whose embedding is not finite, else `NONE_WRONG`.
    """

    scores: jax.Array
    indices: jax.Array
    wrong: jax.Array


def search(queries: np.ndarray, passages: Slices, k: int, mesh: Mesh | None = None) -> Found:
    """The k passages with the largest inner products, equal ones by index; arguments as of `PassageIndex.search`.

    Args:
        mesh: devices to search on; None takes all of this process.

    Raises:
        InputError: if an embedding of a passage is not finite.
    """
    mesh = mesh or parallel.local_mesh()
    count, first, dimension = len(passages.share), passages.share.start, queries.shape[1]
    chunks = max(1, -(-len(queries) // QUERIES_AT_ONCE))
    chunk = -(-len(queries) // chunks)
    padded = np.zeros((chunks * chunk, dimension), np.float32)
    padded[: len(queries)] = queries
    queries_on_devices = jax.device_put(padded.reshape(chunks, chunk, dimension), parallel.replicated(mesh))
    of_device = min(PASSAGES_AT_ONCE, -(-count // mesh.size))
    rows = of_device * mesh.size

    def prepare(embeddings: np.ndarray, start: int) -> np.ndarray:
        if embeddings.dtype not in HALF_PRECISION:
            embeddings = as_float32(embeddings)
        whole = np.zeros((rows, dimension), embeddings.dtype)
        whole[: len(embeddings)] = embeddings
        return whole

    best = _nothing(mesh, (mesh.size, chunks, chunk, k))
    for start, embeddings in passages.read(rows, prepare):
        block = jax.device_put(embeddings, parallel.over_batch(mesh))
        _check(best, first)  # waits for the slice before, of which the devices had the embeddings in memory till then
        best = _step(mesh)(best, queries_on_devices, block, np.int32(start - first), np.int32(count))
    _check(best, first)
    scores, indices = (np.asarray(x).reshape(-1, k)[: len(queries)] for x in _merge(mesh)(best.scores, best.indices))
    return scores, np.where(indices < 0, -1, indices.astype(np.int64) + first)


def _nothing(mesh: Mesh, shape: tuple[int, ...]) -> Best:
    nothing = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32), np.full(shape[0], NONE_WRONG, np.int32)
    return Best(*jax.device_put(nothing, parallel.over_batch(mesh)))


def _check(best: Best, first: int) -> None:
    wrong = int(np.asarray(best.wrong).min())
    if wrong != NONE_WRONG:
        raise not_finite("passage", first + wrong)


@functools.cache
def _step(mesh: Mesh) -> jax.stages.Wrapped:
    """Adds a slice: from `Best`, queries, passages, the first one's number and the number of all to `Best`."""

    def on_device(best, queries_CxQxD, passages_NxD, start, count):
        size = len(passages_NxD)
        first = start + jax.lax.axis_index(DATA) * size
        passages_NxD = passages_NxD.astype(jnp.float32)
        is_passage_N = first + jnp.arange(size) < count
        is_wrong_N = ~jnp.isfinite(passages_NxD).all(axis=1)
        wrong = jnp.where(is_wrong_N.any(), first + jnp.argmax(is_wrong_N), NONE_WRONG)

        def of_chunk(chunk):
            scores_QxK, indices_QxK, queries_QxD = chunk
            new_QxN = jnp.dot(queries_QxD, passages_NxD.T, precision=jax.lax.Precision.HIGHEST)
            # Zeros without a sign: -0 would be sorted behind 0.
            new_QxN = jnp.where(is_passage_N, jnp.where(new_QxN == 0, 0.0, new_QxN), -jnp.inf)
            k = scores_QxK.shape[1]
            new_QxN, places = jax.lax.top_k(new_QxN, min(k, size))
            # What is there already has lower indices, and of equal scores `top_k` takes the first.
            scores, order = jax.lax.top_k(jnp.concatenate([scores_QxK, new_QxN], axis=1), k)
            indices = jnp.concatenate([indices_QxK, first + places], axis=1)
            return scores, jnp.take_along_axis(indices, order, axis=1)

        scores, indices = jax.lax.map(of_chunk, (best.scores[0], best.indices[0], queries_CxQxD))
        return Best(scores[None], indices[None], jnp.minimum(best.wrong, wrong))

    split, whole = PartitionSpec(DATA), PartitionSpec()
    in_specs = (split, whole, split, whole, whole)
    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=split), donate_argnums=0)


@functools.cache
def _merge(mesh: Mesh) -> jax.stages.Wrapped:
    """From scores and indices [devices, chunks, C, k] of all devices to the best of them, [chunks, C, k]."""

    def on_device(scores, indices):
        def of_chunk(chunk):
            scores_QxK, indices_QxK = (jax.lax.all_gather(x, DATA, axis=1, tiled=True) for x in chunk)
            k = chunk[0].shape[1]
            scores_QxK, indices_QxK = jax.lax.sort((-scores_QxK, indices_QxK), num_keys=2)
            scores_QxK, indices_QxK = -scores_QxK[:, :k], indices_QxK[:, :k]
            return scores_QxK, jnp.where(scores_QxK == -jnp.inf, -1, indices_QxK)

        return jax.lax.map(of_chunk, (scores[0], indices[0]))

    # Every device makes the same of what it gathers, which the compiler cannot know.
    split, whole = PartitionSpec(DATA), PartitionSpec()
    return jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False))
