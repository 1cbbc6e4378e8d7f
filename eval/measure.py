"""What every evaluation does alike: its arguments, and scoring, keeping and showing what a search found."""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retromae_jax.data.batches import BATCH_SIZES
from retromae_jax.data.retrieval import Collection, load_collection
from retromae_jax.errors import InputError
from retromae_jax.logging import say, table
from retromae_jax.retrieval.metrics import MEASURES, Scores, score
from retromae_jax.retrieval.runs import make_run, write_lines, write_run

MEASURES_SHOWN = ("MRR@10", "Recall@100", "Recall@1000", "nDCG@10", "MAP")


def argument_parser(command: str) -> argparse.ArgumentParser:
    """The arguments that all evaluations have.

    Args:
        command: `__doc__` of the command's module; its text is the help.
    """
    parser = argparse.ArgumentParser(description=command, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_collection_arguments(parser, "dev")
    parser.add_argument(
        "--output",
        type=Path,
        help="directory for run.trec, metrics.json and per_query.jsonl (default: runs/eval/COLLECTION-SPLIT/SYSTEM)",
    )
    parser.add_argument(
        "--depth", type=positive, default=1000, help="passages to rank for each query (default: %(default)s)"
    )
    return parser


def add_collection_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    """Adds the arguments that say what is searched; `split` is their default one."""
    parser.add_argument(
        "--collection", type=Path, required=True, help="BEIR directory, or directory with MS MARCO's own files"
    )
    parser.add_argument(
        "--split",
        default=split,
        help="which qrels: train, dev, test, ...; dl19 and dl20 are TREC's Deep Learning tracks (default: %(default)s)",
    )
    add_titles_argument(parser)


def add_titles_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that says what of a passage is read."""
    parser.add_argument(
        "--titles",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put passages' titles, where there are some, before their texts (default: as the model says, or else yes)",
    )


def passage_indices(run: Path, collection: Collection, passages: Sequence[str]) -> np.ndarray:
    """Indices in the collection of passages that a run names, int64.

    Raises:
        InputError: if the collection has not all of them.
    """
    indices = collection.passages.indices(passages)
    if (indices < 0).any():
        raise InputError(
            f"{run}: {collection.passages.path} has no passage {passages[int(np.argmin(indices))]!r}; take a run of "
            "this collection"
        )
    return indices


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command that runs a model."""
    parser.add_argument(
        "--batch-size",
        type=positive,
        help="texts that each device computes at once where they are as long as may be; of shorter ones as many more "
        f"(default: {BATCH_SIZES['cpu']} on CPUs, {BATCH_SIZES['tpu']} on accelerators)",
    )
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"), default="float32")


def positive(argument: str) -> int:
    """Parses a whole number of 1 or more."""
    number = int(argument)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{argument} is not 1 or more")
    return number


def open_evaluation(arguments: argparse.Namespace, system: str) -> tuple[Collection, Path]:
    """Reads the collection and makes the output directory, so that mistakes show before the work.

    Args:
        arguments: of `argument_parser`.
        system: name of what is evaluated.

    Raises:
        InputError: if the collection cannot be read, or the output not written.
    """
    collection = load_collection(arguments.collection, arguments.split)
    output = arguments.output
    if output is None:
        name = arguments.collection.resolve().name
        output = Path("runs", "eval", f"{name}-{arguments.split}", system)
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise InputError(f"{output}: cannot be written to: {error.strerror}; choose another --output") from error
    return collection, output


def measures_of(depth: int) -> list[str]:
    """The measures that rankings of so many passages have."""
    return [name for name in MEASURES if int(name.partition("@")[2] or 0) <= depth]


def report(
    collection: Collection,
    found: tuple[np.ndarray, np.ndarray],
    output: Path,
    system: str,
    titles: bool,
    settings: Mapping[str, object],
    seconds: Mapping[str, float],
    before: Mapping[str, float] | None = None,
) -> Scores:
    """Scores what a search found, writes run and scores, and prints a table.

    Args:
        collection: what was searched.
        found: scores [Q, k] and passage indices [Q, k] for the collection's queries.
        output: directory of `run.trec`, `metrics.json` and `per_query.jsonl`.
        system: name of what is evaluated.
        titles: whether titles were to be put before texts.
        settings: what else decides the scores, for `metrics.json`.
        seconds: how long each step took.
        before: scores of the ranking that was reranked, by measure; shown above, and what was gained below.
    """
    passage_scores, indices = found
    depth = indices.shape[1]
    run = make_run(list(collection.queries), collection.passages.ids, passage_scores, indices)
    scores = score(run, collection.qrels, measures_of(depth), collection.relevance_level)
    description = {
        "system": system,
        "collection": str(collection.directory),
        "split": collection.split,
        "passages_file": collection.passages.path.name,
        "titles": titles and collection.passages.is_titled,
        "passages": len(collection.passages),
        "queries": len(collection.queries),
        "relevance_level": collection.relevance_level,
        "depth": depth,
        "metrics": scores.means,
        "settings": dict(settings),
        "seconds": {step: round(value, 3) for step, value in seconds.items()},
    }
    if before is not None:
        description["before"] = dict(before)

    title = (
        f"{collection.directory.resolve().name}, {collection.split}: {len(collection.queries):,} queries, "
        f"{len(collection.passages):,} passages of {collection.passages.path.name} "
        f"{'with' if description['titles'] else 'without'} titles"
    )
    shown = {name: scores.means[name] for name in MEASURES_SHOWN if name in scores.means}
    rows = [{"system": system, **shown}]
    if before is not None:
        gained = {name: value - before[name] for name, value in shown.items()}
        rows = [{"system": "before", **{name: before[name] for name in shown}}, *rows, {"system": "gain", **gained}]
    print(table(rows, title))

    write_run(output / "run.trec", run, tag="-".join(system.split()))
    write_lines(
        output / "per_query.jsonl",
        (json.dumps({"query": query, **values}) for query, values in scores.per_query.items()),
    )
    write_lines(output / "metrics.json", [json.dumps(description, indent=2)])
    say(f"run and scores: {output}")
    return scores
