"""Runs: what a search found for each query.

A run maps query ids to {passage id: score}. Its ranking follows from the scores alone, as in trec_eval: higher scores
first, as 32-bit floats; equal scores by passage id in descending byte order. So a run reads the same here, in a file,
and in every tool that sorts it anew.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retromae_jax.errors import InputError, shown
from retromae_jax.logging import progress

Run = dict[str, dict[str, float]]


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
    """Writes a run in TREC's format, `query-id Q0 passage-id rank score tag`, with the scores' full precision.

    Raises:
        InputError: if an id or the tag has white space in it, which the format cannot hold.
    """
    _check_field("tag", tag)
    for query in run:
        _check_field("query id", query)
    for passage in {passage for scores in run.values() for passage in scores}:
        _check_field("passage id", passage)
    write_lines(
        path,
        (
            f"{query} Q0 {passage} {rank} {np.float32(score)!s} {tag}"
            for query, scores in progress(run.items(), f"write {path.name}", "queries")
            for rank, (passage, score) in enumerate(ranking(scores), 1)
        ),
    )


def _check_field(name: str, value: str) -> None:
    if value.split() != [value]:
        raise InputError(f"the {name} {shown(value)} is empty or has white space in it, which a TREC run cannot hold")


def read_run(path: str | Path) -> Run:
    """Reads a run in TREC's format. Its rank column is not used, as in trec_eval.

    Raises:
        InputError: if the file is missing or empty, a line is broken or a passage stands twice under a query.
    """
    run: Run = {}
    for where, line in _lines(Path(path)):
        _add_line(run, line, where)
    if not run:
        raise InputError(f"{path}: the file is empty; make it again")
    return run


def iterate_run(path: str | Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Reads a run in TREC's format query by query: ids of queries, and {passage id: score} of each.

    Raises:
        InputError: as `read_run`, and if the lines of a query do not follow each other.
    """
    run: Run = {}
    finished = set()
    for where, line in _lines(Path(path)):
        query = _add_line(run, line, where)
        if query in finished:
            raise InputError(f"{where}: lines of query {shown(query)} stand apart; sort the run by query")
        if len(run) > 1:
            before = next(iter(run))
            finished.add(before)
            yield before, run.pop(before)
    yield from run.items()


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, and where each stands."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; name a TREC run") from error


def _add_line(run: Run, line: bytes, where: str) -> str:
    """Adds what a line says and returns its query."""
    try:
        fields = line.decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} of the line is not UTF-8; mend the line") from None
    if len(fields) != 6:
        raise InputError(
            f"{where}: {len(fields)} fields where 6 are expected, `query-id Q0 passage-id rank score tag`; mend the "
            "line"
        )
    query, _, passage, _, score_field, _ = fields
    try:
        score = float(score_field)
    except ValueError:
        score = math.nan
    # The largest 32-bit float: scores are compared as such.
    if not abs(score) <= float(np.finfo(np.float32).max):
        raise InputError(f"{where}: the score {shown(score_field)} is no finite 32-bit number; mend the line")
    scores = run.setdefault(query, {})
    if passage in scores:
        raise InputError(f"{where}: passage {shown(passage)} stands twice under query {shown(query)}; remove one line")
    scores[passage] = float(np.float32(score))
    return query


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
