import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax.rows import elements_at, product_at, product_to, sums_to, take

STATES = jax.random.normal(jax.random.key(0), (3, 7, 4))
AT = jnp.array([[0, 6, 6, 2, 0], [1, 1, 1, 1, 1], [5, 4, 3, 2, 1]])
VALUES = jax.random.normal(jax.random.key(1), (3, 5, 4))


def test_elements_of_each_row_and_their_gradients():
    expected = np.take_along_axis(np.asarray(STATES), np.asarray(AT)[:, :, None], axis=1)
    np.testing.assert_array_equal(take(STATES, AT), expected)
    sums = np.zeros(STATES.shape, np.float32)
    np.add.at(sums, (np.arange(3)[:, None], np.asarray(AT)), np.asarray(VALUES))
    gradient = jax.grad(lambda states: jnp.sum(take(states, AT) * VALUES))(STATES)
    np.testing.assert_allclose(gradient, sums, rtol=1e-6)
    np.testing.assert_array_equal(take(AT, AT[:, :2] % 5), np.take_along_axis(np.asarray(AT), AT[:, :2] % 5, axis=1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_equal_what_they_stand_for(dtype):
    states, values = STATES.astype(dtype), VALUES.astype(dtype)
    np.testing.assert_array_equal(product_at(states, AT), elements_at(states, AT))
    np.testing.assert_allclose(product_to(7, values, AT), sums_to(7, values, AT), rtol=1e-6, atol=1e-6)


def test_many_gradients_of_bfloat16_are_summed_in_float32():
    """A sum of 4,096 ones in bfloat16 would stop at 256."""
    states, at = jnp.ones((1, 1, 1), jnp.bfloat16), jnp.zeros((1, 4096), int)
    gradient = jax.grad(lambda states: jnp.sum(take(states, at).astype(jnp.float32)))(states)
    assert gradient.dtype == jnp.bfloat16 and float(gradient.squeeze()) == 4096
    assert float(functools.partial(product_to, 1)(jnp.ones((1, 4096, 1), jnp.bfloat16), at).squeeze()) == 4096
