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


def dropout(samples, length, seed=0):
    seeds_B = random_bits.sample_seeds(seed, jnp.asarray(samples, jnp.uint32))
    seeds_BxL = jnp.broadcast_to(seeds_B[:, None], (len(samples), length))
    positions_BxL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (len(samples), length))
    return random_bits.Dropout(seeds_BxL, positions_BxL)


def test_dropout_keeps_the_stated_share_and_the_mean():
    x = jnp.ones((64, 50, 128))
    drop = dropout(range(64), 50)
    first, second = np.asarray(drop(x, 0.1)), np.asarray(drop(x, 0.1))
    kept = first > 0
    sigma = np.sqrt(0.1 * 0.9 / kept.size)
    assert abs(kept.mean() - 0.9) < 4.5 * sigma
    assert np.allclose(first[kept], 1 / 0.9)
    # A second application of the same pass draws anew.
    assert abs(np.mean(kept & (second > 0)) - 0.81) < 4.5 * np.sqrt(0.81 * 0.19 / kept.size)


def test_dropout_is_uncorrelated_between_texts_positions_features_and_heads():
    dropped = np.asarray(dropout(range(64), 50)(jnp.ones((64, 50, 128)), 0.5)) - 1
    limit = 4.5 / np.sqrt(dropped.size)
    for axis in range(3):
        assert abs(np.mean(dropped * np.roll(dropped, 1, axis))) < limit
    drop = dropout(range(16), 64)
    kept = random_bits.kept(
        random_bits.bits(drop.attention_seeds()[:, None], jnp.arange(8, dtype=jnp.uint32)[:, None])[..., None],
        drop.key_positions_BxL[:, None, None, :],
        0.5,
    )
    signs = np.where(kept, 1.0, -1.0)
    assert abs(signs.mean()) < 4.5 / np.sqrt(signs.size)
    for axis in range(4):
        assert abs(np.mean(signs * np.roll(signs, 1, axis))) < 4.5 / np.sqrt(signs.size)


def test_dropout_of_a_sample_does_not_depend_on_the_batch():
    x = jax.random.normal(jax.random.key(0), (8, 5, 4))
    whole = dropout(range(8), 5)(x, 0.5)
    part = dropout([2, 3, 4], 5)(x[2:5], 0.5)
    np.testing.assert_array_equal(whole[2:5], part)


def test_dropout_does_not_depend_on_padding_nor_on_the_positions_chosen():
    long = dropout(range(2), 12)(jnp.ones((2, 12, 3)), 0.5)
    short = dropout(range(2), 7)(jnp.ones((2, 7, 3)), 0.5)
    np.testing.assert_array_equal(long[:, :7], short)
    chosen = jnp.array([[3, 0], [6, 6]])
    some = dropout(range(2), 12).at(chosen)(jnp.ones((2, 2, 3)), 0.5)
    np.testing.assert_array_equal(some, jnp.take_along_axis(long, chosen[..., None], axis=1))
