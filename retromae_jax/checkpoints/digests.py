"""Digests: of arrays, which a checkpoint carries, so that damage to its files shows when it is read; and of models.

An array's digest is a sum, modulo 2^32, of hashes of each element's bits and position. It is computed where the array
lies, it is the same however the array is split over devices, it changes with any one element for sure and with several
but for one chance in 2^32. File formats' own checksums would not do: those of Orbax's cover its indexes, not the
numbers.
"""

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax.models.bert import BertConfig
from retromae_jax.models.parameters import Arrays
from retromae_jax.random_bits import mix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_digest(config: BertConfig, tokenizer: "PreTrainedTokenizerBase", weights: Arrays) -> str:
    """SHA-256 of all that decides what becomes of token ids, and of text: sizes, weights and tokenizer.

    A run and what is exported of it have the same; the settings are not in it.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name, value in sorted(jax.device_get(weights).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value, np.float32).data)
    return digest.hexdigest()


def digests(tree: Any) -> dict[str, int]:
    """The digest of each array of a tree, by the array's path in it."""
    arrays = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    # One program, when no other runs: on simulated devices, programs that exchange sums wait for each other forever.
    found = _digests(jax.block_until_ready(arrays))
    return {path: int(digest) for path, digest in jax.device_get(found).items()}


@jax.jit
def _digests(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: _digest(x) for path, x in arrays.items()}


def _digest(x: jax.Array) -> jax.Array:
    """The digest of one array of 32-bit numbers, uint32."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(mix(bits ^ mix(position)), dtype=jnp.uint32)
