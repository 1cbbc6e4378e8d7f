"""Random numbers that are pure functions of (seed, sample, purpose, element).

Each number is computed where it is used, from the number of the training sample and the element's position. So
masks and dropout do not depend on the number of devices, on the other texts in the batch or on padding; nothing is
communicated, and no buffer of random bits for the whole batch exists: the few integer operations fuse with their
consumer. (XLA's generator, left to the partitioner, makes every chip produce the whole batch's bits.)

The mixing function is a 32-bit hash without detectable bias for this use: the multipliers and shifts are those
found by the search of https://github.com/skeeto/hash-prospector.
"""

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
        seeds_B: uint32 [B], seeds of the batch's samples.
    """

    def __init__(self, seeds_B: jax.Array):
        self.seeds_B = seeds_B
        self.applications = 0

    def __call__(self, x: jax.Array, rate: float) -> jax.Array:
        """Zeroes a share `rate` of x, [B, ...], and scales up the rest."""
        self.applications += 1
        if rate == 0:
            return x
        seeds_B = stream(self.seeds_B, f"dropout {self.applications}")
        seeds = seeds_B.reshape(-1, *[1] * (x.ndim - 1))
        elements = jnp.zeros((), jnp.uint32)
        for axis in range(1, x.ndim):
            # Strides of at least 1,024 instead of the axis's size, so that padding does not renumber elements.
            stride = jnp.uint32(max(1024, 1 << (x.shape[axis] - 1).bit_length()))
            elements = elements * stride + jax.lax.broadcasted_iota(jnp.uint32, (1, *x.shape[1:]), axis)
        keep = bits(seeds, elements) < jnp.uint32(round((1.0 - rate) * 2**32))
        return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
