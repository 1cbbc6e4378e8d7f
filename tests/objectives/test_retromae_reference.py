"""RetroMAE's losses and gradients against a plain PyTorch version of the published definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from retromae_jax.checkpoints import huggingface
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig
from retromae_jax.objectives.retromae import Inputs, RetroMAE
from tests.texts import rows

BATCH, LENGTH = 3, 11
LENGTHS = np.array([11, 7, 4])


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    clean = generator.integers(5, 90, (BATCH, LENGTH))
    positions = np.arange(LENGTH)
    real = positions < LENGTHS[:, None]
    inner = (positions > 0) & (positions < LENGTHS[:, None] - 1)
    masked = inner & (generator.random((BATCH, LENGTH)) < 0.5)
    masked[:, 1] = True
    visible = real[:, None, :] & (generator.random((BATCH, LENGTH, LENGTH)) < 0.6)
    visible[:, :, 0] = True
    visible &= ~np.eye(LENGTH, dtype=bool)
    visible[:, 0, 1] = True
    return Inputs(
        corrupted=rows(np.where(masked, 3, clean), LENGTHS),
        encoder_labels_RxL=np.where(masked, clean, -100),
        texts=rows(clean, LENGTHS),
        decoder_visible_RxLxL=visible,
        decoder_labels_RxL=np.where(inner, clean, -100),
    )


@pytest.fixture(scope="module")
def theirs():
    """A small BertForMaskedLM, and a layer of the same sizes as decoder."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    language_model = transformers.BertForMaskedLM(config).eval()
    decoder = transformers.models.bert.modeling_bert.BertLayer(config).eval()
    for parameter in [*language_model.parameters(), *decoder.parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)
    return language_model, decoder


def numbers(array):
    return torch.tensor(np.asarray(array)).long()


def reference(language_model, decoder, inputs, query):
    """The losses, with the decoder's attention written out."""
    clean, labels = numbers(inputs.texts.token_ids_RxL), numbers(inputs.decoder_labels_RxL)
    hidden = language_model.bert(
        input_ids=numbers(inputs.corrupted.token_ids_RxL), attention_mask=numbers(inputs.corrupted.is_token_RxL)
    ).last_hidden_state
    encoder_labels = numbers(inputs.encoder_labels_RxL)
    encoder_loss = functional.cross_entropy(language_model.cls(hidden).flatten(0, 1), encoder_labels.flatten())

    embeddings, sentence = language_model.bert.embeddings, hidden[:, :1]
    keys = torch.cat([sentence, embeddings(input_ids=clean)[:, 1:]], dim=1)
    if query == "position":
        queries = embeddings.position_embeddings.weight[:LENGTH] + sentence
    else:
        queries = embeddings(inputs_embeds=sentence.expand(-1, LENGTH, -1))
    attention, heads = decoder.attention.self, 2

    def split(x):
        return x.view(BATCH, LENGTH, heads, -1).transpose(1, 2)

    scores = split(attention.query(queries)) @ split(attention.key(keys)).transpose(2, 3) / np.sqrt(16 / heads)
    scores = scores.masked_fill(~torch.tensor(inputs.decoder_visible_RxLxL)[:, None], float("-inf"))
    mixed = (scores.softmax(-1) @ split(attention.value(keys))).transpose(1, 2).flatten(2)
    attended = decoder.attention.output(mixed, queries)
    decoded = decoder.output(decoder.intermediate(attended), attended)
    decoder_loss = functional.cross_entropy(language_model.cls(decoded).flatten(0, 1), labels.flatten())
    return encoder_loss, decoder_loss


@pytest.mark.parametrize("query", ["position", "embedded"])
def test_losses_and_gradients_equal_the_definition(theirs, inputs, query):
    language_model, decoder = theirs
    language_model.zero_grad()
    decoder.zero_grad()
    expected = reference(language_model, decoder, inputs, query)
    sum(expected).backward()

    config = BertConfig.from_huggingface(language_model.config.to_dict(), "theirs")
    objective = RetroMAE(config, vocabulary=None, decoder_query=query)
    graph, shapes = parameters.structure(objective.model)
    named = [(name, p) for name, p in language_model.named_parameters()]
    named += [(f"decoder.{name}", p) for name, p in decoder.named_parameters()]
    weights, report = huggingface.from_huggingface({n: p.detach().numpy() for n, p in named}, shapes, "theirs")
    assert not report.fresh and not report.left_over

    def loss(weights):
        on_device = jax.tree.map(jnp.asarray, inputs)
        return objective.losses(parameters.bind(graph, weights), on_device, limit=LENGTH, whole={}, dropout=None)

    (total, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    assert float(metrics["encoder_loss"]) == pytest.approx(expected[0].item(), rel=1e-5)
    assert float(metrics["decoder_loss"]) == pytest.approx(expected[1].item(), rel=1e-5)
    assert float(total) == pytest.approx(sum(expected).item(), rel=1e-5)
    found = huggingface.to_huggingface(gradients)
    for name, parameter in named:
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=2e-6, err_msg=name)
