import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retromae_jax.linear import Linear, affine, materialized
from retromae_jax.models import parameters


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (7, 5)])
def test_value_and_gradients_equal_the_plain_product(inputs, outputs):
    graph, _ = parameters.structure(lambda rngs: Linear(inputs, outputs, 0.5, rngs))
    x, kernel, bias, weights = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in enumerate([(2, 3, inputs), (inputs, outputs), (outputs,), (2, 3, outputs)])
    )

    def fused(x, kernel, bias):
        return jnp.sum(parameters.bind(graph, {"kernel": kernel, "bias": bias})(x) * weights)

    def plain(x, kernel, bias):
        return jnp.sum((x @ kernel + bias) * weights)

    arguments = (x, kernel, bias)
    np.testing.assert_allclose(fused(*arguments), plain(*arguments), rtol=1e-5)
    for found, expected in zip(
        jax.grad(fused, argnums=(0, 1, 2))(*arguments), jax.grad(plain, argnums=(0, 1, 2))(*arguments), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_activations_give_float32_gradients_summed_in_float32():
    """A sum of 4,096 ones in bfloat16 would stop at 256."""
    x = jnp.ones((4096, 1), jnp.bfloat16)
    kernel, bias = jnp.ones((1, 1)), jnp.zeros(1)
    assert affine(x, kernel, bias).dtype == jnp.bfloat16
    gradients = jax.grad(lambda *arguments: jnp.sum(affine(x, *arguments).astype(jnp.float32)), argnums=(0, 1))(
        kernel, bias
    )
    for gradient in gradients:
        assert gradient.dtype == jnp.float32
        assert float(gradient.squeeze()) == 4096


def test_initial_values():
    layer = Linear(300, 200, 0.02, nnx.Rngs(0))
    assert float(jnp.std(layer.kernel[...])) == pytest.approx(0.02, rel=0.02)
    assert not np.any(layer.bias[...])


def test_materialized():
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jax.jit(lambda x: materialized(x.T))(x), x.T)
