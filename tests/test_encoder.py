"""Encoders as Python's users meet them."""

import dataclasses

import jax
import numpy as np
import pytest

from retromae_jax import Encoder
from retromae_jax.checkpoints import huggingface
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import UntiedEncoders

PASSAGES = [
    "Dogs bark and cats sleep.",
    "naïve cafés",
    "A compact encoder reads the whole text, sentence by sentence.",
    "",
]
QUERIES = ["what do dogs do", "compact encoders"]


@pytest.fixture(scope="module")
def untied_directory(byte_level_directory, tmp_path_factory):
    """Two small random encoders, of queries, which have a prompt, and of passages."""
    tokenizer = load_tokenizer(str(byte_level_directory))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"model_type": "roberta", "vocab_size": len(tokenizer), "initializer_range": 0.5}
    config = BertConfig.from_huggingface(sizes, "test")
    settings = EncoderSettings("mean", True, 24, untie_encoder=True, query_max_length=12, query_prompt="q: ")
    weights = parameters.initialize(lambda rngs: UntiedEncoders(config, settings, Computation(), rngs), seed=0)
    weights = {
        name: x + 0.1 * np.random.default_rng(n).standard_normal(x.shape) for n, (name, x) in enumerate(weights.items())
    }
    directory = tmp_path_factory.mktemp("untied") / "exported"
    huggingface.save_encoder(directory, config, weights, tokenizer, settings)
    return directory


@pytest.fixture(scope="module")
def encoder(untied_directory):
    return Encoder.from_pretrained(str(untied_directory), device=jax.devices()[:2])


@pytest.fixture(scope="module")
def theirs(untied_directory):
    """Embeddings of queries and of passages by sentence-transformers."""
    packages = pytest.importorskip("sentence_transformers")
    query, passage = (
        packages.SentenceTransformer(str(untied_directory / kind), device="cpu") for kind in ("query", "passage")
    )
    return query.encode(QUERIES, prompt_name="query"), passage.encode(PASSAGES)


def test_each_kind_of_text_has_its_encoder_prompt_and_length(encoder, theirs):
    assert encoder.devices == 2
    queries, passages = theirs
    np.testing.assert_allclose(encoder.encode(QUERIES, "query"), queries, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(PASSAGES), passages, atol=1e-5)
    with pytest.raises(InputError, match="kind of text 'document'; there are query and passage"):
        encoder.encode(PASSAGES, "document")


def test_one_text_is_one_vector_and_no_text_none(encoder, theirs):
    found = encoder.encode(QUERIES[1], "query", batch_size=1, progress=False)
    assert found.shape == (16,) and found.dtype == np.float32
    np.testing.assert_allclose(found, theirs[0][1], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)


def test_search_ranks_by_inner_product(encoder, theirs):
    queries, passages = theirs
    expected = np.argsort(-(queries @ passages.T), axis=1)
    of_each = encoder.search(QUERIES, PASSAGES, k=3)
    for hits, order, query in zip(of_each, expected, queries, strict=True):
        assert [hit.index for hit in hits] == order[:3].tolist()
        assert [hit.text for hit in hits] == [PASSAGES[index] for index in order[:3]]
        np.testing.assert_allclose([hit.score for hit in hits], passages[order[:3]] @ query, atol=1e-5)
    # Of one query; in embeddings; in fewer passages than are wanted.
    found = encoder.search(QUERIES[0], encoder.encode(PASSAGES), k=10)
    assert [hit.index for hit in found] == expected[0].tolist() and found[0].text is None
    assert [dataclasses.replace(hit, text=None) for hit in of_each[0]] == found[:3]


def test_quick_calls_say_nothing(encoder, capsys):
    encoder.search(QUERIES[0], PASSAGES)  # compiles
    capsys.readouterr()
    encoder.search(QUERIES[0], PASSAGES)
    assert capsys.readouterr().err == ""


def test_devices_that_are_not_there_are_named(untied_directory):
    with pytest.raises(InputError, match=r"device 'abacus': .*abacus"):
        Encoder.from_pretrained(str(untied_directory), device="abacus")
