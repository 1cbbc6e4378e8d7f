"""Scores a run of any system, in TREC's or MS MARCO's format.

    python -m eval.score --run bm25.trec --collection data/msmarco --split dev
    python -m eval.score --run bm25.trec --qrels 2019qrels-pass.txt

The output directory gets what all evaluations write, so that `eval.compare` shows the run beside them. With --qrels
alone, no collection is needed: the run's passages are not checked, and report.html shows ids in place of texts.

Queries that are not judged are passed over, and judged ones that the run lacks count 0, as in MS MARCO's official
script; a run with a passage twice under a query, or without any judged query, is refused.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from eval.measure import AGAIN, RUN, add_output_arguments, add_split_argument, open_output, passage_indices, report_run
from retromae_jax.data.retrieval import Collection, load_collection, load_qrels
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.files import read_json
from retromae_jax.logging import say
from retromae_jax.retrieval.metrics import Scores
from retromae_jax.retrieval.runs import Run, ranking, read_run

# Of files of runs, and no part of a system's name.
SUFFIXES = (".trec", ".tsv", ".txt", ".run", ".gz")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="what a system found")
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--collection", type=Path, help="BEIR directory, or directory with MS MARCO's own files")
    judged.add_argument("--qrels", type=Path, help="judgements alone, BEIR's or TREC's, also .gz")
    add_split_argument(parser, "dev")
    add_output_arguments(parser)
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> Scores:
    """Reads the run and reports.

    Raises:
        InputError: if collection, qrels, output or run cannot be used.
    """
    collection: Collection
    if arguments.qrels is not None:
        collection = load_qrels(arguments.qrels)
    else:
        collection = load_collection(arguments.collection, arguments.split, keep_unknown=True)
    system = system_of(arguments.run)
    output = open_output(arguments.output, collection, system, [arguments.run])
    started = time.monotonic()
    run = judged_run(arguments.run, collection, arguments.depth)
    seconds = {"read": time.monotonic() - started}
    return report_run(collection, run, arguments.depth, output, system, None, {"run": str(arguments.run)}, seconds)


def system_of(run: Path) -> str:
    """Name of the system whose run a file holds: the file's, or what the evaluation says that wrote it."""
    if run.name == RUN:
        description = run.with_name("metrics.json")
        known = read_json(description, dict, AGAIN) if description.is_file() else {}
        return str(known.get("system") or run.resolve().parent.name)
    while run.suffix in SUFFIXES:
        run = run.with_suffix("")
    return run.name


def judged_run(path: Path, collection: Collection, depth: int) -> Run:
    """The best `depth` passages of a run for the collection's queries; says which queries one of them lacks.

    Raises:
        InputError: if the run cannot be read, none of its queries is judged, or the collection lacks a passage.
    """
    run = read_run(path)
    found = {query: dict(ranking(run[query])[:depth]) for query in collection.queries if query in run}
    if not found:
        raise InputError(f"{path}: none of its queries is judged in the split {collection.split!r}; take a run of it")
    if len(found) < len(run):
        say(f"{path}: {len(run) - len(found):,} of {len(run):,} queries are not judged; they are passed over")
    if len(found) < len(collection.queries):
        missing = len(collection.queries) - len(found)
        say(f"{path}: {missing:,} of {len(collection.queries):,} judged queries are not in it; they count 0")
    if collection.passages is not None:
        passage_indices(path, collection, [passage for scores in found.values() for passage in scores])
    return found


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    evaluate(parse(argv))


if __name__ == "__main__":
    main()
