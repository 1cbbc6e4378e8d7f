"""Rows of the model's input: each holds one text, or several short ones behind each other, then padding.

Every text begins with [CLS], ends with [SEP], attends to itself only, and has positions and random numbers of its own.
What is computed of a text therefore does not depend on the row it is in. A text may be a pair of two segments.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retromae_jax import random_bits
from retromae_jax.linear import product


class Rows(NamedTuple):
    """R rows of L positions with at most T texts each, on the device.

    Attributes:
        token_ids_RxL: int32.
        lengths_RxT: int32, tokens of each text, in order, [CLS] and [SEP] included; 0 where there is none.
        samples_RxT: uint32, each text's number in the order of the whole run.
        seeds_RxT: uint32, each text's seed, which follows from that number.
        text_RxL: int32, which of the row's texts a token belongs to; in padding T - 1.
        position_RxL: int32, a token's position in its text; in padding any that a token could have.
        is_token_RxL: bool, False in padding.
        is_second_RxL: bool, True in the second segment of a pair; None where texts have one segment.
    """

    token_ids_RxL: jax.Array
    lengths_RxT: jax.Array
    samples_RxT: jax.Array
    seeds_RxT: jax.Array
    text_RxL: jax.Array
    position_RxL: jax.Array
    is_token_RxL: jax.Array
    is_second_RxL: jax.Array | None = None

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array], seed: int) -> "Rows":
        """Rows of a batch as it comes from the host.

        Args:
            batch: `token_ids` int32 [R, L]; `lengths` int32 [R, T]; `samples` uint32 [R, T], each text's number in
                the order of the whole run, from which its random numbers follow; for pairs also `first_lengths` int32
                [R, T], the tokens of each text's first segment. With one text a row, all but the first may be [R].
            seed: the run's seed.
        """
        token_ids_RxL = batch["token_ids"]
        rows, length = token_ids_RxL.shape
        lengths_RxT, samples_RxT = (batch[name].reshape(rows, -1) for name in ("lengths", "samples"))
        ends_RxT = jnp.cumsum(lengths_RxT, axis=1)
        index_L = jnp.arange(length, dtype=jnp.int32)
        text_RxL = jnp.sum(index_L[:, None] >= ends_RxT[:, None, :], axis=2, dtype=jnp.int32)
        text_RxL = jnp.minimum(text_RxL, lengths_RxT.shape[1] - 1)
        is_token_RxL = index_L < ends_RxT[:, -1:]
        starts_RxL = jnp.take_along_axis(ends_RxT - lengths_RxT, text_RxL, axis=1)
        position_RxL = index_L - starts_RxL
        seeds_RxT = random_bits.sample_seeds(seed, samples_RxT)
        one_segment = cls(token_ids_RxL, lengths_RxT, samples_RxT, seeds_RxT, text_RxL, position_RxL, is_token_RxL)
        if "first_lengths" not in batch:
            return one_segment
        first_lengths_RxL = one_segment.of_text(batch["first_lengths"].reshape(rows, -1))
        return one_segment._replace(is_second_RxL=position_RxL >= first_lengths_RxL)

    @property
    def is_text_RxT(self) -> jax.Array:
        """Whether there is a text, bool [R, T]."""
        return self.lengths_RxT > 0

    @property
    def first_RxT(self) -> jax.Array:
        """Index in the row of each text's first token, int32 [R, T]; 0 where there is no text."""
        return jnp.where(self.is_text_RxT, jnp.cumsum(self.lengths_RxT, axis=1) - self.lengths_RxT, 0)

    @property
    def length_RxL(self) -> jax.Array:
        """Tokens of the text that a token belongs to, int32 [R, L]; 0 in padding."""
        return jnp.where(self.is_token_RxL, self.of_text(self.lengths_RxT), 0)

    @property
    def inner_RxL(self) -> jax.Array:
        """Tokens that are neither [CLS] nor [SEP] nor padding, bool [R, L]."""
        return (self.position_RxL > 0) & (self.position_RxL < self.length_RxL - 1)

    def of_text(self, values: jax.Array) -> jax.Array:
        """Gives each token the value of its text, [R, T, ...] -> [R, L, ...]."""
        return take(values, self.text_RxL)

    def visible(self) -> jax.Array:
        """Whether token i may look at token j: those of its own text, bool [R, L, L]; [R, 1, L] where T is 1."""
        if self.lengths_RxT.shape[1] == 1:
            return self.is_token_RxL[:, None, :]
        same_RxLxL = self.text_RxL[:, :, None] == self.text_RxL[:, None, :]
        return same_RxLxL & self.is_token_RxL[:, None, :]

    def dropout(self) -> random_bits.Dropout:
        """Dropout for one forward pass over the rows."""
        return random_bits.Dropout(self.of_text(self.seeds_RxT), self.position_RxL)


def take(values: jax.Array, indices_RxK: jax.Array) -> jax.Array:
    """Elements of each row, [R, N, ...] at int [R, K] -> [R, K, ...]; gradients of states are summed in float32."""
    if values.ndim == 3 and jnp.issubdtype(values.dtype, jnp.floating):
        return _take_states(values.shape[1], values, indices_RxK)
    return jax.vmap(lambda row, indices: row[indices])(values, indices_RxK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_states(size, states_RxNxD, indices_RxK):
    return _take_forward(size, states_RxNxD, indices_RxK)[0]


def _take_forward(size, states_RxNxD, indices_RxK):
    # A TPU would take one element after the other; a product with ones and zeros costs it nothing.
    taken_RxKxD = jax.lax.platform_dependent(states_RxNxD, indices_RxK, tpu=product_at, default=elements_at)
    return taken_RxKxD, indices_RxK


def _take_backward(size, indices_RxK, d_taken_RxKxD):
    sums_RxNxD = jax.lax.platform_dependent(
        d_taken_RxKxD,
        indices_RxK,
        tpu=functools.partial(product_to, size),
        default=functools.partial(sums_to, size),
    )
    return sums_RxNxD.astype(d_taken_RxKxD.dtype), None


_take_states.defvjp(_take_forward, _take_backward)


def elements_at(states_RxNxD: jax.Array, indices_RxK: jax.Array) -> jax.Array:
    """Elements of each row, [R, K, D]."""
    return jax.vmap(lambda row, indices: row[indices])(states_RxNxD, indices_RxK)


def product_at(states_RxNxD: jax.Array, indices_RxK: jax.Array) -> jax.Array:
    """The same as a product."""
    at_RxKxN = jax.nn.one_hot(indices_RxK, states_RxNxD.shape[1], dtype=states_RxNxD.dtype)
    return product("RKN,RND->RKD", at_RxKxN, states_RxNxD).astype(states_RxNxD.dtype)


def sums_to(size: int, values_RxKxD: jax.Array, indices_RxK: jax.Array) -> jax.Array:
    """Adds values up where the indices say, float32 [R, size, D]."""

    def of_row(values_KxD, indices_K):
        return jnp.zeros((size, values_KxD.shape[1]), jnp.float32).at[indices_K].add(values_KxD)

    return jax.vmap(of_row)(values_RxKxD.astype(jnp.float32), indices_RxK)


def product_to(size: int, values_RxKxD: jax.Array, indices_RxK: jax.Array) -> jax.Array:
    """The same as a product."""
    at_RxKxN = jax.nn.one_hot(indices_RxK, size, dtype=values_RxKxD.dtype)
    return product("RKN,RKD->RND", at_RxKxN, values_RxKxD)
