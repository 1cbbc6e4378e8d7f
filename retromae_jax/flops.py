"""Model FLOPs of a training step, and the rate that a device could do them at.

Counted are matrix products, a multiplication and an addition as two operations, as Chowdhery et al., 2022, "PaLM:
Scaling Language Modeling with Pathways", appendix B, do for model FLOPs utilization; but where they estimate from
the number of parameters, each product of this model is counted as it is. What is recomputed is not counted.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import parallel
from retromae_jax.chips import CHIPS
from retromae_jax.models.bert import BertConfig

# Forward once, and backward twice: the gradient of a product is two products, one for each operand.
TRAINING = 3

# A square product of this size keeps every core busy and takes a fraction of a second: on a CPU, and on others.
MEASURED_SIZE, MEASURED_SIZE_ELSEWHERE = 2048, 8192


def layer_flops(
    config: BertConfig, queries: np.ndarray, keys_per_query: np.ndarray, keys: np.ndarray | None = None
) -> float:
    """Forward FLOPs of one transformer layer (`models.bert.BertLayer`), summed over texts.

    Args:
        config: its sizes: hidden width D, intermediate width F.
        queries: positions of the query stream, Q, of each text.
        keys_per_query: positions that each query is scored against, M, masked ones included.
        keys: positions of the key stream, K; None takes as many as queries.

    Returns:
        4 Q D^2 (query and output) + 4 K D^2 (key and value) + 4 Q M D (scores and mixing) + 4 Q D F (feed-forward).
    """
    width = config.hidden_size
    queries = np.asarray(queries, float)
    keys = queries if keys is None else keys
    projections = 4 * (queries + keys) * width**2
    attention = 4 * queries * keys_per_query * width
    feed_forward = 4 * queries * width * config.intermediate_size
    return float(np.sum(projections + attention + feed_forward))


def encoder_flops(config: BertConfig, tokens: np.ndarray, last: np.ndarray) -> float:
    """Forward FLOPs of an encoder's layers, summed over texts; the last layer's queries are few where few are read.

    Args:
        config: its sizes.
        tokens: of each text.
        last: positions of each text at which the last layer's states are wanted.
    """
    full = (config.num_hidden_layers - 1) * layer_flops(config, tokens, tokens)
    return full + layer_flops(config, last, tokens, tokens)


def head_flops(config: BertConfig, positions: np.ndarray) -> float:
    """Forward FLOPs of the masked-language-model head: 2 P D^2 (transform) + 2 P D V (vocabulary projection).

    Args:
        config: its sizes: hidden width D, vocabulary V.
        positions: positions to predict, P, of each text.
    """
    return float(np.sum(2.0 * np.asarray(positions) * config.hidden_size * (config.hidden_size + config.vocab_size)))


@functools.cache
def device_flops_per_second(device: jax.Device, dtype: jnp.dtype) -> float:
    """What one device can do at most: the vendor's figure if it is known, else the rate of one large product.

    Known are the bfloat16 rates of `retromae_jax.chips`. Elsewhere (a CPU, another GPU, float32) the best of three
    square products in `dtype` is timed, which takes a fraction of a second.

    Args:
        device: of this process.
        dtype: of the operands; sums are float32.

    Returns:
        FLOP/s.
    """
    if dtype == jnp.bfloat16 and device.device_kind in CHIPS:
        return CHIPS[device.device_kind].bfloat16_flops
    with parallel.full_precision(dtype), jax.default_device(device):
        size = MEASURED_SIZE if device.platform == "cpu" else MEASURED_SIZE_ELSEWHERE
        matrix = jnp.ones((size, size), dtype)
        product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
        product(matrix, matrix).block_until_ready()
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            seconds.append(time.perf_counter() - started)
    rate = 2 * size**3 / min(seconds)
    # The devices that a CPU is split into work on the same cores.
    return rate / jax.local_device_count() if device.platform == "cpu" else rate
