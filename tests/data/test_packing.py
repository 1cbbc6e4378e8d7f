import jax
import numpy as np
import pytest

from retromae_jax import parallel
from retromae_jax.data.batches import BatchOrder
from retromae_jax.data.packing import (
    RowMaker,
    fill,
    fill_shares,
    one_text_a_row,
    packed,
    room_for_queries,
    room_for_texts,
)


def texts_of(tokens, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(5, 99, count - 2) for count in tokens]


@pytest.mark.parametrize("seed", range(5))
def test_packed_texts_are_whole_in_order_and_apart(seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(2, 90, 64)
    texts, samples = texts_of(tokens), np.arange(64) + 1000
    layout = packed(tokens, length=80, texts=5, row_multiple=4)
    batch = fill(layout, texts, samples, slice(0, layout.rows), cls_id=1, sep_id=2, pad_id=0)
    assert layout.rows % 4 == 0 and batch["token_ids"].shape == (layout.rows, 80)
    assert batch["lengths"].shape == batch["samples"].shape == (layout.rows, layout.texts)
    found = {}
    for ids, lengths, numbers in zip(batch["token_ids"], batch["lengths"], batch["samples"], strict=True):
        start = 0
        for length, number in zip(lengths, numbers, strict=True):
            if length:
                found[int(number)] = ids[start : start + length].tolist()
            start += length
        assert np.all(ids[start:] == 0)
        assert np.all((lengths > 0)[:-1] >= (lengths > 0)[1:])  # no empty place before a text
    assert found == {1000 + i: [1, *text[:78], 2] for i, text in enumerate(texts)}


def test_each_share_of_a_batch_is_in_rows_of_its_own():
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 20, (2, 9))
    token_ids = generator.integers(1, 99, (18, 25)).astype(np.int32)  # some of it padding
    layouts = [packed(tokens, length=24, texts=3, row_multiple=1) for tokens in lengths]
    rows = max(layout.rows for layout in layouts) + 1
    of_texts = {"samples": np.arange(100, 118, dtype=np.uint32), "first_lengths": lengths.reshape(-1) // 2}
    batch = fill_shares(layouts, rows, token_ids, of_texts, pad_id=0)
    assert {name: x.shape for name, x in batch.items()} == {
        "token_ids": (2, rows, 24),
        "lengths": (2, rows, 3),
        "samples": (2, rows, 3),
        "first_lengths": (2, rows, 3),
        "places": (2, 9),
    }
    assert np.count_nonzero(batch["token_ids"]) == lengths.sum()
    for number, (share, text) in enumerate(np.ndindex(2, 9)):
        row, slot = divmod(int(batch["places"][share, text]), 3)
        start = batch["lengths"][share, row, :slot].sum()
        length = batch["lengths"][share, row, slot]
        assert length == lengths[share, text]
        assert batch["samples"][share, row, slot] == 100 + number
        assert batch["first_lengths"][share, row, slot] == length // 2
        found = batch["token_ids"][share, row, start : start + length]
        np.testing.assert_array_equal(found, token_ids[number, :length])


def test_rows_have_room_for_queries():
    assert [room_for_queries(length) for length in (4, 32, 512)] == [1, 4, 16]


def test_packing_leaves_little_room():
    tokens = np.minimum(np.random.default_rng(0).lognormal(4.8, 0.7, 512).astype(int) + 3, 512)
    layout = packed(tokens, 512, texts=16, row_multiple=1)
    assert tokens.sum() > 0.97 * layout.rows * 512
    # Very short texts do not fill rows beyond the texts that a row has room for.
    assert packed(np.full(100, 3), 512, 16, 1).rows == -(-100 // 16)


def test_one_text_a_row():
    layout = one_text_a_row(np.array([5, 30, 12]), limit=40, row_multiple=1, buckets=4)
    batch = fill(layout, texts_of([5, 30, 12]), np.arange(3), slice(0, 3), 1, 2, 0)
    assert batch["token_ids"].shape == (3, 30)
    assert batch["lengths"].tolist() == [[5], [30], [12]]
    cut = one_text_a_row(np.array([5, 99]), limit=40, row_multiple=1, buckets=4)
    assert cut.length == 40
    # Rows without a text fill up the number that divides over devices.
    filled = one_text_a_row(np.array([5, 9, 7]), limit=40, row_multiple=2, buckets=4)
    assert fill(filled, texts_of([5, 9, 7]), np.arange(3), slice(0, 4), 1, 2, 0)["lengths"].tolist() == [
        [5],
        [9],
        [7],
        [0],
    ]
    assert fill(cut, texts_of([5, 99]), np.arange(2), slice(0, 2), 1, 2, 0)["token_ids"][1, [0, 39]].tolist() == [1, 2]


def test_processes_make_parts_of_one_batch_and_read_no_other_texts():
    tokens = np.random.default_rng(1).integers(3, 60, 40)
    texts, samples = texts_of(tokens), np.arange(40)
    layout = packed(tokens, 64, texts=4, row_multiple=4)
    ids = {"cls_id": 1, "sep_id": 2, "pad_id": 0}
    whole = fill(layout, texts, samples, slice(0, layout.rows), **ids)
    half = layout.rows // 2
    for own in (slice(0, half), slice(half, layout.rows)):
        readable = [
            text if own.start <= row < own.stop else None for text, row in zip(texts, layout.row_N, strict=True)
        ]
        part = fill(layout, readable, samples, own, **ids)
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][own])


@pytest.mark.parametrize("texts_a_row", [1, 2])
def test_hosts_read_every_text_once_in_each_pass(monkeypatch, texts_a_row):
    """Though batches span passes, and rows are dealt to hosts."""
    texts = [np.full(length, 100 + text) for text, length in enumerate(np.random.default_rng(0).integers(1, 30, 44))]
    maker = RowMaker(32, texts_a_row, 2, batch_size=16, row_multiple=4, cls_id=1, sep_id=2, pad_id=0)
    order = BatchOrder(len(texts), batch_size=16, seed=0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    passes = 4
    read = {host: [] for host in range(2)}
    for step in range(passes * len(texts) // 16):
        batch = [texts[index] for index in order.indices(step)]
        layout = maker.layout(batch)
        for host, found in read.items():
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            own = parallel.local_rows(layout.rows)
            rows = maker.rows(layout, batch, order.samples(step), own)
            assert len(rows["token_ids"]) == layout.rows // 2
            for ids, lengths, samples in zip(*rows.values(), strict=True):
                for length, end, sample in zip(lengths, np.cumsum(lengths), samples, strict=True):
                    if length:
                        text = ids[end - length : end]
                        assert text[0] == 1 and text[-1] == 2 and len(set(text[1:-1])) == 1
                        assert length == len(texts[text[1] - 100]) + 2
                        found.append((int(sample) // len(texts), int(text[1]) - 100))
    assert sorted(read[0] + read[1]) == [(number, text) for number in range(passes) for text in range(len(texts))]
    assert all(read.values())


@pytest.mark.parametrize("steps, rows, expected", [(1, 12, [188, 188, 128, 128]), (2, 16, [188, 188, 128, 128])])
def test_full_rows_are_dealt_out_to_devices_in_turn(steps, rows, expected):
    """Those of a batch that is padded to one of few numbers of rows, too."""
    tokens = np.concatenate([np.full(8, 64), np.full(4, 30)])
    layout = packed(tokens, 64, texts=4, row_multiple=4, steps=steps)
    used = np.zeros(layout.rows, int)
    np.add.at(used, layout.row_N, layout.tokens_N)
    assert layout.rows == rows and used.reshape(4, -1).sum(axis=1).tolist() == expected


@pytest.mark.parametrize(
    "lengths, expected",
    [([510, 510], 1), ([510, 510, 300], 1), ([510, 510, 510, 100], 3), ([60] * 9, 8), ([5] * 9, 16), ([900, 2], 4)],
)
def test_rows_have_room_for_the_texts_that_the_data_has(lengths, expected):
    assert room_for_texts(np.array(lengths), 512) == expected
