"""The analytic counts against XLA's own of the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retromae_jax import flops, masking
from retromae_jax.models.bert import BertConfig, BertLayer, MaskedLanguageModelHead
from retromae_jax.objectives.retromae import RetroMAE

# Wide enough that matrix products outweigh everything else.
CONFIG = BertConfig(vocab_size=4096, hidden_size=512, num_attention_heads=2, intermediate_size=1024, hidden_act="relu")


def counted_by_xla(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("keys_per_query", [64, 192])
def test_a_layer_does_what_xla_counts(keys_per_query):
    layer = BertLayer(CONFIG, jnp.float32, nnx.Rngs(0))
    visible = np.ones((2, keys_per_query), bool)
    expected = counted_by_xla(
        lambda queries, keys: layer(queries, keys, visible, None), (2, 128, 512), (2, keys_per_query, 512)
    )
    assert flops.layer_flops(CONFIG, 2 * 128, keys_per_query, 2 * keys_per_query) == pytest.approx(expected, rel=0.01)


def test_the_head_does_what_xla_counts():
    head = MaskedLanguageModelHead(CONFIG, jnp.float32, nnx.Rngs(0))
    expected = counted_by_xla(lambda hidden, table: head(hidden) @ table.T, (2, 40, 512), (4096, 512))
    assert flops.head_flops(CONFIG, 2 * 40) == pytest.approx(expected, rel=0.01)


def test_retromae_adds_up_its_parts():
    vocabulary = masking.Vocabulary(np.zeros(4096, np.int8), 0)
    forward = (
        (CONFIG.num_hidden_layers + 1) * flops.layer_flops(CONFIG, 8 * 128, 128)  # encoder and decoder
        + flops.head_flops(CONFIG, 8 * 38)  # 30 % of 128 for the encoder
        + flops.head_flops(CONFIG, 8 * 126)  # all but [CLS] and [SEP] for the decoder
    )
    assert RetroMAE(CONFIG, vocabulary).flops(8, 128) == pytest.approx(3 * forward)


def test_the_rate_of_a_known_device_is_its_vendors():
    class Device:
        device_kind = "NVIDIA H200"

    assert flops.device_flops_per_second(Device(), jnp.dtype("bfloat16")) == 989e12


def test_the_rate_of_another_device_is_measured():
    device = jax.local_devices()[0]
    rate = flops.device_flops_per_second(device, jnp.dtype("float32"))
    assert 1e8 < rate < 1e14
    assert flops.device_flops_per_second(device, jnp.dtype("float32")) == rate  # once
