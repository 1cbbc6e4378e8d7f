import numpy as np
import pytest

from retromae_jax.data import batches
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.retrieval import encode
from retromae_jax.retrieval.encode import EmbeddingFiles, encode_texts


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
    sentence_transformers = pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(encode, "WINDOW", 16)  # several windows, the last one partly filled
    monkeypatch.setattr(batches, "LENGTH_BUCKETS", 2)
    theirs = sentence_transformers.SentenceTransformer(str(minilm_directory), device="cpu")
    theirs.max_seq_length = 12
    found = encode_texts(encoder, TEXTS, max_length=12, batch_size=8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)


def test_no_texts_give_no_embeddings(encoder):
    assert encode_texts(encoder, [], max_length=12).shape == (0, 384)


def test_embedding_files_are_read_as_one_array(tmp_path):
    embeddings = np.arange(24, dtype=np.float32).reshape(8, 3)
    files = [tmp_path / f"{number}.npy" for number in range(3)]
    for file, part in zip(files, (embeddings[:3], embeddings[3:3], embeddings[3:]), strict=True):
        np.save(file, part)
    found = EmbeddingFiles(files)
    assert found.shape == (8, 3) and len(found) == 8
    for rows in (slice(0, 8), slice(0, 3), slice(2, 4), slice(5, 100)):
        np.testing.assert_array_equal(found[rows], embeddings[rows])


def test_lengths_beyond_the_positions_are_refused(encoder):
    for length in (2, 513):
        with pytest.raises(InputError, match=f"maximum length {length} is not between 3 and the encoder's 512"):
            encode_texts(encoder, TEXTS, max_length=length)
