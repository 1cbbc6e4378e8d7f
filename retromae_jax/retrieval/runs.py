"""Runs: what a search found for each query.

A run maps query ids to {passage id: score}. Its ranking follows from the scores alone, as in trec_eval: higher scores
first, as 32-bit floats; equal scores by passage id in descending byte order. So a run reads the same here, in a file,
and in every tool that sorts it anew.

Files are in TREC's format, `query-id Q0 passage-id rank score tag`, where the rank is not used; or in MS MARCO's,
`query-id TAB passage-id TAB rank`, which is only read: of its ranks, 1 to n without gaps, the negatives become scores.
Those that are read may be packed (.gz), and blank lines at the end do not count.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from retromae_jax.data.lines import unpack
from retromae_jax.errors import InputError, shown
from retromae_jax.logging import progress

Run = dict[str, dict[str, float]]

FORMATS = {
    3: "3 are expected, `query-id TAB passage-id TAB rank`",
    6: "6 are expected, `query-id Q0 passage-id rank score tag`",
}
LARGEST = float(np.finfo(np.float32).max)


def ranking(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Passage ids and scores of one query, best first."""
    rounded = np.fromiter(scores.values(), np.float32, len(scores)).tolist()
    return [(passage, score) for score, passage in sorted(zip(rounded, scores, strict=True), reverse=True)]


def make_run(query_ids: Sequence[str], passage_ids: pa.Array, scores: np.ndarray, indices: np.ndarray) -> Run:
    """Names what a search found.

    Args:
        query_ids: ids of Q queries.
        passage_ids: ids of all passages (`Passages.ids`).
        scores: float32 [Q, k].
        indices: int64 [Q, k], passages; -1 where a query has found no more.
    """
    run = {}
    for query, query_scores, query_indices in zip(query_ids, scores, indices, strict=True):
        found = query_indices >= 0
        passages = passage_ids.take(pa.array(query_indices[found])).to_pylist()
        run[query] = dict(zip(passages, query_scores[found].tolist(), strict=True))
    return run


def write_run(path: Path, run: Run, tag: str) -> None:
    """Writes a run in TREC's format, with the scores' full precision.

    Raises:
        InputError: if an id or the tag has white space in it, which the format cannot hold.
    """
    _check_fields("tag", [tag])
    _check_fields("query id", list(run))
    for scores in run.values():
        _check_fields("passage id", list(scores))
    write_lines(path, _lines_of(run, tag, path.name))


def _check_fields(name: str, values: list[str]) -> None:
    if " ".join(values).split() != values:
        value = next(value for value in values if value.split() != [value])
        raise InputError(f"the {name} {shown(value)} is empty or has white space in it, which a TREC run cannot hold")


def _lines_of(run: Run, tag: str, name: str) -> Iterator[str]:
    for query, scores in progress(run.items(), f"write {name}", "queries"):
        ranked = ranking(scores)
        # As NumPy writes them: the fewest digits that tell a 32-bit float from all others.
        written = np.array([score for _, score in ranked], np.float32).astype(str).tolist()
        for rank, ((passage, _), score) in enumerate(zip(ranked, written, strict=True), 1):
            yield f"{query} Q0 {passage} {rank} {score} {tag}"


def read_run(path: str | Path) -> Run:
    """Reads a run in TREC's or MS MARCO's format.

    Raises:
        InputError: if the file is missing or empty, a line is broken, a passage stands twice under a query, or MS
            MARCO's ranks are not 1, 2, 3, ... for each query.
    """
    path = Path(path)
    run: Run = {}
    for number, query, passage, score in _entries(path):
        scores = run.setdefault(query, {})
        if passage in scores:
            raise _stands_twice(path, number, query, passage)
        scores[passage] = score
    if not run:
        raise InputError(f"{path}: the file is empty; make it again")
    return {query: _rounded(scores) for query, scores in run.items()}


def iterate_run(path: str | Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Reads a run query by query: ids of queries, and {passage id: score} of each.

    Raises:
        InputError: as `read_run`, and if the lines of a query do not follow each other.
    """
    path = Path(path)
    finished: set[str] = set()
    current: str | None = None
    scores: dict[str, float] = {}
    for number, query, passage, score in _entries(path):
        if query != current:
            if current is not None:
                finished.add(current)
                yield current, _rounded(scores)
            if query in finished:
                raise InputError(f"{path}:{number}: lines of query {shown(query)} stand apart; sort the run by query")
            current, scores = query, {}
        if passage in scores:
            raise _stands_twice(path, number, query, passage)
        scores[passage] = score
    if current is not None:
        yield current, _rounded(scores)


def _entries(path: Path) -> Iterator[tuple[int, str, str, float]]:
    """Number, query, passage and score of each line."""
    # The first line tells the format.
    width = 0
    blank = 0
    ranked: dict[str, int] = {}
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if path.suffix == ".gz":
                file = stack.enter_context(unpack(path, file))
            for number, line in enumerate(file, 1):
                try:
                    fields = line.decode().split()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; mend the line"
                    ) from None
                if not fields:
                    blank = blank or number
                    continue
                if blank:
                    raise InputError(f"{path}:{blank}: the line is blank; remove it")
                if not width:
                    width = 3 if len(fields) == 3 else 6
                    fields[:1] = [field.removeprefix("\ufeff") for field in fields[:1]]
                if len(fields) != width:
                    raise InputError(f"{path}:{number}: {len(fields)} fields where {FORMATS[width]}; mend the line")
                if width == 6:
                    query, _, passage, _, field, _ = fields
                    score = _score(field)
                    if score is None:
                        raise InputError(
                            f"{path}:{number}: the score {shown(field)} is no finite 32-bit number; mend the line"
                        )
                else:
                    query, passage, field = fields
                    rank = ranked[query] = ranked.get(query, 0) + 1
                    if field != str(rank):
                        raise InputError(
                            f"{path}:{number}: rank {shown(field)} of query {shown(query)} where {rank} is expected; "
                            "sort each query's lines by rank, from 1 on without gaps"
                        )
                    score = -float(rank)
                yield number, query, passage, score
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; name a run in TREC's or MS MARCO's format"
        ) from error


def _score(field: str) -> float | None:
    """The number that a field holds, if it is a finite one of 32 bits, as which scores are compared."""
    try:
        score = float(field)
    except ValueError:
        return None
    return score if -LARGEST <= score <= LARGEST else None


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    values = np.fromiter(scores.values(), np.float32, len(scores))
    return dict(zip(scores, values.tolist(), strict=True))


def _stands_twice(path: Path, number: int, query: str, passage: str) -> InputError:
    return InputError(
        f"{path}:{number}: passage {shown(passage)} stands twice under query {shown(query)}; remove one line"
    )


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file that is whole or not there: a broken-off write leaves an older file as it was.

    Raises:
        InputError: if the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; make room or choose another place") from error
