"""Relevance judgements (qrels), of BEIR's and of TREC's kind."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retromae_jax.data.lines import BadLineError, Lines, columns, counted
from retromae_jax.errors import InputError, shown

# Query id -> {passage id: grade}.
Qrels = dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Judgements:
    """The columns of a qrels file, one entry a line from line `first_line` on."""

    path: Path
    first_line: int
    queries: list[str]
    passages: list[str]
    grades: list[int]

    def check_known(self, kind: str, is_known: Sequence[bool] | np.ndarray, path: Path) -> None:
        """Raises an InputError if a line has a query or passage (`kind`) that the file `path` lacks."""
        ids = self.queries if kind == "query" else self.passages
        unknown = np.flatnonzero(~np.asarray(is_known, bool))
        if len(unknown) == 0:
            return
        named = ", ".join(f"{shown(ids[row])} (line {row + self.first_line})" for row in unknown[:3])
        raise InputError(
            f"{self.path}: {counted(len(unknown), 'line')} of {len(ids):,} have a {kind} that {path} lacks: {named}"
            f"{', ...' if len(unknown) > 3 else ''}; take both files from one release"
        )

    def qrels(self) -> Qrels:
        """The judgements by query; raises an InputError if two of them differ."""
        qrels: Qrels = {}
        for row, (query, passage, grade) in enumerate(zip(self.queries, self.passages, self.grades, strict=True)):
            if qrels.setdefault(query, {}).setdefault(passage, grade) != grade:
                raise InputError(
                    f"{self.path}:{row + self.first_line}: query {shown(query)} and passage {shown(passage)} were "
                    f"judged {qrels[query][passage]} on an earlier line; remove one of the two"
                )
        return qrels


def read_judgements(path: Path, has_header: bool) -> Judgements:
    """Reads a file of qrels.

    Args:
        path: the file, also `.gz`.
        has_header: whether it is BEIR's, `query-id TAB corpus-id TAB score` below a header, or TREC's, `query-id 0
            passage-id grade`.

    Raises:
        InputError: if it is missing, empty, or a line is broken.
    """
    lines = Lines(path)
    if has_header:
        fields = lines[0].split("\t")
        if len(fields) == 3 and _is_integer(fields[2]):
            raise InputError(
                f"{path}:1: the header is missing; put `query-id TAB corpus-id TAB score` before this line"
            )
        parse, start = _judgement_of_beir, 1
    else:
        parse, start = _judgement_of_trec, 0
    rows = [lines.parsed(row, parse) for row in range(start, len(lines))]
    if not rows:
        raise InputError(f"{path}: there is no judgement in it; fetch or make it again")
    queries, passages, grades = map(list, zip(*rows, strict=True))
    return Judgements(path, start + 1, queries, passages, grades)


def _is_integer(field: str) -> bool:
    try:
        int(field)
    except ValueError:
        return False
    return True


def _judgement_of_beir(line: str) -> tuple[str, str, int]:
    if '"' in line:
        # BEIR writes and reads these files as csv, in which an id with quotes is quoted.
        try:
            line = "\t".join(next(csv.reader([line], delimiter="\t")))
        except csv.Error as error:
            raise BadLineError(f"no line of a csv file: {error}; mend the line") from error
    query, passage, grade = columns(line, ("query-id", "corpus-id", "score"))
    return query, passage, _grade(grade)


def _judgement_of_trec(line: str) -> tuple[str, str, int]:
    fields = line.split()
    if len(fields) != 4:
        raise BadLineError(
            f"{counted(len(fields), 'field')} where 4 are expected, `query-id 0 passage-id grade`; mend the line"
        )
    query, _, passage, grade = fields
    return query, passage, _grade(grade)


def _grade(field: str) -> int:
    if not _is_integer(field):
        raise BadLineError(f"the grade {shown(field)} is no integer; mend the line, or remove it if it is a header")
    return int(field)
