"""Collections as the original RetroMAE code prepares them for fine-tuning: token ids in place of texts.

A directory has `corpus` and `train_query`, saved Hugging Face datasets with a column `input_ids`, each with a file
`mapping_id.txt` of lines `id TAB row`; and `train_qrels.txt`, lines `query-id TAB passage-id,passage-id,...`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from retromae_jax.data.blocks import TokenLists
from retromae_jax.data.lines import Lines, check_unique
from retromae_jax.data.qrels import Qrels
from retromae_jax.data.retrieval import Collection, indices_of
from retromae_jax.errors import InputError, one_line, shown

COLUMN = "input_ids"
PASSAGES, QUERIES, IDS, QRELS = "corpus", "{split}_query", "mapping_id.txt", "{split}_qrels.txt"
REMEDY = "prepare it again with the original code's preprocess.py"


def is_prepared(directory: str | Path) -> bool:
    """Whether a directory holds token ids that the original code prepared."""
    return (Path(directory) / PASSAGES / IDS).is_file()


class TokenizedTexts(TokenLists):
    """Texts as token ids without special tokens, found by their ids.

    Attributes:
        path: their directory.
        ids: their ids.

    Raises:
        InputError: if texts or ids are missing or broken.
    """

    def __init__(self, directory: Path):
        super().__init__(directory, COLUMN, REMEDY)
        self.path = directory
        self.ids = _read_ids(directory / IDS, len(self))

    def indices(self, ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Where the texts with these ids stand, int64; -1 for an unknown id."""
        return indices_of(self.ids, ids)

    def texts(self, titles: bool, separator: str = " ") -> "TokenizedTexts":
        """Themselves: whether titles are in the token ids, the original code's preparation decided."""
        return self


def load_prepared(directory: str | Path, split: str) -> Collection[TokenizedTexts, np.ndarray]:
    """Reads a prepared collection; its passages are `TokenizedTexts`, its queries' texts are their token ids.

    Raises:
        InputError: if a file is missing or broken, or the qrels name an unknown query or passage.
    """
    directory = Path(directory)
    paths = [directory / name.format(split=split) for name in (QUERIES, QRELS)]
    if missing := [path.name for path in paths if not path.exists()]:
        raise InputError(f"{directory}: no {' and no '.join(missing)} for the split {split!r} there; {REMEDY}")
    queries, passages = TokenizedTexts(paths[0]), TokenizedTexts(directory / PASSAGES)
    qrels = _read_qrels(paths[1], queries, passages)
    rows = dict(zip(qrels, queries.indices(list(qrels)).tolist(), strict=True))
    return Collection(
        directory=directory,
        split=split,
        passages=passages,
        queries={query: queries[row] for query, row in rows.items()},
        qrels=qrels,
        relevance_level=1,
    )


def _read_ids(path: Path, count: int) -> pa.LargeStringArray:
    """Ids of the rows of a dataset, in their order."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {REMEDY}")
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=["id", "row"]),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"id": pa.large_string(), "row": pa.int64()}),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not lines `id TAB row`: {one_line(error)}; {REMEDY}") from error
    rows = table["row"].to_numpy()
    order = np.argsort(rows, kind="stable")
    if not np.array_equal(rows[order], np.arange(count)):
        raise InputError(f"{path}: does not give each of the {count:,} rows of {path.parent} one id; {REMEDY}")
    check_unique(table["id"].combine_chunks(), path)
    ids = table["id"].take(pa.array(order)).combine_chunks()
    return ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids


def _read_qrels(path: Path, queries: TokenizedTexts, passages: TokenizedTexts) -> Qrels:
    lines = Lines(path)
    fields = [line.split("\t") for line in lines]
    for number, columns in enumerate(fields, 1):
        if len(columns) != 2 or not all(columns):
            raise InputError(f"{path}:{number}: not `query-id TAB passage-id,passage-id,...`; mend the line")
    judged = [(number, query, passage) for number, (query, ids) in enumerate(fields, 1) for passage in ids.split(",")]
    numbers, query_ids, passage_ids = zip(*judged, strict=True)
    for kind, texts, ids in (("query", queries, query_ids), ("passage", passages, passage_ids)):
        unknown = np.flatnonzero(texts.indices(ids) < 0)
        if len(unknown):
            first = unknown[0]
            raise InputError(f"{path}:{numbers[first]}: {texts.path} has no {kind} {shown(ids[first])}; {REMEDY}")
    qrels: Qrels = {}
    for _, query, passage in judged:
        qrels.setdefault(query, {})[passage] = 1
    return qrels
