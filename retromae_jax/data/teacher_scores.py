"""A teacher's scores of queries' passages, to be distilled from.

Files have lines `query-id passage-id score` with blanks or tabs between, as the original code's cross-encoder writes
them (there, some scores stand in brackets). For MS MARCO they have some 100 million lines, so they are read in columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from retromae_jax.data.lines import Lines
from retromae_jax.data.retrieval import IdentifiedTexts
from retromae_jax.errors import InputError, shown
from retromae_jax.logging import Progress, say

COLUMNS = ("query-id", "passage-id", "score")
BYTES_AT_ONCE = 2**28
# What to do about passages without a score.
ERROR, DROP_PASSAGE, DROP_QUERY = MISSING = ("error", "drop_passage", "drop_query")


class TeacherScores:
    """Scores by the numbers of query and passage.

    Args:
        queries: int [N], number of each score's query, less than `num_queries`.
        passages: int [N], number of its passage.
        scores: float [N]. Where several are of one query and passage, the first counts.
        num_queries: how many queries there are.
    """

    def __init__(self, queries: np.ndarray, passages: np.ndarray, scores: np.ndarray, num_queries: int):
        order = np.lexsort((passages, queries))  # stable
        self._passages = passages[order].astype(np.int32)
        self._scores = scores[order].astype(np.float32)
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=num_queries))])

    def of(self, query: int, passages: Sequence[int] | np.ndarray) -> np.ndarray:
        """Scores of a query's passages, float32; NaN where there is none."""
        start, end = self._ends[query : query + 2]
        known, passages = self._passages[start:end], np.asarray(passages, np.int32)
        if start == end:
            return np.full(len(passages), np.nan, np.float32)
        rows = np.minimum(np.searchsorted(known, passages), end - start - 1)
        return np.where(known[rows] == passages, self._scores[start:end][rows], np.float32(np.nan))


def read_teacher_scores(
    paths: Sequence[str | Path], query_ids: Sequence[str], passages: IdentifiedTexts
) -> TeacherScores:
    """Reads files of teacher scores.

    Args:
        paths: the files, also `.gz`. Where they score a passage of a query several times, the first counts.
        query_ids: ids of the queries that scores are wanted for; lines of other queries are passed over.
        passages: the collection's.

    Raises:
        InputError: if a file is missing, a line is broken, a passage is unknown, or no query of a file is known.
    """
    known = pa.array(query_ids, pa.string())
    parts = [part for path in map(Path, paths) for part in _read(path, known, passages)]
    queries, numbers, scores = map(np.concatenate, zip(*parts, strict=True))
    return TeacherScores(queries, numbers, scores, len(query_ids))


def with_scores(
    scores: TeacherScores,
    query_ids: Sequence[str],
    passage_ids: pa.LargeStringArray,
    positives: Sequence[np.ndarray],
    negatives: Mapping[int, np.ndarray],
    group_size: int,
    missing: str,
) -> tuple[np.ndarray, list[np.ndarray], dict[int, np.ndarray]]:
    """What can be trained on of queries, their positives and their hard negatives, with what scores there are.

    Args:
        scores: the teacher's.
        query_ids: ids of the queries, for messages.
        passage_ids: ids of the collection's passages, for messages.
        positives: for each query, numbers of its relevant passages.
        negatives: for some queries, numbers of hard negatives.
        group_size: passages of a group, the positive included. Random passages, which fill a group without enough
            hard negatives, have no score.
        missing: what to do about passages without score: `error`; `drop_passage` trains without them (a random passage
            that fills a group then counts in the contrastive loss alone); `drop_query` trains without the queries that
            have one.

    Returns:
        Numbers of the queries to train on; for each query that was given, its positives to train on; hard negatives.

    Raises:
        InputError: if there are such passages and that is an error, or no query is left.
    """
    kept, problem, incomplete = [], "", 0
    scored_positives, scored_negatives = [], {}
    with Progress("match teacher scores", len(positives), "queries") as progress:
        for query, relevant in enumerate(positives):
            hard = np.asarray(negatives.get(query, ()), np.int64)
            hard = hard[~np.isin(hard, relevant)]
            are_scored = [~np.isnan(scores.of(query, passages)) for passages in (relevant, hard)]
            scored_positives.append(relevant[are_scored[0]])
            scored_negatives[query] = hard[are_scored[1]]
            unscored = np.concatenate([relevant, hard])[~np.concatenate(are_scored)]
            is_complete = len(unscored) == 0 and len(hard) >= group_size - 1
            if not is_complete:
                incomplete += 1
                problem = problem or (
                    f"passage {passage_ids[int(unscored[0])].as_py()!r} of query {query_ids[query]!r}"
                    if len(unscored)
                    else f"the random passages beside the {len(hard)} hard negatives of query {query_ids[query]!r} "
                    f"in a group of {group_size}"
                )
            if is_complete or (missing == DROP_PASSAGE and len(scored_positives[query])):
                kept.append(query)
            progress.update(1)
    lacking = (
        f"teacher_scores: {incomplete:,} of {len(positives):,} queries have passages without a score, as {problem}"
    )
    if incomplete and missing == ERROR:
        raise InputError(f"{lacking}; score them too, or set --config.missing_scores to {DROP_PASSAGE} or {DROP_QUERY}")
    if not kept:
        raise InputError(f"{lacking}; no query is left to train on: score its passages")
    if incomplete:
        say(f"{lacking}; with {missing}, {len(kept):,} queries are left")
    return np.array(kept), scored_positives, scored_negatives


def _read(
    path: Path, query_ids: pa.Array, passages: IdentifiedTexts
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers of queries and passages, and scores, of successive lines of a file."""
    known, delimiter = 0, " "
    try:
        path.open("rb").close()  # its errors are clearer
        with pa.input_stream(path) as stream:
            delimiter = "\t" if b"\t" in stream.read(2**12).partition(b"\n")[0] else " "
        reader = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=COLUMNS, block_size=BYTES_AT_ONCE),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string())),
        )
        with Progress(f"read {path.name}", None, "lines") as progress:
            for batch in reader:
                scores = pc.cast(pc.utf8_trim(batch["score"], "[]"), pa.float32())
                if not pc.all(pc.is_finite(scores)).as_py():
                    raise pa.ArrowInvalid("a score is not finite")
                queries = pc.index_in(batch["query-id"], value_set=query_ids)
                is_known = pc.is_valid(queries)
                ids = batch["passage-id"].filter(is_known).cast(pa.large_string())
                numbers = passages.indices(ids)
                if (numbers < 0).any():
                    unknown = shown(ids[int(np.argmin(numbers))].as_py())
                    raise InputError(
                        f"{path}: {passages.path} has no passage {unknown}; take scores that were made for this "
                        "collection"
                    )
                known += len(numbers)
                yield queries.drop_null().to_numpy(), numbers, scores.filter(is_known).to_numpy()
                progress.update(len(batch))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; mend its name or its rights") from error
    except pa.ArrowInvalid as error:
        raise _first_problem(path, delimiter, str(error)) from error
    if known == 0:
        raise InputError(f"{path}: none of its queries is trained on; take scores that were made for this split")


def _first_problem(path: Path, delimiter: str, message: str) -> InputError:
    """The first broken line of a file that could not be read as columns."""
    lines = Lines(path)
    between = "TAB" if delimiter == "\t" else "one blank"
    for number in range(len(lines)):
        fields = lines[number].split(delimiter)
        if len(fields) != len(COLUMNS):
            return InputError(
                f"{path}:{number + 1}: {len(fields)} fields where {len(COLUMNS)} are expected, {', '.join(COLUMNS)} "
                f"with {between} between; mend the line"
            )
        try:
            is_number = np.isfinite(float(fields[2].strip("[]")))
        except ValueError:
            is_number = False
        if not is_number:
            return InputError(f"{path}:{number + 1}: the score {shown(fields[2])} is no finite number; mend the line")
    return InputError(f"{path}: {message}; mend the file")
