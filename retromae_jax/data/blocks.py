"""Token blocks: documents cut at sentence ends into pieces that fit a row of the model, stored on disk.

The store is a directory in the layout of Hugging Face `datasets`, with a column `token_ids` of token ids
without special tokens, the format of the original RetroMAE code. Where no block holds several documents, a column
`document` tells which one each is of.
"""

import bisect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retromae_jax.data.packing import SPECIAL_TOKENS
from retromae_jax.data.text import Document, load_saved_dataset
from retromae_jax.errors import InputError
from retromae_jax.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COLUMN, DOCUMENT = "token_ids", "document"
# The columns' types in the words of `datasets`. `Sequence` is what its releases before 4 call a list; later ones read
# it too.
FEATURES = {
    COLUMN: {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"},
    DOCUMENT: {"dtype": "int64", "_type": "Value"},
}
# A document's last block is dropped if it is shorter than this share of a full one and not the only one.
SHORTEST_TAIL = 1 / 16
DESCRIPTION = "prepare.json"


# Sentences.

# Words that a period follows within a sentence: titles, months, references, initials and their like.
_ABBREVIATION = re.compile(
    r"(?i:adm|al|approx|apr|aug|brig|bros|c|ca|capt|cf|ch|cmdr|col|cpl|dec|dept|dr|eds?|e\.g|eq|est|feb|figs?|fl|fr"
    r"|gen|gov|hon|i\.e|jan|jr|jul|jun|lt|maj|mar|messrs|mrs?|ms|mt|nos?|nov|oct|op|pp?|pres|prof|rep|rev|sec|sen"
    r"|sept?|sgt|sr|st|supt|trans|univ|v|viz|vols?|vs)"
    r"|[A-HJ-Z]|(?:[A-Z]\.)+[A-Z]"
)
_SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]+["'”’»)\]]*\s+"""  # Latin punctuation and a space
    r"""|[。！？｡]+[”’」』）]*\s*"""  # Chinese and Japanese punctuation
    r"""|\n\s*"""
)


def sentences(text: str) -> list[str]:
    """Splits text into sentences without blanks around them; together they hold all of its words.

    A period does not end a sentence behind an abbreviation or an initial (`Dr. Smith`, `J. S. Bach`), nor where
    the next word begins in lower case. A line end does, unless the next line begins in lower case; a blank line
    always does.
    """
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if _ends_sentence(text, start, match):
            found.append(text[start : match.end()].strip())
            start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends_sentence(text: str, start: int, match: re.Match) -> bool:
    mark = match.group()
    if mark.count("\n") > 1:
        return True
    following = text[match.end() : match.end() + 2].lstrip("\"'“‘«([")
    if following[:1].islower():
        return False
    if "\n" in mark or not mark.startswith(".") or mark.startswith(".."):
        return True
    word = text[max(start, match.start() - 20) : match.start()].split()[-1:]
    last = word[0].lstrip("\"'“‘«([") if word else ""
    return _ABBREVIATION.fullmatch(last) is None


# Packing.


def block_lengths(sentence_lengths: Iterable[int], limit: int) -> list[int]:
    """Packs the sentences of a document greedily into blocks of whole sentences.

    Args:
        sentence_lengths: tokens of each sentence.
        limit: the most tokens that a block may have; a sentence that is longer is cut there.

    Returns:
        Tokens of each block; in sum those of the sentences.
    """
    blocks, current = [], 0
    for length in sentence_lengths:
        if current and current + length > limit:
            blocks.append(current)
            current = 0
        current += length
        while current > limit:
            blocks.append(limit)
            current -= limit
    if current:
        blocks.append(current)
    return blocks


def pack(
    documents: Sequence[Document],
    tokenizer: "Tokenizer",
    block_length: int,
    pack_documents: bool,
    first_document: int = 0,
) -> tuple[pa.Table, dict[str, int]]:
    """Turns documents into blocks.

    Args:
        documents: in the order in which their blocks come.
        tokenizer: without truncation and padding.
        block_length: the most tokens of a block, [CLS] and [SEP] included, though neither is part of it.
        pack_documents: whether a block may hold several documents.
        first_document: number of the first of the documents; the others' follow.

    Returns:
        A table with the columns `token_ids`, list<int32>, and, without `pack_documents`, `document`, int64, the number
        of the document that a block is of; and counts: `documents`, `empty` ones, `blocks`, `tokens`,
        `dropped_tokens`, and the tokens of the `longest` block.
    """
    limit = block_length - SPECIAL_TOKENS
    blank = _blank_between(tokenizer)
    lengths: list[int] = []
    token_ids, numbers = [np.empty(0, np.int32)], []
    empty = dropped = 0
    for number, document in enumerate(documents, first_document):
        texts = sentences(document.plain_text())
        # A document's first sentence comes after a blank where it may follow another document.
        texts = [blank * (pack_documents or i > 0) + sentence for i, sentence in enumerate(texts)]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids_of_sentences = [encoding.ids for encoding in encodings]
        blocks = block_lengths(map(len, ids_of_sentences), limit)
        if not blocks:
            empty += 1
            continue
        if len(blocks) > 1 and blocks[-1] < SHORTEST_TAIL * limit:
            dropped += blocks.pop()
        token_ids.append(np.fromiter(chain.from_iterable(ids_of_sentences), np.int32, sum(blocks)))
        if pack_documents and lengths and lengths[-1] + blocks[0] <= limit:
            lengths[-1] += blocks.pop(0)
        lengths += blocks
        numbers += [number] * len(blocks)
    values = np.concatenate(token_ids)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    counts = {
        "documents": len(documents),
        "empty": empty,
        "blocks": len(lengths),
        "tokens": len(values),
        "dropped_tokens": dropped,
        "longest": max(lengths, default=0),
    }
    columns = {COLUMN: pa.ListArray.from_arrays(offsets, values)}
    if not pack_documents:
        columns[DOCUMENT] = pa.array(numbers, pa.int64())
    return pa.table(columns), counts


def _blank_between(tokenizer: "Tokenizer") -> str:
    """What to put before a sentence so that its tokens are those that it has in a text, after another sentence.

    Byte-level BPE makes a blank part of the token after it; other tokenizers need none.
    """

    def token_ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return "" if token_ids("a b") == token_ids("a") + token_ids("b") else " "


# Storage.


def write_blocks(table: pa.Table, path: Path) -> None:
    """Writes blocks as an Arrow stream, the files that a saved dataset consists of."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_description(directory: Path, files: Sequence[str], fingerprint: str, settings: Mapping) -> None:
    """Makes a directory with files of blocks a saved dataset.

    Args:
        directory: holds the files.
        files: their names, in order, at least one; all have the same columns.
        fingerprint: identifies the contents.
        settings: how the blocks were made; kept in `prepare.json`.
    """
    with pa.OSFile(str(directory / files[0])) as file, pa.ipc.open_stream(file) as stream:
        features = {name: FEATURES[name] for name in stream.schema.names}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, content in (("dataset_info.json", info), ("state.json", state), (DESCRIPTION, settings)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class TokenLists(Sequence[np.ndarray]):
    """Lists of token ids on disk: a column of a saved Hugging Face dataset, memory-mapped.

    Args:
        directory: where it was saved; of a DatasetDict the split `train` is read.
        column: of integer lists.
        remedy: what makes a directory that is fit, for messages.

    Attributes:
        lengths: tokens of each list, int32 [N].

    Raises:
        InputError: if there is no such dataset, it has no such column, or it is empty.
    """

    def __init__(self, directory: Path, column: str, remedy: str):
        self.directory = directory
        dataset = load_saved_dataset(directory)
        if column not in dataset.column_names:
            raise InputError(
                f"{directory}: no column {column!r}, but {', '.join(map(repr, dataset.column_names)) or 'none'}; "
                f"{remedy}"
            )
        lists = dataset.data.column(column)
        if not _is_list_of_integers(lists.type):
            raise InputError(f"{directory}: column {column!r} holds {lists.type}, not lists of integers")
        if len(lists) == 0:
            raise InputError(f"{directory}: no rows; {remedy}")
        chunks = [chunk for chunk in lists.chunks if len(chunk)]
        if any(chunk.null_count or chunk.values.null_count for chunk in chunks):
            raise InputError(f"{directory}: column {column!r} has nulls; {remedy}")
        # Views on the mapped files: no list is read before it is used.
        self._token_ids = [chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._first_rows = np.cumsum([0] + [len(chunk) for chunk in chunks]).tolist()
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int32)
        beyond = any(ends[-1] > len(ids) for ends, ids in zip(self._offsets, self._token_ids, strict=True))
        if beyond or self.lengths.min() < 0:
            raise InputError(
                f"{directory}: damaged: column {column!r} has lists that end where there is nothing; {remedy}"
            )
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of a list, without special tokens: an integer view, read-only."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        chunk = bisect.bisect_right(self._first_rows, index) - 1
        offsets, row = self._offsets[chunk], index - self._first_rows[chunk]
        return self._token_ids[chunk][offsets[row] : offsets[row + 1]]

    def id_range(self) -> tuple[int, int]:
        """The lowest and the highest token id; reads all lists."""
        chunks = [ids[offsets[0] : offsets[-1]] for ids, offsets in zip(self._token_ids, self._offsets, strict=True)]
        chunks = [ids for ids in chunks if len(ids)] or [np.zeros(1, np.int32)]
        return min(int(ids.min()) for ids in chunks), max(int(ids.max()) for ids in chunks)


class TokenBlocks(TokenLists):
    """The blocks of a directory that `train.prepare` or the original RetroMAE code made, memory-mapped.

    Any saved Hugging Face dataset with a column `token_ids` of integer lists will do.

    Attributes:
        directory: where they are.
        lengths: tokens of each block, int32 [N].
        settings: how `train.prepare` made the blocks, from `prepare.json`: `tokenizer`, `tokenizer_fingerprint`,
            `vocabulary_size`, `block_length` and more; empty for blocks of other making.

    Raises:
        InputError: if there is no such dataset, it has no such column, or it is empty.
    """

    # What one item is, and how many texts are drawn of it.
    unit, texts_per_item = "blocks", 1

    def __init__(self, directory: str | Path):
        directory = Path(directory).expanduser()
        if not directory.is_dir():
            unfinished = partial_directory(directory).is_dir()
            raise InputError(
                f"{directory}: token blocks {'are not finished' if unfinished else 'do not exist'}; "
                "make them with: python -m train.prepare --config ..."
            )
        super().__init__(directory, COLUMN, "make token blocks with: python -m train.prepare --config ...")
        self.settings = _read_settings(directory / DESCRIPTION)
        columns = self._dataset.column_names
        self._documents = self._dataset.data.column(DOCUMENT) if DOCUMENT in columns else None

    def documents(self) -> np.ndarray:
        """The number of the document that each block is of, integers [N].

        Raises:
            InputError: if the directory does not tell.
        """
        column = self._documents
        if column is None or not pa.types.is_integer(column.type) or column.null_count:
            raise InputError(
                f"{self.directory}: does not tell which blocks are of one document (no column {DOCUMENT!r} of whole "
                "numbers); remove it and make it again with python -m train.prepare and --config.pack_documents=False"
            )
        return column.to_numpy()

    def draw(self, indices: np.ndarray, epochs: np.ndarray) -> list[np.ndarray]:
        """The texts to train on: the blocks themselves, in every pass the same.

        Args:
            indices: blocks, integers [B].
            epochs: the pass that each belongs to, [B].
        """
        return [self[index] for index in indices.tolist()]


def partial_directory(directory: Path) -> Path:
    """Where blocks lie until all are made."""
    return directory.with_name(directory.name + ".partial")


def _read_settings(path: Path) -> dict[str, object]:
    return read_json(path, dict, "remove the directory and make it again") if path.exists() else {}


def _is_list_of_integers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and pa.types.is_integer(kind.value_type)
