import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retromae_jax import cross_entropy, parallel
from retromae_jax.cross_entropy import linear_cross_entropy


def problem(batch=8, positions=11, width=16, vocabulary=97, counted=0.7):
    keys = jax.random.split(jax.random.key(0), 5)
    return (
        jax.random.normal(keys[0], (batch, positions, width)),
        jax.random.randint(keys[1], (batch, positions), 0, vocabulary),
        jax.random.uniform(keys[2], (batch, positions))
        * (jax.random.uniform(keys[2], (batch, positions)) > 1 - counted),
        jax.random.normal(keys[3], (vocabulary, width)),
        jax.random.normal(keys[4], (vocabulary,)),
    )


def plain(hidden, labels, weights, table, bias):
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T + bias, labels)
    return jnp.sum(losses * weights)


# Some, all and none of the positions count; all of them leave the last chunk of 24 padded.
@pytest.mark.parametrize("smallest_chunk, counted", [(8, 0.7), (24, 0.7), (1000, 0.7), (24, 1.0), (24, 0.0)])
def test_value_and_gradients_equal_the_plain_computation(monkeypatch, smallest_chunk, counted):
    monkeypatch.setattr(cross_entropy, "SMALLEST_CHUNK", smallest_chunk)
    hidden, labels, weights, table, bias = problem(counted=counted)

    def fused(hidden, table, bias):
        return 3.0 * linear_cross_entropy(hidden, labels, weights, table, bias)[0]

    def expected(hidden, table, bias):
        return 3.0 * plain(hidden, labels, weights, table, bias)

    value, gradients = jax.jit(jax.value_and_grad(fused, argnums=(0, 1, 2)))(hidden, table, bias)
    expected_value, expected_gradients = jax.value_and_grad(expected, argnums=(0, 1, 2))(hidden, table, bias)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_losses_and_hits_by_position():
    hidden, labels, weights, table, bias = problem()
    _, losses, correct = linear_cross_entropy(hidden, labels, weights, table, bias)
    counted = np.asarray(weights) > 0
    logits = hidden @ table.T + bias
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(losses[counted], expected[counted], rtol=1e-4)
    np.testing.assert_array_equal(correct[counted], (jnp.argmax(logits, axis=-1) == labels)[counted])
    assert 0 < np.sum(correct) < correct.size


def test_on_eight_devices_as_on_one():
    hidden, labels, weights, table, bias = problem()

    def loss(hidden, table, bias, labels, weights):
        return linear_cross_entropy(hidden, labels, weights, table, bias)[0]

    step = jax.value_and_grad(loss, argnums=(0, 1, 2))
    expected = jax.jit(step)(hidden, table, bias, labels, weights)
    mesh = parallel.data_mesh()
    batch = jax.device_put((hidden, labels, weights), parallel.over_batch(mesh))
    whole = jax.device_put((table, bias), parallel.replicated(mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(step)(batch[0], *whole, batch[1], batch[2])
    assert len(found[1][0].sharding.device_set) == 8
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_logits_of_the_whole_batch_are_never_in_memory(monkeypatch):
    """And no larger part of them for a larger batch, beyond a chunk's limit."""
    positions, width, vocabulary = 2048, 16, 2048
    monkeypatch.setattr(cross_entropy, "LOGITS_PER_CHUNK", 512 * vocabulary)
    temporaries, whole = {}, {}
    for batch in (8, 16):
        hidden, labels, weights, table, bias = problem(batch, positions, width, vocabulary)

        def loss(hidden, table, bias, labels=labels, weights=weights):
            return linear_cross_entropy(hidden, labels, weights, table, bias)[0]

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(hidden, table, bias).compile()
        temporaries[batch] = compiled.memory_analysis().temp_size_in_bytes
        whole[batch] = batch * positions * vocabulary * 4
    assert temporaries[8] < whole[8] / 4
    assert temporaries[16] - temporaries[8] < whole[8] / 16
