"""Retrieval collections: passages, queries, relevance judgements (qrels) and hard negatives.

Two layouts of a collection's directory are read, every file also as `.gz`:

- BEIR: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and, for each split,
  `qrels/SPLIT.tsv` with the header `query-id corpus-id score`.
- MS MARCO's own files: passages in `collection.tsv` (`pid TAB text`), or with titles as RocketQA published them, in
  `corpus.tsv` (`pid TAB title TAB text`) or in `para.txt` and `para.title.txt`; queries in `queries.SPLIT.small.tsv`
  or `queries.SPLIT.tsv`; judgements in `qrels.SPLIT.small.tsv` or `qrels.SPLIT.tsv` (`qid 0 pid grade`). The splits
  `dl19` and `dl20` are TREC's Deep Learning tracks: `2019qrels-pass.txt` with `msmarco-test2019-queries.tsv`, and the
  same for 2020. Passages with titles are taken where there are both.

Passages stay in their file: it is memory-mapped, and only ids and line positions are held, so that collections of
millions of passages can be read in any order. A `.gz` file is unpacked into a temporary file first.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retromae_jax.data.lines import (
    BadLineError,
    Lines,
    check_unique,
    checked_id,
    columns,
    counted,
    encodable,
    json_object,
)
from retromae_jax.data.qrels import Qrels, read_judgements
from retromae_jax.errors import InputError, shown
from retromae_jax.logging import Progress, say

BEIR_PASSAGES = "corpus.jsonl"
BEIR_QUERIES = "queries.jsonl"
MSMARCO_PASSAGES = ("corpus.tsv", "para.txt", "collection.tsv")
MSMARCO_TITLES = "para.title.txt"
TREC_DL = {
    "dl19": ("2019qrels-pass.txt", "msmarco-test2019-queries.tsv"),
    "dl20": ("2020qrels-pass.txt", "msmarco-test2020-queries.tsv"),
}

PASSAGES_AT_ONCE = 2**16
NEGATIVE_LISTS_AT_ONCE = 2**16


class Passage(NamedTuple):
    """A passage; one without a title has an empty one."""

    title: str
    text: str


class IdentifiedTexts(Protocol):
    """Texts that are found by their ids.

    Attributes:
        path: their file or directory.
        ids: their ids.
    """

    path: Path
    ids: pa.LargeStringArray

    def __len__(self) -> int: ...

    def indices(self, ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Where the texts with these ids stand, int64; -1 for an unknown id."""


AnyPassages = TypeVar("AnyPassages", bound=IdentifiedTexts | None)
AnyText = TypeVar("AnyText")


@dataclasses.dataclass(frozen=True)
class Collection(Generic[AnyPassages, AnyText]):
    """Passages and the judged queries of one split.

    Attributes:
        directory: where it was read.
        split: name of the split.
        passages: all passages; None where a qrels file alone was read (`load_qrels`).
        queries: id -> text, or token ids, of the queries that the split judges, in the order of their file.
        qrels: query id -> {passage id: grade}.
        relevance_level: smallest grade that counts as relevant where a measure knows relevant and not relevant only:
            2 in TREC's Deep Learning tracks, else 1.
    """

    directory: Path
    split: str
    passages: AnyPassages
    queries: dict[str, AnyText]
    qrels: Qrels
    relevance_level: int

    def relevant_passages(self) -> list[np.ndarray]:
        """For each query in the order of `queries`, indices of its relevant passages; maybe none."""
        assert self.passages is not None, "qrels alone have no indices"
        relevant = [
            [passage for passage, grade in self.qrels[query].items() if grade >= self.relevance_level]
            for query in self.queries
        ]
        indices = self.passages.indices([passage for passages in relevant for passage in passages])
        found = np.split(indices, np.cumsum([len(passages) for passages in relevant])[:-1])
        return [passages[passages >= 0] for passages in found]


def load_collection(directory: str | Path, split: str, keep_unknown: bool = False) -> "Collection[Passages, str]":
    """Reads a collection in either layout and checks that passages, queries and qrels belong together.

    Args:
        directory: the collection's.
        split: name of the qrels.
        keep_unknown: keep judgements of passages that are not there, and say how many there are. Some published qrels
            have a few, and scores are to count them as trec_eval does, as passages that no search finds.

    Raises:
        InputError: if a file is missing, a line is broken, an id stands twice, a query is empty, or the qrels name an
            unknown query or passage (with `keep_unknown`, nothing but unknown passages).
    """
    directory = Path(directory)
    files = locate(directory, split)
    judgements = read_judgements(files.qrels, has_header=files.is_beir)
    queries = _read_queries(files.queries, is_json=files.is_beir)
    judgements.check_known("query", [query in queries for query in judgements.queries], files.queries)
    passages = load_passages(directory)
    is_known = passages.indices(judgements.passages) >= 0
    if not keep_unknown or not is_known.any():
        judgements.check_known("passage", is_known, passages.path)
    elif not is_known.all():
        say(
            f"{files.qrels}: {counted(int(np.sum(~is_known)), 'line')} of {len(is_known):,} have a passage that "
            f"{passages.path.name} lacks; it counts as one that is not found"
        )
    qrels = judgements.qrels()
    return Collection(
        directory=directory,
        split=split,
        passages=passages,
        queries={query: text for query, text in queries.items() if query in qrels},
        qrels=qrels,
        relevance_level=files.relevance_level,
    )


def load_qrels(path: Path) -> "Collection[None, str]":
    """Reads judgements alone, BEIR's or TREC's, to score runs where the collection is not.

    Returns:
        A collection without passages: its split is the file's name, and the texts of its queries are their ids.

    Raises:
        InputError: if the file is missing or a line is broken.
    """
    qrels = read_judgements(path, has_header=Lines(path)[0].startswith("query-id\t")).qrels()
    is_graded = path.name.removesuffix(".gz") in {name for name, _ in TREC_DL.values()}
    return Collection(path.parent, path.name, None, {query: query for query in qrels}, qrels, 2 if is_graded else 1)


# Passages.


class Passages(Sequence[Passage]):
    """The passages of a collection in the order of their file.

    Attributes:
        path: their file.
        ids: their ids.
        is_titled: whether any has a title.
    """

    def __init__(self, lines: Lines, parse: Callable[[str], tuple[str, str, str]]):
        self.path, self._lines, self._parse = lines.path, lines, parse
        self._title_lines: Lines | None = None
        self.is_titled = False
        self._empty: list[int] = []
        chunks = []
        with Progress(f"read {lines.path.name}", len(lines), "passages") as progress:
            for start in range(0, len(lines), PASSAGES_AT_ONCE):
                ids = []
                for index in range(start, min(start + PASSAGES_AT_ONCE, len(lines))):
                    passage, title, text = lines.parsed(index, parse)
                    ids.append(passage)
                    self.is_titled = self.is_titled or title != ""
                    if not (title.strip() or text.strip()):
                        self._empty.append(index)
                chunks.append(pa.array(ids, pa.large_string()))
                progress.update(len(ids))
        self.ids: pa.LargeStringArray = pa.concat_arrays(chunks)
        check_unique(self.ids, lines.path)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        index = range(len(self))[index]
        _, title, text = self._lines.parsed(index, self._parse)
        if self._title_lines is not None and self._title_rows[index] >= 0:
            _, title = self._title_lines.parsed(self._title_rows[index], _id_and_text)
        return Passage(title, text)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the content of their file, and of that of their titles if it is another."""
        titles = [] if self._title_lines is None else [self._title_lines.sha256()]
        return "-".join([self._lines.sha256(), *titles])

    def indices(self, ids: Sequence[str] | pa.Array) -> np.ndarray:
        """Where the passages with these ids stand, int64; -1 for an unknown id. One call for many ids is fastest."""
        return indices_of(self.ids, ids)

    def texts(self, titles: bool = True, separator: str = " ") -> "PassageTexts":
        """The passages as the texts that are indexed.

        Args:
            titles: put each passage's title, if it has one, before its text.
            separator: between title and text. The published MS MARCO models were trained with `[SEP]`.
        """
        return PassageTexts(self, titles, separator)

    def join_titles(self, lines: Lines) -> None:
        """Takes the titles from lines `pid TAB title`; a passage without a line there has none."""
        ids = pa.array([lines.parsed(row, _id_and_text)[0] for row in range(len(lines))], pa.large_string())
        check_unique(ids, lines.path)
        indices = self.indices(ids)
        if (indices < 0).any():
            row = int(np.argmax(indices < 0))
            raise InputError(
                f"{lines.path}:{row + 1}: {self.path.name} has no passage {shown(ids[row].as_py())}; take both "
                "files from one release"
            )
        self._title_lines, self._title_rows = lines, np.full(len(self), -1, np.int64)
        self._title_rows[indices] = np.arange(len(lines))
        self.is_titled = True

    def warn_of_empty(self) -> None:
        """Says how many passages have neither title nor text."""
        empty = [index for index in self._empty if not self[index].title.strip()]
        if empty:
            say(
                f"{self.path}:{empty[0] + 1}: a passage without title and text, one of {len(empty):,} such; they stay "
                "in the collection"
            )


class PassageTexts(Sequence[str]):
    """The texts of passages, made when they are asked for."""

    def __init__(self, passages: Passages, titles: bool, separator: str):
        self._passages, self._titles, self._separator = passages, titles, separator

    def __len__(self) -> int:
        return len(self._passages)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        title, text = self._passages[index]
        if not self._titles:
            return text
        return f"{title}{self._separator}{text}" if title and text else title or text


def indices_of(known: pa.LargeStringArray, ids: Sequence[str] | pa.Array) -> np.ndarray:
    """Where ids stand among known ones, int64; -1 for an unknown id."""
    found = pc.index_in(pa.array(ids, pa.large_string()), value_set=known)
    return found.fill_null(-1).to_numpy().astype(np.int64)


def load_passages(directory_or_file: str | Path) -> Passages:
    """Reads the passages of a collection in either layout, or of one file of such passages, or the queries of one.

    A passage with neither title nor text is kept, and said: known collections have some, and leaving them out would
    change their scores.

    Raises:
        InputError: if the file is missing or a line of it is broken, or an id stands twice.
    """
    path = Path(directory_or_file)
    if not path.is_file():
        path = _passages_file(path)
    lines = Lines(path)
    if _is_json(path):
        passages = Passages(lines, _passage_from_json)
    else:
        is_titled = lines[0].count("\t") == 2
        passages = Passages(lines, _id_title_and_text if is_titled else _passage_without_title)
        titles = _find(path.parent, MSMARCO_TITLES)
        if titles is not None and path.name.startswith("para."):
            passages.join_titles(Lines(titles))
    passages.warn_of_empty()
    return passages


def load_queries(directory_or_file: str | Path) -> Passages:
    """Reads all queries of a collection in BEIR's layout, or of a file in either, judged or not, as if passages.

    Raises:
        InputError: if the file is missing or a line of it is broken, or an id stands twice.
    """
    path = Path(directory_or_file)
    if not path.is_dir():
        return load_passages(path)
    queries = _find(path, BEIR_QUERIES)
    if queries is None:
        names = sorted(path.name for path in path.glob("*queries*"))
        raise InputError(
            f"{path}: no {BEIR_QUERIES} there; name the file of the queries"
            + (f", one of {', '.join(names[:20])}" if names else "")
        )
    return load_passages(queries)


# Hard negatives.


def read_negatives(
    paths: Sequence[str | Path], query_ids: Sequence[str], passages: IdentifiedTexts, depth: int
) -> dict[int, np.ndarray]:
    """Reads files of hard negatives, lines `query-id TAB passage-id,passage-id,...`, the hardest first.

    Several files' lists are interleaved, the first of each, then the second of each, and no passage stands twice.

    Args:
        paths: the files, also `.gz`.
        query_ids: ids of the queries that negatives are wanted for; lines of other queries are passed over.
        passages: the collection's.
        depth: how many negatives to keep for each query.

    Returns:
        Index of the query -> indices of its negatives, int32, for the queries that the files name.

    Raises:
        InputError: if a file is missing, a line is broken, a passage is unknown, or no query of a file is known.
    """
    query_indices = {query: index for index, query in enumerate(query_ids)}
    lists: dict[int, list[np.ndarray]] = {}
    for path in map(Path, paths):
        of_file: dict[int, list[np.ndarray]] = {}
        for query, negatives in _read_negatives(Lines(path), query_indices, passages, depth):
            of_file.setdefault(query, []).append(negatives)
        for query, parts in of_file.items():
            lists.setdefault(query, []).append(np.concatenate(parts))
    return {query: _interleaved(ranked)[:depth] for query, ranked in lists.items()}


def _read_negatives(
    lines: Lines, query_indices: Mapping[str, int], passages: IdentifiedTexts, depth: int
) -> Iterator[tuple[int, np.ndarray]]:
    known = 0
    with Progress(f"read {lines.path.name}", len(lines), "lines") as progress:
        for start in range(0, len(lines), NEGATIVE_LISTS_AT_ONCE):
            numbers, queries, lists = [], [], []
            stop = min(start + NEGATIVE_LISTS_AT_ONCE, len(lines))
            for row in range(start, stop):
                query, negatives = lines.parsed(row, _query_and_negatives)
                if query in query_indices and negatives:
                    numbers.append(row + 1)
                    queries.append(query_indices[query])
                    lists.append(negatives)
            known += len(queries)
            if queries:
                split = pc.list_slice(pc.split_pattern(pa.array(lists, pa.large_string()), ","), 0, depth)
                ends = np.cumsum(pc.list_value_length(split).to_numpy())
                ids = pc.utf8_trim_whitespace(split.flatten())
                indices = passages.indices(ids)
                if (indices < 0).any():
                    first = int(np.argmax(indices < 0))
                    number = numbers[int(np.searchsorted(ends, first, side="right"))]
                    raise InputError(
                        f"{lines.path}:{number}: {passages.path} has no passage {shown(ids[first].as_py())}; mend the "
                        "line, or take negatives that were made for this collection"
                    )
                yield from zip(queries, np.split(indices.astype(np.int32), ends[:-1]), strict=True)
            progress.update(stop - start)
    if known == 0:
        raise InputError(
            f"{lines.path}: none of its queries is judged in the split; take negatives that were made for this split"
        )
    if known < len(lines):
        say(
            f"{lines.path}: {len(lines) - known:,} of {len(lines):,} lines name queries of other splits or no negatives"
        )


def _interleaved(lists: list[np.ndarray]) -> np.ndarray:
    ranks = np.concatenate([np.arange(len(ranked)) for ranked in lists])
    merged = np.concatenate(lists)[np.argsort(ranks, kind="stable")]
    _, firsts = np.unique(merged, return_index=True)
    return merged[np.sort(firsts)]


# Files.


class Files(NamedTuple):
    """Where a collection's parts are, and what they say of its layout and measures."""

    passages: Path
    queries: Path
    qrels: Path
    is_beir: bool
    relevance_level: int = 1


def locate(directory: Path, split: str) -> Files:
    """Finds a collection's files without reading them.

    Raises:
        InputError: if one is missing.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; name one with a collection in BEIR's or MS MARCO's layout")
    passages = _passages_file(directory)
    if _is_json(passages):
        queries = _find(directory, BEIR_QUERIES)
        if queries is None:
            raise _missing(directory, "queries", (BEIR_QUERIES,))
        qrels = _find(directory / "qrels", f"{split}.tsv")
        if qrels is None:
            raise _missing(directory / "qrels", f"qrels of a split {split!r}", (f"{split}.tsv",))
        return Files(passages, queries, qrels, is_beir=True)
    if split in TREC_DL:
        qrels_name, queries_name = TREC_DL[split]
        choices: dict[str, tuple[str, ...]] = {qrels_name: (queries_name,)}
    else:
        small, full = f"{split}.small.tsv", f"{split}.tsv"
        choices = {f"qrels.{small}": (f"queries.{small}", f"queries.{full}"), f"qrels.{full}": (f"queries.{full}",)}
    for qrels_name, queries_names in choices.items():
        qrels = _find(directory, qrels_name)
        if qrels is not None:
            queries = _first(directory, queries_names)
            if queries is None:
                raise _missing(directory, f"queries of the split {split!r}", queries_names)
            return Files(passages, queries, qrels, is_beir=False, relevance_level=2 if split in TREC_DL else 1)
    raise _missing(directory, f"qrels of a split {split!r}", tuple(choices))


def _passages_file(directory: Path) -> Path:
    names = (BEIR_PASSAGES, *MSMARCO_PASSAGES)
    path = _first(directory, names)
    if path is None:
        raise _missing(directory, "passages in BEIR's or MS MARCO's layout", names)
    return path


def _is_json(path: Path) -> bool:
    """Whether a file is in BEIR's layout."""
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _find(directory: Path, name: str) -> Path | None:
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def _first(directory: Path, names: Sequence[str]) -> Path | None:
    return next((path for name in names if (path := _find(directory, name)) is not None), None)


def _missing(directory: Path, what: str, names: Sequence[str]) -> InputError:
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    shown = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
    return InputError(
        f"{directory}: no {what} there: looked for {', '.join(names)} (or .gz); found {shown or 'nothing'}"
    )


# Lines.


def _id_and_text(line: str) -> tuple[str, str]:
    identifier, text = columns(line, ("id", "text"))
    return checked_id(identifier), text


def _passage_without_title(line: str) -> tuple[str, str, str]:
    identifier, text = _id_and_text(line)
    return identifier, "", text


def _id_title_and_text(line: str) -> tuple[str, str, str]:
    identifier, title, text = columns(line, ("id", "title", "text"))
    return checked_id(identifier), title, text


def _query_and_negatives(line: str) -> tuple[str, str]:
    query, negatives = columns(line, ("query-id", "passage-id,passage-id,..."))
    return query, negatives.strip()


def _json_id(record: dict) -> str:
    identifier = record.get("_id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str):
        raise BadLineError(f"no text under the key '_id', but the keys {shown(list(record))}; mend the line")
    return checked_id(encodable(identifier, "_id"))


def _json_text(record: dict, key: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise BadLineError(f"no text under the key {key!r}, but the keys {shown(list(record))}; mend the line")
    return encodable(text, key)


def _passage_from_json(line: str) -> tuple[str, str, str]:
    record = json_object(line)
    title = _json_text(record, "title") if record.get("title") is not None else ""
    return _json_id(record), title, _json_text(record, "text")


def _query_from_json(line: str) -> tuple[str, str]:
    record = json_object(line)
    return _json_id(record), _json_text(record, "text")


def _read_queries(path: Path, is_json: bool) -> dict[str, str]:
    lines = Lines(path)
    parse = _query_from_json if is_json else _id_and_text
    queries: dict[str, str] = {}
    for row in range(len(lines)):
        query, text = lines.parsed(row, parse)
        if not text.strip():
            raise InputError(f"{path}:{row + 1}: the query {shown(query)} is empty; give it words or remove it")
        queries[query] = text
    if len(queries) < len(lines):
        check_unique(pa.array([lines.parsed(row, parse)[0] for row in range(len(lines))]), path)
    return queries
