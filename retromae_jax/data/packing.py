"""From the texts of a batch to the arrays that the device gets: rows with one text each, or with several short ones.

The host ships token ids, the texts' lengths and their sample numbers; everything else is made of them on the device.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retromae_jax.data.batches import padded_length

# [CLS] and [SEP], which stand around every text.
SPECIAL_TOKENS = 2
# A row has room for this many texts, and for a text per so many tokens at most: room that is not used has a cost.
MOST_TEXTS, LEAST_TOKENS = 16, 16
# Queries are shorter than a pretraining's texts, and room for them costs less: there are no masks and no decoder.
LEAST_TOKENS_OF_QUERY = 8


def room_for_texts(lengths: np.ndarray, row_length: int) -> int:
    """How many texts a row should have room for: twice as many as texts of average length would fill it.

    Args:
        lengths: tokens of each text of the data, without special tokens.
        row_length: tokens of a row; longer texts are cut.

    Returns:
        1 where no two texts fit into one row.
    """
    tokens_N = np.minimum(lengths + SPECIAL_TOKENS, row_length)
    fitting = row_length // int(tokens_N.min())
    wanted = math.ceil(2 * row_length / float(tokens_N.mean()))
    return max(1, min(fitting, wanted, MOST_TEXTS, row_length // LEAST_TOKENS))


def room_for_queries(row_length: int) -> int:
    """How many texts a row should have room for where queries and passages, or pairs of them, share rows."""
    return max(1, min(MOST_TEXTS, row_length // LEAST_TOKENS_OF_QUERY))


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Makes the rows of a batch, in few shapes.

    Attributes:
        length: longest row, L; longer texts are cut.
        texts: texts that a row has room for, T. Rows have `length` tokens, and their number differs between batches;
            with 1, there is a row for each text, and their length differs.
        shapes: how many shapes there may be.
        batch_size: texts of a batch.
        row_multiple: the number of rows is a multiple of it, so that they divide over devices.
        cls_id, sep_id, pad_id: ids of [CLS], [SEP] and [PAD].
    """

    length: int
    texts: int
    shapes: int
    batch_size: int
    row_multiple: int
    cls_id: int
    sep_id: int
    pad_id: int

    def layout(self, texts: Sequence[np.ndarray]) -> "Layout":
        """Where the texts of a batch stand."""
        tokens_N = np.array([len(text) + SPECIAL_TOKENS for text in texts])
        if self.texts == 1:
            return one_text_a_row(tokens_N, self.length, self.row_multiple, self.shapes)
        steps = -(-self.batch_size // (self.shapes * self.row_multiple))
        return packed(tokens_N, self.length, self.texts, self.row_multiple, steps)

    def rows(
        self, layout: "Layout", texts: Sequence[np.ndarray], samples_N: np.ndarray, own: slice
    ) -> dict[str, np.ndarray]:
        """The arrays of the rows that a process holds; see `fill`."""
        return fill(layout, texts, samples_N, own, self.cls_id, self.sep_id, self.pad_id)


class Layout(NamedTuple):
    """Where the N texts of a batch stand.

    Attributes:
        rows: R.
        length: tokens of a row, L.
        texts: T, texts that a row has room for.
        row_N: int, each text's row.
        slot_N: int, which of the row's texts it is.
        start_N: int, where in the row it begins.
        tokens_N: int, its tokens with [CLS] and [SEP], cut to L.
    """

    rows: int
    length: int
    texts: int
    row_N: np.ndarray
    slot_N: np.ndarray
    start_N: np.ndarray
    tokens_N: np.ndarray


def one_text_a_row(tokens_N: np.ndarray, limit: int, row_multiple: int, buckets: int) -> Layout:
    """Gives every text a row of its own, all of the same length.

    Args:
        tokens_N: int, tokens of each text, [CLS] and [SEP] included.
        limit: longest row; longer texts are cut.
        row_multiple: empty rows make their number a multiple of it.
        buckets: number of row lengths that there may be.
    """
    length = padded_length(min(int(tokens_N.max()), limit), limit, buckets)
    zeros_N = np.zeros(len(tokens_N), np.int64)
    rows = -(-len(tokens_N) // row_multiple) * row_multiple
    return Layout(rows, length, 1, np.arange(len(tokens_N)), zeros_N, zeros_N, np.minimum(tokens_N, length))


def packed(tokens_N: np.ndarray, length: int, texts: int, row_multiple: int, steps: int = 1) -> Layout:
    """Puts texts into rows, longest first, each into the first row that has room for it (first fit decreasing).

    Args:
        tokens_N: int, tokens of each text, [CLS] and [SEP] included.
        length: tokens of a row; longer texts are cut.
        texts: texts that a row has room for.
        row_multiple: devices, or parts of them, that the rows are dealt out to in equal numbers.
        steps: the number of rows is a multiple of so many times that, so that there are few shapes to compile.
    """
    tokens_N = np.minimum(tokens_N, length)
    free_R = np.full(len(tokens_N), length)
    count_R = np.zeros(len(tokens_N), np.int64)
    row_N, slot_N, start_N = (np.empty(len(tokens_N), np.int64) for _ in range(3))
    for text in np.argsort(-tokens_N, kind="stable"):
        row = int(np.argmax(free_R >= tokens_N[text]))
        row_N[text], slot_N[text], start_N[text] = row, count_R[row], length - free_R[row]
        count_R[row] += 1
        # A row with as many texts as it may have is full.
        free_R[row] = free_R[row] - tokens_N[text] if count_R[row] < texts else 0
    rows = -(-(int(row_N.max()) + 1) // (steps * row_multiple)) * (steps * row_multiple)
    # The first rows are the fullest: dealt out in turn, they give each device as much to do.
    row_N = row_N % row_multiple * (rows // row_multiple) + row_N // row_multiple
    return Layout(rows, length, texts, row_N, slot_N, start_N, tokens_N)


def packed_shares(tokens_SxN: np.ndarray, row_length: int, shapes: int) -> list[Layout]:
    """Puts the texts of each of S devices into rows of its own, queries with passages, or pairs of them.

    Args:
        tokens_SxN: int, tokens of each text, special ones included.
        row_length: tokens of a row.
        shapes: how many numbers of rows there may be; each is compiled.
    """
    steps = -(-tokens_SxN.shape[1] // shapes)
    room = room_for_queries(row_length)
    return [packed(tokens_N, row_length, room, row_multiple=1, steps=steps) for tokens_N in tokens_SxN]


def fill(
    layout: Layout,
    texts: Sequence[np.ndarray],
    samples_N: np.ndarray,
    own: slice,
    cls_id: int,
    sep_id: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """The arrays of a batch, or of those of its rows that a process holds.

    Args:
        layout: where the texts stand.
        texts: N arrays of token ids without special tokens; only those in `own` rows are read.
        samples_N: each text's number in the order of the whole run.
        own: rows to make.
        cls_id, sep_id, pad_id: ids of [CLS], [SEP] and [PAD].

    Returns:
        `token_ids` int32 [R, L], `lengths` int32 [R, T] and `samples` uint32 [R, T]; see `Rows`.
    """
    here = np.flatnonzero((layout.row_N >= own.start) & (layout.row_N < own.stop))
    row, slot, start, tokens = (x[here] for x in (layout.row_N - own.start, *layout[4:]))
    rows = own.stop - own.start
    token_ids = np.full((rows, layout.length), pad_id, np.int32)
    lengths = np.zeros((rows, layout.texts), np.int32)
    samples = np.zeros((rows, layout.texts), np.uint32)
    flat = token_ids.reshape(-1)
    first = row * layout.length + start
    for text, begin, count in zip(here.tolist(), (first + 1).tolist(), (tokens - SPECIAL_TOKENS).tolist(), strict=True):
        flat[begin : begin + count] = texts[text][:count]
    flat[first] = cls_id
    flat[first + tokens - 1] = sep_id
    lengths[row, slot] = tokens
    samples[row, slot] = samples_N[here]
    return {"token_ids": token_ids, "lengths": lengths, "samples": samples}


def fill_shares(
    layouts: Sequence[Layout],
    rows: int,
    token_ids_NxM: np.ndarray,
    of_texts: Mapping[str, np.ndarray],
    pad_id: int,
) -> dict[str, np.ndarray]:
    """The arrays of a batch of which each of S devices has its own share of the texts, in rows of its own.

    Args:
        layouts: where the texts of each share stand, from `packed`.
        rows: of each share, R, at least as many as the layouts have.
        token_ids_NxM: int32, the texts of all shares in order, whole and with special tokens, padded.
        of_texts: arrays [N] that rows hold for each of their texts; where there is none they have 0.
        pad_id: id of [PAD].

    Returns:
        `token_ids` int32 [S, R, L]; `lengths` int32 [S, R, T] and `of_texts`, [S, R, T]; and `places` int32 [S, N / S],
        where in its share's [R * T] each text is.
    """
    shares, length, room = len(layouts), layouts[0].length, layouts[0].texts
    share_N = np.repeat(np.arange(shares), [len(layout.row_N) for layout in layouts])
    row_N, slot_N, start_N, tokens_N = (np.concatenate(x) for x in zip(*(one[3:] for one in layouts), strict=True))
    index_M = np.arange(token_ids_NxM.shape[1])
    is_token_NxM = index_M < tokens_N[:, None]
    position_NxM = ((share_N * rows + row_N) * length + start_N)[:, None] + index_M
    token_ids = np.full(shares * rows * length, pad_id, np.int32)
    token_ids[position_NxM[is_token_NxM]] = token_ids_NxM[is_token_NxM]
    arrays = {"token_ids": token_ids.reshape(shares, rows, length)}
    for name, values_N in {"lengths": tokens_N.astype(np.int32), **of_texts}.items():
        arrays[name] = np.zeros((shares, rows, room), values_N.dtype)
        arrays[name][share_N, row_N, slot_N] = values_N
    return arrays | {"places": (row_N * room + slot_N).astype(np.int32).reshape(shares, -1)}
