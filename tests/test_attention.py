"""Attention and its own backward pass against the plain formula, differentiated by JAX."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from retromae_jax import parallel, random_bits
from retromae_jax.attention import IMPLEMENTATIONS, cached, choose, cudnn, pallas, plain
from retromae_jax.attention import attention as attention_by
from retromae_jax.errors import InputError
from tests.small import equations

# Two heads in each of two groups of 128 columns.
BATCH, QUERIES, KEYS, HEADS, WIDTH = 8, 5, 7, 4, 64

attention = functools.partial(attention_by, "plain")
attention_on_tpu = functools.partial(attention_by, "pallas")


def limit_scores(monkeypatch, most_scores):
    monkeypatch.setitem(IMPLEMENTATIONS, "plain", functools.partial(plain.attention, most_scores))


def problem(queries=QUERIES, keys=KEYS, dtype=jnp.float32):
    """Queries, keys, values and what the result is multiplied with, so that each of its elements counts."""
    lengths = (queries, keys, keys, queries)
    seeds = jax.random.split(jax.random.key(0), len(lengths))
    return [
        jax.random.normal(seed, (BATCH, length, HEADS, WIDTH)).astype(dtype)
        for seed, length in zip(seeds, lengths, strict=True)
    ]


def visibility(per_query):
    """Keys that all queries, or each of them, may look at: in the last row none, in the first not all have any."""
    visible = jax.random.bernoulli(jax.random.key(1), 0.6, (BATCH, QUERIES if per_query else 1, KEYS))
    visible = visible.at[-1].set(False)
    return visible.at[0, 0].set(False) if per_query else visible


def dropout_of_some():
    """Dropout for the last queries of texts that have as many tokens as there are keys."""
    seeds = random_bits.sample_seeds(0, jnp.arange(BATCH, dtype=jnp.uint32))
    positions = jnp.broadcast_to(jnp.arange(KEYS), (BATCH, KEYS))
    whole = random_bits.Dropout(jnp.broadcast_to(seeds[:, None], (BATCH, KEYS)), positions)
    return whole.at(positions[:, KEYS - QUERIES :])


def formula(queries, keys, values, visible, dropout, rate):
    """softmax(queries keys^T / sqrt(K)) values, as it is written."""
    scores = jnp.einsum("blhk,bmhk->bhlm", queries, keys) / math.sqrt(queries.shape[-1])
    probabilities = jax.nn.softmax(jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    if dropout is not None:
        heads, elements = jnp.arange(HEADS, dtype=jnp.uint32)[:, None], dropout.key_positions_BxL
        seeds = random_bits.bits(dropout.attention_seeds()[:, None], heads)
        kept = random_bits.kept(seeds[..., None], elements[:, None, None, :], rate)
        probabilities = jnp.where(kept, probabilities / (1 - rate), 0)
    return jnp.einsum("bhlm,bmhk->blhk", probabilities, values)


def result_and_gradients(function, visible, rate, queries, keys, values, weights):
    """The result, and the gradients by queries, keys and values of its product with the weights."""

    def weighted(queries, keys, values, weights):
        result = function(queries, keys, values, visible, dropout_of_some() if rate else None, rate)
        return jnp.sum(result * weights), result

    (_, result), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(
        queries, keys, values, weights
    )
    return result, *gradients


@pytest.mark.parametrize("rows_per_chunk", [1, 3, BATCH])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("per_query", [False, True])
def test_results_and_gradients_equal_the_formula(monkeypatch, per_query, rate, rows_per_chunk):
    limit_scores(monkeypatch, rows_per_chunk * HEADS * QUERIES * KEYS)
    visible = visibility(per_query)
    found = result_and_gradients(attention, visible, rate, *problem())
    expected = result_and_gradients(formula, visible, rate, *problem())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_queries_that_may_look_at_nothing_get_the_mean_of_the_values():
    """And no gradient: padding's states must never be NaN."""
    queries, keys, values, _ = problem()
    result = attention(queries, keys, values, visibility(per_query=True), None, 0.0)
    expected = jnp.broadcast_to(jnp.mean(values[-1], axis=0), result[-1].shape)
    np.testing.assert_allclose(result[-1], expected, rtol=1e-5, atol=1e-6)
    _, d_queries, d_keys, _ = result_and_gradients(attention, visibility(per_query=True), 0.0, *problem())
    assert not np.any(d_queries[-1]) and not np.any(d_keys[-1]) and np.any(d_queries[1])


def test_bfloat16_is_close():
    visible, inputs = visibility(per_query=True), problem(dtype=jnp.bfloat16)
    found = result_and_gradients(attention, visible, 0.3, *inputs)
    expected = result_and_gradients(formula, visible, 0.3, *(array.astype(jnp.float32) for array in inputs))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=0.02 * float(jnp.max(jnp.abs(b))))
    # Products are summed in float32. (Compilers for CPUs would do so anyway.)
    traced = jax.make_jaxpr(functools.partial(result_and_gradients, attention, visible, 0.3))(*inputs)
    products = [equation for equation in equations(traced) if equation.primitive.name == "dot_general"]
    assert len(products) == 7
    for product in products:
        assert {variable.aval.dtype for variable in product.invars} == {jnp.dtype(jnp.bfloat16)}
        assert product.outvars[0].aval.dtype == jnp.float32


def test_large_scores_stay_finite():
    queries, keys, values, weights = problem()
    for array in result_and_gradients(attention, visibility(True), 0.3, queries * 100, keys * 100, values, weights):
        assert np.all(np.isfinite(array))


def test_eight_devices_attend_as_one():
    visible = visibility(per_query=True)
    expected = result_and_gradients(attention, visible, 0.3, *problem())
    mesh = parallel.data_mesh()
    inputs, visible = jax.device_put((problem(), visible), parallel.over_batch(mesh))
    with jax.set_mesh(mesh):
        found = result_and_gradients(attention, visible, 0.3, *inputs)
    for a, b in zip(found, expected, strict=True):
        assert a.sharding.is_equivalent_to(parallel.over_batch(mesh), a.ndim)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_scores_of_the_whole_batch_are_never_in_memory(monkeypatch):
    length = 512
    scores = HEADS * length * length
    monkeypatch.setattr("tests.test_attention.WIDTH", 8)
    limit_scores(monkeypatch, scores)
    step = functools.partial(result_and_gradients, attention, jnp.ones((BATCH, 1, length), bool), 0.0)
    compiled = jax.jit(step).lower(*problem(length, length)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < BATCH * scores * 4 / 2


def texts_in_rows(monkeypatch, tokens):
    """Tokens of texts that share rows of 24, with tiles of 4 queries; padding sees nothing."""
    monkeypatch.setattr(cached, "TILE", 4)
    monkeypatch.setattr("tests.test_attention.QUERIES", 24)
    monkeypatch.setattr("tests.test_attention.KEYS", 24)
    text = np.full((BATCH, 24), -1)
    for row, lengths in enumerate(tokens):
        text[row, : sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    return jnp.asarray((text[:, :, None] == text[:, None, :]) & (text >= 0)[:, None, :])


# A whole row; texts of all widths of windows, on and off the tiles' bounds; rows that are hardly filled, or not at all.
TOKENS = [[24], [3, 9, 12], [4, 4, 4, 4, 4, 4], [1] * 24, [17, 6], [8, 16], [2], []]


@pytest.mark.parametrize(("rate", "dtype"), [(0.0, jnp.float32), (0.3, jnp.float32), (0.3, jnp.bfloat16)])
def test_tiles_with_windows_equal_the_formula(monkeypatch, rate, dtype):
    visible = texts_in_rows(monkeypatch, TOKENS)
    *inputs, weights = problem(24, 24, dtype)
    weights *= jnp.any(visible, axis=2)[:, :, None, None].astype(dtype)
    found = result_and_gradients(functools.partial(attention_by, "cached"), visible, rate, *inputs, weights)
    expected = result_and_gradients(formula, visible, rate, *(x.astype(jnp.float32) for x in (*inputs, weights)))
    assert np.all(np.isfinite(found[0]))
    found, expected = ([x[0] * (weights != 0), *x[1:]] for x in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        tolerance = (1e-5 if dtype == jnp.float32 else 0.02) * float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance)


def test_tiles_have_the_windows_that_their_queries_need(monkeypatch):
    visible = texts_in_rows(monkeypatch, TOKENS)
    row, query, key, bounds = map(np.asarray, cached.Tiles.of(visible))
    assert cached.widths(24) == [8, 16, 24] and cached.widths(20) == [8, 16, 20] and cached.widths(4) == [4]
    needed = sum(-(-sum(lengths) // 4) for lengths in TOKENS)
    assert bounds[-1] == BATCH * 6 and bounds[-1] - bounds[0] == needed
    assert len(set(zip(row, query, strict=True))) == BATCH * 6
    for number, width in enumerate(cached.widths(24)):
        for tile in range(bounds[number], bounds[number + 1]):
            seen = np.asarray(visible)[row[tile], query[tile] : query[tile] + 4].any(axis=0)
            window = np.zeros(24, bool)
            window[key[tile] : key[tile] + width] = True
            assert window.sum() == width and not np.any(seen & ~window)
            # No narrower window would do.
            first, last = np.flatnonzero(seen)[[0, -1]]
            assert last + 1 - first > width - 8


def test_tiles_of_eight_devices_are_as_of_one(monkeypatch):
    visible = texts_in_rows(monkeypatch, TOKENS)
    by_tiles = functools.partial(attention_by, "cached")
    expected = result_and_gradients(by_tiles, visible, 0.3, *problem(24, 24))
    mesh = parallel.data_mesh()
    inputs, visible = jax.device_put((problem(24, 24), visible), parallel.over_batch(mesh))
    with jax.set_mesh(mesh):
        found = result_and_gradients(by_tiles, visible, 0.3, *inputs)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_tiles_are_found_where_whole_numbers_have_64_bits(monkeypatch):
    visible, inputs = texts_in_rows(monkeypatch, TOKENS), problem(24, 24)
    by_tiles = functools.partial(result_and_gradients, functools.partial(attention_by, "cached"), visible, 0.3)
    expected = by_tiles(*inputs)
    with jax.enable_x64(True):
        found = by_tiles(*inputs)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def tpu_kernels():
    """Kernels for TPUs run on this CPU, by an interpreter."""
    with pltpu.force_tpu_interpret_mode():
        yield


@pytest.mark.parametrize(
    "per_query, rate, dtype", [(True, 0.3, jnp.float32), (False, 0.0, jnp.float32), (True, 0.3, jnp.bfloat16)]
)
def test_the_kernel_for_tpus_equals_the_formula(monkeypatch, tpu_kernels, per_query, rate, dtype):
    monkeypatch.setattr(pallas, "SCORES_PER_BLOCK", {2: 32 * KEYS, 4: 32 * KEYS})
    queries = 40  # two blocks, the second not full
    monkeypatch.setattr("tests.test_attention.QUERIES", queries)
    monkeypatch.setattr("tests.test_attention.KEYS", queries)
    visible, inputs = visibility(per_query), problem(queries, queries, dtype)
    found = result_and_gradients(attention_on_tpu, visible, rate, *inputs)
    expected = result_and_gradients(formula, visible, rate, *(array.astype(jnp.float32) for array in inputs))
    tolerance = 2e-5 if dtype == jnp.float32 else 0.02
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("per_query", [False, True])
def test_cudnn_gets_what_equals_the_formula(per_query):
    """The same call of JAX's, by its own implementation: the library itself needs an NVIDIA GPU, and even lengths."""
    visible = visibility(per_query)
    nothing = (jnp.zeros((BATCH, QUERIES), jnp.uint32), jnp.zeros((BATCH, KEYS), jnp.uint32))
    assert QUERIES % 2 and KEYS % 2

    def by_library(queries, keys, values, visible, dropout, rate):
        return cudnn.attention(rate, queries, keys, values, visible, *nothing, library="xla")

    found = result_and_gradients(by_library, visible, 0.0, *problem())
    expected = result_and_gradients(formula, visible, 0.0, *problem())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, platform, heads, rate, dtype, expected",
    [
        ("auto", "cpu", 12, 0.1, "float32", "cached"),
        ("auto", "gpu", 12, 0.1, "bfloat16", "plain"),
        ("auto", "tpu", 12, 0.1, "bfloat16", "pallas"),
        ("auto", "tpu", 8, 0.1, "bfloat16", "plain"),  # heads of 96
        ("plain", "tpu", 12, 0.1, "float32", "plain"),
        ("cudnn", "gpu", 12, 0.0, "bfloat16", "cudnn"),
        ("fast", "cpu", 12, 0.1, "float32", "'fast' is unknown"),
        ("pallas", "cpu", 12, 0.1, "float32", "is for TPUs, and the devices are cpu"),
        ("pallas", "tpu", 8, 0.1, "bfloat16", "needs heads whose width divides 128"),
        ("cudnn", "tpu", 12, 0.0, "bfloat16", "is for NVIDIA's GPUs"),
        ("cudnn", "gpu", 12, 0.0, "float32", "set compute_dtype to bfloat16"),
        ("cudnn", "gpu", 12, 0.1, "bfloat16", "attention_probs_dropout_prob is 0.1"),
    ],
)
def test_the_implementation_suits_devices_and_model(name, platform, heads, rate, dtype, expected):
    def chosen():
        return choose(name, platform, heads, 768, rate, jnp.dtype(dtype))

    if " " not in expected:
        assert chosen() == expected
    else:
        with pytest.raises(InputError, match=expected):
            chosen()
