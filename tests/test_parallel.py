import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from retromae_jax import parallel
from retromae_jax.linear import Linear
from retromae_jax.models import parameters
from tests.small import equations


@pytest.mark.parametrize(
    "shape, fsdp, expected",
    [
        ((768, 3072), 1, PartitionSpec()),
        ((768, 3072), 4, PartitionSpec(None, "fsdp")),
        ((768, 768), 4, PartitionSpec("fsdp")),
        ((30522, 768), 2, PartitionSpec("fsdp")),
        ((30522, 768), 4, PartitionSpec(None, "fsdp")),
        ((30522, 769), 4, PartitionSpec()),
        ((250002,), 2, PartitionSpec()),
        ((2, 1024), 2, PartitionSpec()),
        ((), 2, PartitionSpec()),
    ],
)
def test_a_parameter_is_split_along_its_longest_axis_that_divides(shape, fsdp, expected):
    assert parallel.parameter_spec(shape, parallel.training_mesh(fsdp)) == expected
    assert parallel.parameter_spec(shape, parallel.data_mesh()) == PartitionSpec()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_split_kernel_travels_in_the_activations_dtype_and_its_gradient_in_float32(monkeypatch, axis):
    """It is gathered once forward and once backward, and not kept in between."""
    monkeypatch.setattr(parallel, "SMALLEST_SPLIT", 1)
    sizes = (16, 8) if axis == 0 else (8, 16)
    graph, _ = parameters.structure(lambda rngs: Linear(*sizes, 0.5, rngs))
    keys = jax.random.split(jax.random.key(0), 4)
    weights = {"kernel": jax.random.normal(keys[0], sizes), "bias": jax.random.normal(keys[1], sizes[1:])}
    x, factors = jax.random.normal(keys[2], (16, sizes[0])), jax.random.normal(keys[3], (16, sizes[1]))

    def loss(weights, x):
        y = parameters.bind(graph, weights)(x.astype(jnp.bfloat16))
        return jnp.sum(y.astype(jnp.float32) * factors)

    gradient = jax.grad(loss, argnums=(0, 1))
    expected = gradient(weights, x)
    mesh = parallel.training_mesh(4)
    placed = jax.device_put(weights, parallel.state_sharding(mesh, weights))
    batch = jax.device_put(x, parallel.over_batch(mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(gradient)(placed, batch)
        program = list(equations(jax.make_jaxpr(gradient)(placed, batch)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert found[0]["kernel"].sharding.is_equivalent_to(placed["kernel"].sharding, 2)
    travels = [(e.primitive.name, e.invars[0].aval.dtype.name) for e in program if e.primitive.name in COLLECTIVES]
    assert sorted(travels) == [("all_gather", "bfloat16")] * 2 + [("reduce_scatter", "float32")]


COLLECTIVES = ("all_gather", "reduce_scatter")
