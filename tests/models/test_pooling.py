import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax.errors import InputError
from retromae_jax.models.pooling import normalized, pool, truncate
from retromae_jax.rows import Rows

HIDDEN = jnp.array([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]], [[0.0, 2.0], [2.0, 2.0], [4.0, 2.0]]])
# The first row has one text and padding, the second one has two texts.
LENGTHS = jnp.array([[2, 0], [1, 2]])
ROWS = Rows.of({"token_ids": jnp.zeros((2, 3), jnp.int32), "lengths": LENGTHS, "samples": LENGTHS}, seed=0)


def embeddings(pooling):
    """Of the three texts."""
    return np.asarray(pool(HIDDEN, ROWS, pooling))[[0, 1, 1], [0, 0, 1]]


def test_cls_takes_the_first_state():
    np.testing.assert_allclose(embeddings("cls"), [[3, 4], [0, 2], [2, 2]])


def test_mean_leaves_padding_and_other_texts_out():
    np.testing.assert_allclose(embeddings("mean"), [[2, 2], [0, 2], [3, 2]])


def test_normalized_embeddings_have_length_one():
    np.testing.assert_allclose(normalized(embeddings("cls"))[:2], [[0.6, 0.8], [0, 1]], rtol=1e-6)


def test_places_without_a_text_have_finite_embeddings_and_gradients():
    def first(scale):
        return normalized(pool(scale * HIDDEN, ROWS, "mean"))

    assert np.isfinite(first(1.0)).all()
    assert np.isfinite(jax.grad(lambda scale: first(scale)[0, 0, 0])(1.0))


def test_truncated_embeddings_have_length_one_again_where_embeddings_have():
    embeddings = jnp.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(truncate(embeddings, 2, False), [[0.6, 0], [0, 1]])
    np.testing.assert_allclose(truncate(embeddings, 2, True), [[1, 0], [0, 1]])


def test_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="pooling 'max' is unknown; known are cls, mean"):
        pool(HIDDEN, ROWS, "max")
