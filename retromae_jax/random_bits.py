"""Random numbers that are pure functions of (seed, sample, purpose, element).

Each number is computed where it is used, from the number of the training sample and the element's position. So
masks and dropout do not depend on the number of devices, on the other texts in the batch or on padding; nothing is
communicated, and no buffer of random bits for the whole batch exists: the few integer operations fuse with their
consumer. (XLA's generator, left to the partitioner, makes every chip produce the whole batch's bits.)

The mixing function is a 32-bit hash of low bias; its multipliers and shifts are those found by the search of
https://github.com/skeeto/hash-prospector.
"""

import copy
import itertools
import zlib

import jax
import jax.numpy as jnp


def mix(x: jax.Array) -> jax.Array:
    """Hashes uint32 to uint32, one to one."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def sample_seeds(seed: int, samples_B: jax.Array) -> jax.Array:
    """Seeds of training samples.

    Args:
        seed: the run's seed.
        samples_B: uint32 [B], each sample's number in the order of the whole run (not in its batch).

    Returns:
        uint32 [B], different for every sample of a run.
    """
    return mix(samples_B.astype(jnp.uint32) ^ mix(jnp.uint32(seed & 0xFFFFFFFF) + jnp.uint32(0x9E3779B9)))


def stream(seeds: jax.Array, purpose: str) -> jax.Array:
    """Derives independent seeds, uint32 of the same shape, for one named use of randomness."""
    return mix(seeds + jnp.uint32(zlib.crc32(purpose.encode())))


def bits(seeds: jax.Array, elements: jax.Array) -> jax.Array:
    """Random uint32 for each element under each seed.

    Args:
        seeds: uint32, broadcastable to the result.
        elements: uint32 element numbers, broadcastable to the result.
    """
    # Two rounds with different seeds: with one, streams whose seeds differ in low bits only would be permutations
    # of each other.
    return mix(mix(elements ^ seeds) + mix(seeds ^ jnp.uint32(0x85EBCA6B)))


def uniform(seeds: jax.Array, elements: jax.Array) -> jax.Array:
    """Random float32 in [0, 1), as `bits`."""
    return (bits(seeds, elements) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


class Dropout:
    """Dropout for one forward pass; every application draws from a stream of its own.

    Args:
        seeds_BxL: uint32, the seed of the sample that each token belongs to.
        positions_BxL: int32, each token's position in its text.
    """

    def __init__(self, seeds_BxL: jax.Array, positions_BxL: jax.Array):
        self.token_seeds_BxL = bits(seeds_BxL, positions_BxL.astype(jnp.uint32))
        self.key_positions_BxL = positions_BxL.astype(jnp.uint32)
        self._applications = itertools.count(1)

    def at(self, indices_BxK: jax.Array) -> "Dropout":
        """The same dropout for K of each row's tokens, which still attend to all of the row's."""
        chosen = copy.copy(self)
        chosen.token_seeds_BxL = jnp.take_along_axis(self.token_seeds_BxL, indices_BxK, axis=1)
        return chosen

    def __call__(self, x_BxLxD: jax.Array, rate: float) -> jax.Array:
        """Zeroes a share `rate` of the tokens' states, [B, L, D], and scales up the rest."""
        seeds_BxLx1 = self._next()[:, :, None]
        if rate == 0:
            return x_BxLxD
        features_D = jnp.arange(x_BxLxD.shape[-1], dtype=jnp.uint32)
        return jnp.where(kept(seeds_BxLx1, features_D, rate), x_BxLxD / (1.0 - rate), jnp.zeros((), x_BxLxD.dtype))

    def attention_seeds(self) -> jax.Array:
        """Seeds of each token's rows of attention probabilities, uint32 [B, L]; head h's is `bits` of it and h."""
        return self._next()

    def _next(self) -> jax.Array:
        return stream(self.token_seeds_BxL, f"dropout {next(self._applications)}")


def kept(seeds: jax.Array, elements: jax.Array, rate: float) -> jax.Array:
    """Whether dropout at this rate keeps an element, bool; arguments as for `bits`.

    Millions of elements are drawn in a step, so each costs one round of mixing. Seeds that differ in few bits would
    give permutations of one stream: they must be hashes already.
    """
    return mix(seeds ^ elements) < jnp.uint32(round((1.0 - rate) * 2**32))
