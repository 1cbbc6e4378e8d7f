import numpy as np
import pytest

from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.retrieval import encode
from retromae_jax.retrieval.encode import encode_texts, encode_windows


@pytest.fixture(scope="module")
def encoder(minilm_directory):
    return Encoder.from_pretrained(str(minilm_directory), max_length=12, query_max_length=9, query_prompt="find ")


WORDS = [
    "retrieval",
    "encoders",
    "map",
    "each",
    "text",
    "to",
    "one",
    "vector",
    "and",
    "compare",
    "them",
    "by",
    "products",
]
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + i % 11]) or "." for i in range(37)]


def test_embeddings_equal_those_of_sentence_transformers_in_input_order(encoder, minilm_directory, monkeypatch):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(encode, "WINDOW", 16)  # several windows, the last one partly filled
    theirs = sentence_transformers.SentenceTransformer(str(minilm_directory), device="cpu")
    theirs.max_seq_length = 12
    found = encode_texts(encoder, TEXTS, "passage", batch_size=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)
    # Queries have a prompt, and are cut before passages are.
    theirs.max_seq_length = 9
    np.testing.assert_allclose(
        encode_texts(encoder, TEXTS[:8], "query"), theirs.encode(TEXTS[:8], prompt="find "), atol=1e-5
    )


def test_no_texts_give_no_embeddings(encoder):
    assert encode_texts(encoder, [], "query").shape == (0, 384)


def test_windows_come_one_after_the_other(encoder):
    expected = encode_texts(encoder, TEXTS, "passage")
    windows = [range(5, 9), range(20, 37)]
    found = list(encode_windows(encoder, TEXTS, "passage", windows))
    for window, embeddings in zip(windows, found, strict=True):
        np.testing.assert_allclose(embeddings, expected[window.start : window.stop], atol=1e-6)


def test_lengths_and_prompts_that_do_not_fit_are_refused(minilm_directory):
    for length in (2, 513):
        with pytest.raises(
            InputError, match=f"maximum length {length} of a passage is not between 3 and the encoder's 512"
        ):
            Encoder.from_pretrained(str(minilm_directory), max_length=length, query_max_length=32)
    with pytest.raises(InputError, match="the prompt 'a b c' leaves no room in the 5 tokens of a query"):
        Encoder.from_pretrained(str(minilm_directory), query_max_length=5, query_prompt="a b c")
