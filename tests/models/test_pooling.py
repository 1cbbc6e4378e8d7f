import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax.errors import InputError
from retromae_jax.models.pooling import normalized, pool, truncate

HIDDEN = jnp.array([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]], [[0.0, 2.0], [2.0, 2.0], [4.0, 2.0]]])
VISIBLE = jnp.array([[True, True, False], [True, True, True]])


def test_cls_takes_the_first_state():
    np.testing.assert_allclose(pool(HIDDEN, VISIBLE, "cls"), [[3, 4], [0, 2]])


def test_mean_leaves_padding_out():
    np.testing.assert_allclose(pool(HIDDEN, VISIBLE, "mean"), [[2, 2], [2, 2]])


def test_normalized_embeddings_have_length_one():
    np.testing.assert_allclose(normalized(pool(HIDDEN, VISIBLE, "cls")), [[0.6, 0.8], [0, 1]], rtol=1e-6)


def test_truncated_embeddings_have_length_one_again_where_embeddings_have():
    embeddings = jnp.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(truncate(embeddings, 2, False), [[0.6, 0], [0, 1]])
    np.testing.assert_allclose(truncate(embeddings, 2, True), [[1, 0], [0, 1]])


def test_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="pooling 'max' is unknown; known are cls, mean"):
        pool(HIDDEN, VISIBLE, "max")
