import numpy as np
import pytest

from retromae_jax.data.batches import (
    BatchOrder,
    by_length,
    number_of_steps,
    one_ahead,
    one_behind,
    padded_length,
    row_length,
    text_numbers,
)


def test_each_pass_has_every_item_once_across_batch_boundaries():
    order = BatchOrder(size=10, batch_size=4, seed=0)
    drawn = np.concatenate([order.indices(step) for step in range(10)]).reshape(4, 10)
    for one_pass in drawn:
        assert sorted(one_pass) == list(range(10))
    assert len({tuple(one_pass) for one_pass in drawn}) == 4


def test_a_batch_is_a_function_of_seed_and_step():
    order = BatchOrder(size=1000, batch_size=64, seed=7)
    forwards = [order.indices(step) for step in range(40)]
    fresh = BatchOrder(size=1000, batch_size=64, seed=7)
    for step in reversed(range(40)):
        np.testing.assert_array_equal(fresh.indices(step), forwards[step])
    assert not np.array_equal(BatchOrder(1000, 64, seed=8).indices(0), forwards[0])


def test_a_batch_may_be_larger_than_the_data():
    order = BatchOrder(size=3, batch_size=8, seed=0)
    assert np.bincount(order.indices(0), minlength=3).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert order.epochs(0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert order.samples(1).tolist() == list(range(8, 16))


@pytest.mark.parametrize(
    "arguments, steps", [((0, 8.0, 1000, 256), 31), ((0, 0.1, 10, 256), 1), ((5, 8.0, 1000, 256), 5)]
)
def test_number_of_steps(arguments, steps):
    assert number_of_steps(*arguments) == steps


def test_texts_of_an_item_are_numbered_behind_each_other():
    samples = BatchOrder(size=10, batch_size=3, seed=0).samples(1)
    np.testing.assert_array_equal(text_numbers(samples, 1), samples)
    assert text_numbers(samples, 2).tolist() == [6, 7, 8, 9, 10, 11]
    assert text_numbers(samples, 2).dtype == samples.dtype


@pytest.mark.parametrize("longest, length", [(1, 64), (64, 64), (65, 128), (500, 512), (512, 512)])
def test_padded_length_takes_the_next_bucket(longest, length):
    assert padded_length(longest, limit=512, buckets=8) == length


def test_padded_length_never_passes_the_limit():
    assert padded_length(30, limit=30, buckets=8) == 30
    assert {padded_length(n, limit=100, buckets=3) for n in range(1, 101)} == {34, 68, 100}


@pytest.mark.parametrize("longest, length", [(1, 8), (8, 8), (9, 16), (64, 64), (65, 72), (129, 144), (257, 288)])
def test_row_length_takes_the_next_eighth_of_a_power_of_two(longest, length):
    assert row_length(longest, 512) == length
    assert row_length(longest, 70) == min(length, 70)


def test_batches_by_length_have_each_text_once_and_about_as_many_tokens():
    lengths = np.array([3, 9, 5, 9, 1, 16, 2])
    token_ids = np.where(np.arange(16) < lengths[:, None], np.arange(7)[:, None] + 10, 0)
    seen, shapes = [], []
    for rows, filled, batch in by_length(token_ids, lengths, batch_size=2, limit=16, pad_id=7):
        assert len(batch) == len(filled) and filled[: len(rows)].tolist() == rows.tolist()
        for ids, row in zip(batch, filled, strict=True):
            assert ids[: lengths[row]].tolist() == [row + 10] * lengths[row]
        seen += rows.tolist()
        shapes.append(batch.shape)
    assert seen == [5, 1, 3, 2, 0, 6, 4]
    # Half as long, twice as many; the last one is rounded up to a power of two.
    assert shapes == [(2, 16), (2, 16), (4, 8)]


def test_little_is_padding_in_a_window_of_real_lengths():
    """As of medquad's passages: 202 tokens in the median, 43 and 752 at the ends of the middle nine tenths."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(202), 0.85, 2**14).astype(int), 8, 512)
    token_ids = np.zeros((len(lengths), 512), np.int32)
    batches = [batch.shape for _, _, batch in by_length(token_ids, lengths, 4, 512, 0)]
    assert sum(rows * length for rows, length in batches) < 1.06 * lengths.sum()
    assert len(set(batches)) < 45


def test_batches_of_several_devices_are_multiples_of_them():
    lengths = np.full(5, 4)
    batches = list(by_length(np.zeros((5, 4), np.int32), lengths, batch_size=1, limit=4, pad_id=0, devices=2))
    assert [len(filled) for _, filled, _ in batches] == [2, 2, 2]
    assert [len(rows) for rows, _, _ in batches] == [2, 2, 1]


def test_items_come_when_the_next_is_made():
    made = []
    for number in one_behind(made.append(i) or i for i in range(3)):
        assert made == list(range(min(number + 2, 3)))


def test_items_are_made_one_ahead_in_order_and_errors_arrive():
    made = []

    def make(number):
        made.append(number)
        return 10 // (3 - number)

    results = one_ahead(make, range(5))
    assert [next(results), next(results), next(results)] == [3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert made[:4] == [0, 1, 2, 3]
