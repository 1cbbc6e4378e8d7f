import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import random_bits


def test_sample_seeds_differ_between_samples_and_runs():
    samples = jnp.arange(100_000, dtype=jnp.uint32)
    seeds = np.asarray(random_bits.sample_seeds(1, samples))
    assert len(np.unique(seeds)) == len(seeds)
    assert np.mean(seeds == np.asarray(random_bits.sample_seeds(2, samples))) < 1e-3


def test_uniform_numbers_are_uniform_and_uncorrelated_between_neighbours():
    seeds = random_bits.sample_seeds(0, jnp.arange(512, dtype=jnp.uint32))
    values = np.asarray(random_bits.uniform(seeds[:, None], jnp.arange(512, dtype=jnp.uint32)), np.float64)
    counts, _ = np.histogram(values, bins=64, range=(0, 1))
    expected = values.size / 64
    assert np.sum((counts - expected) ** 2 / expected) < 110  # chi-square, 63 degrees of freedom, p about 2e-4
    centred = values - 0.5
    limit = 4.5 / np.sqrt(values.size) / 12  # standard deviations of a mean of products of uniform variables
    assert abs(np.mean(centred[1:] * centred[:-1])) < limit
    assert abs(np.mean(centred[:, 1:] * centred[:, :-1])) < limit


def test_streams_of_one_seed_are_independent():
    seeds = random_bits.sample_seeds(0, jnp.arange(64, dtype=jnp.uint32))
    elements = jnp.arange(4096, dtype=jnp.uint32)
    a, b = (
        np.asarray(random_bits.uniform(random_bits.stream(seeds, purpose)[:, None], elements)) - 0.5
        for purpose in ("a", "b")
    )
    assert abs(np.mean(a * b)) < 4.5 / np.sqrt(a.size) / 12


def test_dropout_keeps_the_stated_share_and_the_mean():
    seeds = random_bits.sample_seeds(0, jnp.arange(64, dtype=jnp.uint32))
    x = jnp.ones((64, 50, 128))
    dropout = random_bits.Dropout(seeds)
    first, second = np.asarray(dropout(x, 0.1)), np.asarray(dropout(x, 0.1))
    kept = first > 0
    sigma = np.sqrt(0.1 * 0.9 / kept.size)
    assert abs(kept.mean() - 0.9) < 4.5 * sigma
    assert np.allclose(first[kept], 1 / 0.9)
    # A second application of the same pass draws anew.
    assert abs(np.mean(kept & (second > 0)) - 0.81) < 4.5 * np.sqrt(0.81 * 0.19 / kept.size)


def test_dropout_of_a_sample_does_not_depend_on_the_batch():
    seeds = random_bits.sample_seeds(3, jnp.arange(8, dtype=jnp.uint32))
    x = jax.random.normal(jax.random.key(0), (8, 5, 4))
    whole = random_bits.Dropout(seeds)(x, 0.5)
    part = random_bits.Dropout(seeds[2:5])(x[2:5], 0.5)
    np.testing.assert_array_equal(whole[2:5], part)


def test_dropout_does_not_depend_on_padding():
    seeds = random_bits.sample_seeds(3, jnp.arange(2, dtype=jnp.uint32))
    long = random_bits.Dropout(seeds)(jnp.ones((2, 3, 12, 12)), 0.5)
    short = random_bits.Dropout(seeds)(jnp.ones((2, 3, 7, 7)), 0.5)
    np.testing.assert_array_equal(long[:, :, :7, :7], short)
