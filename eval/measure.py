"""What every evaluation does alike: its arguments, and scoring, keeping and showing what a search found."""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval import page
from retromae_jax.data.batches import BATCH_SIZES
from retromae_jax.data.retrieval import Collection, load_collection
from retromae_jax.errors import InputError
from retromae_jax.logging import say, table
from retromae_jax.retrieval.metrics import MEASURES, Scores, score
from retromae_jax.retrieval.runs import Run, make_run, write_lines, write_run
from retromae_jax.retrieval.significance import Interval, differences, intervals, plus_minus

RUN = "run.trec"
AGAIN = "run the evaluation again"
# A setting: of how many queries the passage with their own id was left out of what was found.
OWN_LEFT_OUT = "own_passages_left_out"
MEASURES_SHOWN = ("MRR@10", "Recall@100", "Recall@1000", "nDCG@10", "MAP")
INTERVALS = "means over the queries ± half the width of their 95 % confidence intervals (bootstrap)"


def argument_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The arguments of an evaluation that searches.

    Args:
        command: name of the command's module.
        description: the module's `__doc__`; its text is the help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m eval.{command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_collection_arguments(parser, "dev")
    add_titles_argument(parser)
    add_output_arguments(parser)
    return parser


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every evaluation that say what is written."""
    parser.add_argument(
        "--output",
        type=Path,
        help="directory for run.trec, metrics.json, per_query.jsonl and report.html (default: "
        "runs/eval/COLLECTION-SPLIT/SYSTEM)",
    )
    parser.add_argument(
        "--depth", type=positive, default=1000, help="passages to rank for each query (default: %(default)s)"
    )


def add_collection_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    """Adds the arguments that say what is searched; `split` is their default one."""
    parser.add_argument(
        "--collection", type=Path, required=True, help="BEIR directory, or directory with MS MARCO's own files"
    )
    add_split_argument(parser, split)


def add_split_argument(parser: argparse.ArgumentParser, split: str) -> None:
    """Adds the argument that says which queries and judgements are taken; `split` is its default."""
    parser.add_argument(
        "--split",
        default=split,
        help="which qrels: train, dev, test, ...; dl19 and dl20 are TREC's Deep Learning tracks (default: %(default)s)",
    )


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
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of activations (default: %(default)s)",
    )


def positive(argument: str) -> int:
    """Parses a whole number of 1 or more."""
    number = int(argument)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{argument} is not 1 or more")
    return number


def open_evaluation(arguments: argparse.Namespace, system: str, runs: Sequence[Path] = ()) -> tuple[Collection, Path]:
    """Reads the collection and makes the output directory, so that mistakes show before the work.

    Judged passages that the collection lacks count as not found, as for trec_eval: some published qrels have a few.

    Args:
        arguments: of `argument_parser`.
        system: name of what is evaluated.
        runs: files that are read.

    Raises:
        InputError: if the collection cannot be read, the output not written, or it would take the place of a run.
    """
    collection = load_collection(arguments.collection, arguments.split, keep_unknown=True)
    return collection, open_output(arguments.output, collection, system, runs)


def open_output(output: Path | None, collection: Collection, system: str, runs: Sequence[Path] = ()) -> Path:
    """Makes the output directory, or the one that an evaluation of `system` has by default.

    Args:
        output: the directory; None takes the default.
        collection: what is searched.
        system: name of what is evaluated.
        runs: files that are read.

    Raises:
        InputError: if it cannot be written to, or what is written would take the place of a run that is read.
    """
    if output is None:
        output = Path("runs", "eval", f"{collection.directory.resolve().name}-{collection.split}", system)
    if any((output / RUN).resolve() == run.resolve() for run in runs):
        raise InputError(f"{output / RUN} is read, and would be written anew; choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise InputError(f"{output}: cannot be written to: {error.strerror}; choose another --output") from error
    return output


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
    before: Scores | None = None,
) -> Scores:
    """Reports what a search found, as `report_run` does.

    Args:
        found: scores [Q, k] and passage indices [Q, k] for the collection's queries.
        collection, output, system, titles, settings, seconds, before: see there.
    """
    scores, indices = found
    run = make_run(list(collection.queries), collection.passages.ids, scores, indices)
    return report_run(collection, run, indices.shape[1], output, system, titles, settings, seconds, before)


def report_run(
    collection: Collection,
    run: Run,
    depth: int,
    output: Path,
    system: str,
    titles: bool | None,
    settings: Mapping[str, object],
    seconds: Mapping[str, float],
    before: Scores | None = None,
) -> Scores:
    """Scores a run, prints a table, and writes run, scores and a page to read.

    Args:
        collection: what was searched.
        run: what was found for the collection's queries.
        depth: how many passages were looked for.
        output: directory of `run.trec`, `metrics.json`, `per_query.jsonl` and `report.html`.
        system: name of what is evaluated.
        titles: whether titles were to be put before texts; None where nobody knows.
        settings: what else decides the scores, for `metrics.json`.
        seconds: how long each step took.
        before: scores of the ranking that was reranked; shown above, and what was gained below.
    """
    measures = measures_of(depth)
    plotted = score(run, collection.qrels, [*measures, *page.MEASURES], collection.relevance_level)
    scores = plotted.only(measures)
    passages = collection.passages
    description = {
        "system": system,
        "collection": str(collection.directory),
        "split": collection.split,
        "passages_file": passages and passages.path.name,
        "titles": passages and titles and passages.is_titled,
        "passages": passages and len(passages),
        "queries": len(collection.queries),
        "relevance_level": collection.relevance_level,
        "depth": depth,
        "metrics": scores.means,
        "intervals": intervals(scores),
        "settings": dict(settings),
        "seconds": {step: round(value, 3) for step, value in seconds.items()},
    }
    shown = [measure for measure in MEASURES_SHOWN if measure in measures]
    rows = [{"system": system, **cells(shown, scores.means, description["intervals"])}]
    if before is not None:
        gains = differences(before, scores, measures)
        description["before"] = before.means
        description["gain"] = {measure: dataclasses.asdict(gain) for measure, gain in gains.items()}
        gained = {measure: gain.mean for measure, gain in gains.items()}
        uncertain = {measure: gain.interval for measure, gain in gains.items()}
        rows = [
            {"system": "before", **cells(shown, before.means, intervals(before))},
            *rows,
            {"system": "gain", **cells(shown, gained, uncertain, sign="+")},
        ]
    title = _title(collection, description["titles"])
    print(table(rows, f"{title}\n{INTERVALS}"))

    write_run(output / RUN, run, tag="-".join(system.split()))
    write_lines(
        output / "per_query.jsonl",
        (
            json.dumps({"query": query, "text": collection.queries[query], **values})
            for query, values in scores.per_query.items()
        ),
    )
    write_lines(output / "report.html", [page.page(title, description, collection, run, plotted)])
    # Last: where it is, all of it is there.
    write_lines(output / "metrics.json", [json.dumps(description, indent=2)])
    say(f"run and scores: {output}, with report.html to read")
    return scores


def cells(
    measures: Sequence[str], means: Mapping[str, float], intervals: Mapping[str, Interval], sign: str = ""
) -> dict[str, str | None]:
    """Cells of a table for the measures: means and halves of their intervals' widths, or None for lack of one.

    Args:
        sign: `+` for differences, whose sign is written always.
    """
    return {
        measure: plus_minus(means[measure], intervals[measure], sign) if measure in means else None
        for measure in measures
    }


def _title(collection: Collection, titles: bool | None) -> str:
    title = f"{collection.directory.resolve().name}, {collection.split}: {len(collection.queries):,} queries"
    if collection.passages is None:
        return title
    title += f", {len(collection.passages):,} passages of {collection.passages.path.name}"
    return title if titles is None else f"{title} {'with' if titles else 'without'} titles"
