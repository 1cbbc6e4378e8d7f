"""Multi-head attention: one definition, and implementations that suit different devices.

They take the same random numbers and differ in rounding only, but for `cudnn`, which drops no probabilities, and for
queries that may look at nothing.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from retromae_jax import parallel
from retromae_jax.attention import cached, cudnn, pallas, plain
from retromae_jax.errors import InputError
from retromae_jax.random_bits import Dropout

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "plain": functools.partial(plain.attention, plain.MOST_SCORES),
    "cached": cached.attention,
    "pallas": pallas.attention,
    "cudnn": cudnn.attention,
}
AUTOMATIC = "auto"


def choose(name: str, platform: str, heads: int, width: int, rate: float, dtype: jnp.dtype) -> str:
    """The implementation for a model on a kind of device.

    Args:
        name: one of `IMPLEMENTATIONS`, or `auto`: on TPUs `pallas`, if it can compute with the model's heads; on CPUs
            `cached`; else `plain`.
        platform: of the devices: cpu, gpu or tpu.
        heads: of the model.
        width: of its states.
        rate: share of the probabilities that dropout zeroes.
        dtype: of activations.

    Raises:
        InputError: if the implementation cannot compute this.
    """
    if name == AUTOMATIC:
        if platform == "tpu" and pallas.fits(heads, width):
            return "pallas"
        return "cached" if platform == "cpu" else "plain"
    if name not in IMPLEMENTATIONS:
        raise InputError(f"attention {name!r} is unknown; known are {', '.join((AUTOMATIC, *IMPLEMENTATIONS))}")
    problem = None
    if name == "pallas" and platform != "tpu":
        problem = f"is for TPUs, and the devices are {platform}"
    elif name == "pallas" and not pallas.fits(heads, width):
        problem = f"needs heads whose width divides {pallas.LANES} in a width that is a multiple of it"
    elif name == "cudnn" and platform not in ("gpu", "cuda"):
        problem = f"is for NVIDIA's GPUs, and the devices are {platform}"
    elif name == "cudnn" and dtype == jnp.float32:
        problem = "computes in bfloat16 only; set compute_dtype to bfloat16"
    elif name == "cudnn" and rate > 0:
        problem = f"cannot drop attention probabilities, and the model's attention_probs_dropout_prob is {rate}"
    if problem:
        raise InputError(f"attention {name!r} {problem}; take `auto`")
    return name


@jax.named_scope("attention")
def attention(
    implementation: str,
    queries_BxLxHxK: jax.Array,
    keys_BxMxHxK: jax.Array,
    values_BxMxHxK: jax.Array,
    visible: jax.Array,
    dropout: Dropout | None,
    rate: float,
) -> jax.Array:
    """Multi-head attention, softmax(queries keys^T / sqrt(K)) values (Vaswani et al., 2017, equation 1).

    Scores and softmax are float32; the products with the values take the values' dtype.

    Args:
        implementation: of `IMPLEMENTATIONS`.
        queries_BxLxHxK: L queries of each row.
        keys_BxMxHxK: M keys.
        values_BxMxHxK: M values.
        visible: bool [B, L, M] or [B, 1, M], whether a query may look at a key. One that may look at nothing, as
            padding, gets the mean of some values, or zeros: no loss should depend on it.
        dropout: of the probabilities; None at evaluation.
        rate: share of the probabilities that dropout zeroes.

    Returns:
        [B, L, H, K], of the values' dtype.
    """
    if dropout is None or rate == 0:
        rate = 0.0
        seeds_BxL = jnp.zeros(queries_BxLxHxK.shape[:2], jnp.uint32)
        key_positions_BxM = jnp.zeros(keys_BxMxHxK.shape[:2], jnp.uint32)
    else:
        seeds_BxL, key_positions_BxM = dropout.attention_seeds(), dropout.key_positions_BxL
    local = parallel.per_device(
        lambda *arguments: (IMPLEMENTATIONS[implementation](rate, *arguments),), batched=(True,) * 6, summed=(False,)
    )
    return local(queries_BxLxHxK, keys_BxMxHxK, values_BxMxHxK, visible, seeds_BxL, key_positions_BxM)[0]
