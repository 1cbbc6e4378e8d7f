"""The analytic counts against XLA's own of the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retromae_jax import flops
from retromae_jax.models.bert import BertConfig, BertLayer, Computation, MaskedLanguageModelHead
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.condenser import Condenser
from retromae_jax.objectives.contrastive import Contrastive
from retromae_jax.objectives.dupmae import DupMAE
from retromae_jax.objectives.masked_lm import MaskedLM
from retromae_jax.objectives.retromae import RetroMAE

# Wide enough that matrix products outweigh everything else.
CONFIG = BertConfig(vocab_size=4096, hidden_size=512, num_attention_heads=2, intermediate_size=1024, hidden_act="relu")


def counted_by_xla(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("keys_per_query", [64, 192])
def test_a_layer_does_what_xla_counts(keys_per_query):
    layer = BertLayer(CONFIG, Computation(), nnx.Rngs(0))
    visible = np.ones((2, 1, keys_per_query), bool)
    expected = counted_by_xla(
        lambda queries, keys: layer(queries, keys, visible, None), (2, 128, 512), (2, keys_per_query, 512)
    )
    two = [np.full(2, count) for count in (128, keys_per_query, keys_per_query)]
    assert flops.layer_flops(CONFIG, *two) == pytest.approx(expected, rel=0.01)


def test_the_head_does_what_xla_counts():
    head = MaskedLanguageModelHead(CONFIG, nnx.Rngs(0))
    expected = counted_by_xla(lambda hidden, table: head(hidden) @ table.T, (2, 40, 512), (4096, 512))
    assert flops.head_flops(CONFIG, np.array([40, 40])) == pytest.approx(expected, rel=0.01)


def test_objectives_add_up_their_parts():
    texts = np.array([128, 40])
    masked = np.array([38, 12])  # 30 %
    layer, head = flops.layer_flops, flops.head_flops
    full = layer(CONFIG, texts, texts)
    masked_lm = 11 * full + layer(CONFIG, masked + 1, texts, texts) + head(CONFIG, masked)
    assert MaskedLM(CONFIG, None, encoder_mask_probability=0.3).flops(texts) == pytest.approx(3 * masked_lm)
    retromae = masked_lm + full + head(CONFIG, texts - 2)
    assert RetroMAE(CONFIG, None).flops(texts) == pytest.approx(3 * retromae)
    dupmae = 13 * full + head(CONFIG, masked) + head(CONFIG, texts - 2) + head(CONFIG, texts - 1)
    assert DupMAE(CONFIG, None).flops(texts) == pytest.approx(3 * dupmae)
    condenser = masked_lm + full + layer(CONFIG, masked, texts, texts) + head(CONFIG, masked)
    assert Condenser(CONFIG, None, encoder_mask_probability=0.3).flops(texts) == pytest.approx(3 * condenser)
    # Without late masked language modelling, the encoder's last layer is needed at [CLS] only.
    early = 11 * full + layer(CONFIG, np.ones(2), texts, texts) + full + layer(CONFIG, masked, texts, texts)
    early += head(CONFIG, masked)
    found = Condenser(CONFIG, None, encoder_mask_probability=0.3, late_masked_lm=False).flops(texts)
    assert found == pytest.approx(3 * early)
    # So it is in fine-tuning with `cls` pooling.
    first = 11 * full + layer(CONFIG, np.ones(2), texts, texts)
    for pooling, expected in (("mean", 12 * full), ("cls", first)):
        contrastive = Contrastive(CONFIG, EncoderSettings(pooling, False, 128))
        assert contrastive.flops(texts) == pytest.approx(3 * expected)
    lexical = Contrastive(CONFIG, EncoderSettings("cls", False, 128, projection=64, lexical_top_k=8))
    projection = 2 * len(texts) * 512 * 64
    assert lexical.flops(texts) == pytest.approx(3 * (12 * full + projection + head(CONFIG, texts - 1)))


def test_the_rate_of_a_known_device_is_its_vendors():
    class Device:
        device_kind = "NVIDIA H200"

    assert flops.device_flops_per_second(Device(), jnp.dtype("bfloat16")) == 989e12


def test_the_rate_of_another_device_is_measured():
    device = jax.local_devices()[0]
    rate = flops.device_flops_per_second(device, jnp.dtype("float32"))
    assert 1e8 < rate < 1e14
    assert flops.device_flops_per_second(device, jnp.dtype("float32")) == rate  # once
