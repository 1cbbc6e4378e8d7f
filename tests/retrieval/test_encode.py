import numpy as np
import pytest

from retromae_jax.data import batches
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.retrieval import encode
from retromae_jax.retrieval.encode import encode_texts


@pytest.fixture(scope="module")
def encoder(minilm_directory):
    return Encoder.from_pretrained(str(minilm_directory))


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
    import sentence_transformers

    monkeypatch.setattr(encode, "WINDOW", 16)  # several windows, the last one partly filled
    monkeypatch.setattr(batches, "LENGTH_BUCKETS", 2)
    theirs = sentence_transformers.SentenceTransformer(str(minilm_directory), device="cpu")
    theirs.max_seq_length = 12
    found = encode_texts(encoder, TEXTS, max_length=12, batch_size=8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)


def test_no_texts_give_no_embeddings(encoder):
    assert encode_texts(encoder, [], max_length=12).shape == (0, 384)


def test_lengths_beyond_the_positions_are_refused(encoder):
    for length in (2, 513):
        with pytest.raises(InputError, match=f"maximum length {length} is not between 3 and the encoder's 512"):
            encode_texts(encoder, TEXTS, max_length=length)
