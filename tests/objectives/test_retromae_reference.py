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


@pytest.fixture(scope="module", params=["bert", "roberta"])
def theirs(request):
    """A small masked language model, and a layer of the same sizes as decoder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.AutoConfig.for_model(request.param, vocab_size=90, **sizes)
    language_model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    decoder = type(language_model.base_model.encoder.layer[0])(config).eval()
    for parameter in [*language_model.parameters(), *decoder.parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)
    return language_model, decoder


def numbers(array):
    return torch.tensor(np.asarray(array)).long()


def reference(language_model, decoder, inputs, query):
    """The losses, with the decoder's attention written out."""
    encoder, first_position = language_model.base_model, {"bert": 0, "roberta": 2}[language_model.config.model_type]
    head = language_model.cls if hasattr(language_model, "cls") else language_model.lm_head
    clean, labels = numbers(inputs.texts.token_ids_RxL), numbers(inputs.decoder_labels_RxL)
    hidden = encoder(
        input_ids=numbers(inputs.corrupted.token_ids_RxL), attention_mask=numbers(inputs.corrupted.is_token_RxL)
    ).last_hidden_state
    encoder_labels = numbers(inputs.encoder_labels_RxL)
    encoder_loss = functional.cross_entropy(head(hidden).flatten(0, 1), encoder_labels.flatten())

    embeddings, sentence = encoder.embeddings, hidden[:, :1]
    keys = torch.cat([sentence, embeddings(input_ids=clean)[:, 1:]], dim=1)
    if query == "position":
        queries = embeddings.position_embeddings.weight[first_position : first_position + LENGTH] + sentence
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
    decoder_loss = functional.cross_entropy(head(decoded).flatten(0, 1), labels.flatten())
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
    tensors = {name: parameter.detach().numpy() for name, parameter in named}
    weights, report = huggingface.from_huggingface(tensors, shapes, "theirs", config.model_type)
    assert not report.fresh and not report.left_over

    def loss(weights):
        on_device = jax.tree.map(jnp.asarray, inputs)
        return objective.losses(parameters.bind(graph, weights), on_device, limit=LENGTH, whole={}, dropout=None)

    (total, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    assert float(metrics["encoder_loss"]) == pytest.approx(expected[0].item(), rel=1e-5)
    assert float(metrics["decoder_loss"]) == pytest.approx(expected[1].item(), rel=1e-5)
    assert float(total) == pytest.approx(sum(expected).item(), rel=1e-5)
    found = huggingface.to_huggingface(gradients, config.model_type)
    for name, parameter in named:
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=2e-6, err_msg=name)
