"""Two spans of each document."""

import datasets
import numpy as np
import pytest

from retromae_jax.data import spans
from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.data.spans import SpanPairs
from retromae_jax.errors import InputError


def blocks_of(directory, documents_and_lengths) -> TokenBlocks:
    """Blocks whose tokens are 1000 times the block's number and up, saved by the library."""
    documents, lengths = zip(*documents_and_lengths, strict=True)
    token_ids = [list(range(1000 * n, 1000 * n + length)) for n, length in enumerate(lengths)]
    datasets.Dataset.from_dict({"token_ids": token_ids, "document": documents}).save_to_disk(directory)
    return TokenBlocks(directory)


# Document 3 has three blocks, one of them elsewhere; 7 has one to be cut, 8 one that is too short, 9 one beside a
# scrap, 10 nothing but scraps.
BLOCKS = [(3, 20), (3, 9), (7, 17), (8, 15), (9, 7), (9, 16), (10, 7), (10, 7), (10, 7), (3, 8)]


@pytest.fixture
def blocks(tmp_path) -> TokenBlocks:
    return blocks_of(tmp_path / "blocks", BLOCKS)


def numbers(texts: list[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of the blocks' numbers."""
    return [(int(a[0]) // 1000, int(b[0]) // 1000) for a, b in zip(texts[::2], texts[1::2], strict=True)]


def test_spans_are_different_blocks_of_one_document(blocks, capfd):
    pairs = SpanPairs(blocks, seed=0)
    assert len(pairs) == 3
    assert "2 documents are too short for two spans and left out" in capfd.readouterr().err
    texts = pairs.draw(np.zeros(3000, np.int64), np.arange(3000))
    assert len(texts) == 6000
    found, counts = np.unique(numbers(texts), axis=0, return_counts=True)
    assert found.tolist() == [[0, 1], [0, 9], [1, 0], [1, 9], [9, 0], [9, 1]]
    assert counts.min() > 400  # of 500 expected
    for text in texts[:20]:
        np.testing.assert_array_equal(text, blocks[int(text[0]) // 1000])
        assert not text.flags.owndata


def test_a_single_block_is_cut_in_its_middle(blocks):
    pairs = SpanPairs(blocks, seed=0)
    for epoch in range(3):
        texts = pairs.draw(np.array([1, 2]), np.full(2, epoch))
        assert [len(text) for text in texts] == [8, 9, 8, 8]
        np.testing.assert_array_equal(np.concatenate(texts[:2]), blocks[2])
        np.testing.assert_array_equal(np.concatenate(texts[2:]), blocks[5])


def test_a_draw_follows_from_seed_pass_and_document(tmp_path):
    blocks = blocks_of(tmp_path / "blocks", [(document, 8) for document in range(50) for _ in range(9)])
    pairs = SpanPairs(blocks, seed=0)
    everything = np.arange(50)

    def drawn(pairs, indices, epoch):
        return numbers(pairs.draw(indices, np.full(len(indices), epoch)))

    first = drawn(pairs, everything, 0)
    assert drawn(SpanPairs(blocks, seed=0), everything[::-1], 0) == first[::-1]
    mixed = numbers(pairs.draw(np.array([4, 4, 5]), np.array([0, 1, 0])))
    assert mixed == [first[4], drawn(pairs, np.array([4]), 1)[0], first[5]]
    offsets = {(a - 9 * i, b - 9 * i) for i, (a, b) in enumerate(first)}
    assert len(offsets) > 30  # of 72: documents do not draw alike
    for other in (drawn(pairs, everything, 1), drawn(SpanPairs(blocks, seed=1), everything, 0)):
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 6


def test_blocks_that_do_not_tell_their_documents_are_refused(tmp_path):
    datasets.Dataset.from_dict({"token_ids": [[5] * 30] * 4}).save_to_disk(tmp_path / "none")
    datasets.Dataset.from_dict({"token_ids": [[5] * 30], "document": ["a text"]}).save_to_disk(tmp_path / "other")
    for name in ("none", "other"):
        with pytest.raises(InputError) as caught:
            SpanPairs(TokenBlocks(tmp_path / name), seed=0)
        assert str(caught.value).startswith(f"{tmp_path / name}: does not tell which blocks are of one document")
        assert "train.prepare and --config.pack_documents=False" in str(caught.value)


def test_text_without_spans_is_refused(tmp_path):
    blocks = blocks_of(tmp_path / "blocks", [(0, spans.SHORTEST_SPAN), (1, 2 * spans.SHORTEST_SPAN - 1), (2, 3)])
    with pytest.raises(InputError, match="none of 3 documents has two spans of 8 tokens"):
        SpanPairs(blocks, seed=0)
