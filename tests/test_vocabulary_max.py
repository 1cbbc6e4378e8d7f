import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax import parallel
from retromae_jax import vocabulary_max as module
from retromae_jax.vocabulary_max import LOWEST, vocabulary_max

ROWS, LENGTH, TEXTS, WIDTH, WORDS = 8, 12, 3, 6, 37


def problem(rows=ROWS, length=LENGTH, words=WORDS):
    """Hidden states, table and bias; texts of the tokens and which count; what the result is multiplied with.

    No token of the first row's last text counts, and the last row has one text only.
    """
    seeds = jax.random.split(jax.random.key(0), 5)
    text = jnp.sort(jax.random.randint(seeds[0], (rows, length), 0, TEXTS), axis=1).at[-1].set(0)
    counted = jax.random.bernoulli(seeds[1], 0.7, (rows, length))
    counted = counted.at[0].set(counted[0] & (text[0] < TEXTS - 1))
    hidden, table = jax.random.normal(seeds[2], (rows, length, WIDTH)), jax.random.normal(seeds[3], (words, WIDTH))
    bias, weights = jnp.linspace(-1, 1, words), jax.random.normal(seeds[4], (rows, TEXTS, words))
    return hidden, table, bias, text, counted, weights


def plain(hidden, text, counted, table, bias, texts):
    """The maximum of all logits, text by text."""
    belongs = (text[:, None] == jnp.arange(texts)[:, None]) & counted[:, None]
    logits = hidden @ table.T + bias
    return jnp.max(jnp.where(belongs[..., None], logits[:, None], LOWEST), axis=2)


def result_and_gradients(function, hidden, table, bias, text, counted, weights):
    """The result, and the gradients by hidden states, table and bias of its product with the weights."""

    def weighted(hidden, table, bias):
        highest = function(hidden, text, counted, table, bias, TEXTS)
        return jnp.sum(highest * weights), highest

    (_, highest), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(
        hidden, table, bias
    )
    return highest, *gradients


@pytest.mark.parametrize("words_per_chunk", [5, WORDS, 2048])
def test_results_and_gradients_equal_the_plain_maximum(monkeypatch, words_per_chunk):
    monkeypatch.setattr(module, "WORDS_PER_CHUNK", words_per_chunk)
    found = result_and_gradients(vocabulary_max, *problem())
    for a, b in zip(found, result_and_gradients(plain, *problem()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert np.all(found[0][0, -1] == LOWEST) and np.all(found[0][-1, 1:] == LOWEST)


def test_of_equal_logits_one_token_gets_the_gradient():
    """A word that a text has twice has the same logits where attention and positions do not tell them apart."""
    hidden, *others = problem()
    equal = jnp.broadcast_to(hidden[:, :1], hidden.shape)
    for a, b in zip(
        result_and_gradients(vocabulary_max, equal, *others)[2:],
        result_and_gradients(plain, equal, *others)[2:],
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_on_eight_devices_as_on_one():
    hidden, table, bias, *others = problem()
    expected = result_and_gradients(vocabulary_max, hidden, table, bias, *others)
    mesh = parallel.data_mesh()
    hidden, others = jax.device_put((hidden, others), parallel.over_batch(mesh))
    with jax.set_mesh(mesh):
        found = result_and_gradients(vocabulary_max, hidden, table, bias, *others)
    assert found[0].sharding.is_equivalent_to(parallel.over_batch(mesh), 3)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_logits_of_all_tokens_are_never_in_memory(monkeypatch):
    rows, length, words = 8, 256, 4096
    monkeypatch.setattr(module, "WORDS_PER_CHUNK", words // 16)
    compiled = jax.jit(lambda *inputs: result_and_gradients(vocabulary_max, *inputs))
    compiled = compiled.lower(*problem(rows, length, words)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * length * words * 4 / 2
