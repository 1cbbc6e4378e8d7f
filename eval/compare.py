"""Puts evaluations of one split side by side and tests what differs, with the curves of the trainings behind them.

    python -m eval.compare --output runs/demo/report \\
        --evaluation 'BM25=runs/demo/eval/bm25' --evaluation 'fine-tuned=runs/demo/eval/finetuned' \\
        --training 'pretraining=runs/demo/pretrained' --training 'fine-tuning=runs/demo/finetuned'

An evaluation is the output directory of any command that evaluates; `eval.score` makes one of another system's run.
Each is compared with the one above it, or with one --baseline: the mean of the queries' differences, its 95 %
confidence interval, two-sided p-values of the paired randomization test and the paired t-test (Holm's, if there are
several comparisons), and the queries that gain and lose most. For the trainings: the reconstruction gain.

Writes metrics.json, differences.png, curves.png, and run.trec, the last evaluation's run.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.measure import AGAIN, INTERVALS, MEASURES_SHOWN, OWN_LEFT_OUT, RUN, cells
from eval.page import cut
from retromae_jax.curves import GAIN, plot_curves
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.files import read_json, read_json_lines
from retromae_jax.logging import METRICS, read_metrics, say, table
from retromae_jax.retrieval.metrics import MEASURES, Scores
from retromae_jax.retrieval.runs import iterate_run, write_lines
from retromae_jax.retrieval.significance import Difference, adjusted, differences

QUERIES, CHARACTERS = 3, 80
DESCRIBED = {"collection", "split", "queries", "passages", "depth"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation left in its directory.

    Attributes:
        directory: where.
        description: its metrics.json.
        scores: of each query, in the order of the queries' ids.
        texts: of the queries.
    """

    directory: Path
    description: dict
    scores: Scores
    texts: dict[str, str]


def compare(
    evaluations: dict[str, Path],
    output: Path,
    baseline: str | None = None,
    measure: str = "nDCG@10",
    trainings: dict[str, Path] | None = None,
) -> list[dict[str, Difference]]:
    """Writes the comparison and prints it.

    Args:
        evaluations: name -> output directory of an evaluation command; all of one collection and split.
        output: directory of the comparison, made if it is missing.
        baseline: name of the evaluation that all others are compared with; None for each with the one above it.
        measure: what queries are sorted and plotted by.
        trainings: name -> directory of a training run.

    Returns:
        Measure -> difference, for each pair of evaluations that is compared.

    Raises:
        InputError: if a directory is not what it should be, or the evaluations differ in collection, split or queries.
    """
    found = {name: read_evaluation(directory) for name, directory in evaluations.items()}
    _check_comparable(found)
    last = list(found.values())[-1]
    if not (last.directory / RUN).is_file():
        raise InputError(f"{last.directory / RUN} does not exist; {AGAIN}")
    comparable = _comparable(found)
    common = [name for name in comparable if all(name in one.scores.means for one in found.values())]
    if measure not in common:
        why = ""
        if measure in MEASURES and measure not in comparable:
            depths = " and ".join(f"{depth:,}" for depth in sorted(_depths(found)))
            why = f" (the rankings are {depths} passages deep)"
        raise InputError(f"{measure} cannot be compared{why}, but {', '.join(common)}; choose another --measure")
    if baseline is not None and baseline not in found:
        raise InputError(f"there is no evaluation {baseline!r}, but {', '.join(found)}; choose another --baseline")
    curves = {name: _curves(directory) for name, directory in (trainings or {}).items()}
    gains = {
        name: [(row["step"], row[GAIN]) for row in rows if GAIN in row]
        for name, rows in curves.items()
        if any(GAIN in row for row in rows)
    }
    if written := [name for name, one in found.items() if one.directory.resolve() == output.resolve()]:
        raise InputError(f"{output} is the directory of {written[0]!r}, which is compared; choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror}; choose another --output") from error

    if baseline is None:
        pairs = list(itertools.pairwise(found))
    else:
        pairs = [(baseline, name) for name in found if name != baseline]
    compared = adjusted([_compared(found[before].scores, found[after].scores, comparable) for before, after in pairs])
    summary = {
        "evaluations": {name: one.description for name, one in found.items()},
        "differences": [
            {"system": after, "over": before, **{name: dataclasses.asdict(gain) for name, gain in comparison.items()}}
            for (before, after), comparison in zip(pairs, compared, strict=True)
        ],
        "reconstruction_gain": gains,
        "training": {name: rows[-1:] for name, rows in curves.items()},
    }
    write_lines(output / "metrics.json", [json.dumps(summary, indent=2)])
    shutil.copyfile(last.directory / RUN, output / RUN)
    if pairs:
        _plot(found, pairs, measure, output / "differences.png")
    plot_curves(curves, output / "curves.png")

    for name, measured in gains.items():
        path = ", ".join(f"{gain:.3f} at step {step:,}" for step, gain in measured)
        print(
            f"\nreconstruction gain of {name} (decoder loss with another text's sentence embedding less the loss with\n"
            f"the text's own, nats per token): {path}"
        )
    for (before, after), comparison in zip(pairs, compared, strict=True):
        print("\n" + _differences(before, after, comparison, is_adjusted=len(pairs) > 1))
        print(_queries(found[before], found[after], measure))
    print("\n" + _systems(found, comparable))
    say(f"\ncomparison: {output}; queries and their hits are in report.html beside each evaluation")
    return compared


def _curves(directory: Path) -> list[dict[str, float]]:
    rows = read_metrics(directory)
    if not rows:
        raise InputError(f"{directory / METRICS} has no metrics; is it the directory of a training run?")
    return rows


def read_evaluation(directory: Path) -> Evaluation:
    """Reads what an evaluation left in its directory.

    Raises:
        InputError: if a file is missing or broken.
    """
    if directory.is_file():
        raise InputError(
            f"{directory} is no directory of an evaluation; if it is a run, score it first: python -m eval.score --run "
            f"{directory}"
        )
    description = read_json(directory / "metrics.json", dict, AGAIN)
    path = directory / "per_query.jsonl"
    per_query, texts, means = {}, {}, {}
    try:
        for values in read_json_lines(path, AGAIN):
            query, texts[query] = values["query"], values["text"]
            per_query[query] = {name: values[name] for name in description["metrics"]}
        means = {name: description["metrics"][name] for name in description["intervals"]}
    except (LookupError, TypeError):
        per_query = {}
    if not per_query or not description.keys() >= DESCRIBED:
        raise InputError(f"{path}: not what an evaluation writes; {AGAIN}")
    return Evaluation(directory, description, Scores(means, dict(sorted(per_query.items()))), texts)


def _check_comparable(found: dict[str, Evaluation]) -> None:
    first = next(iter(found.values()))
    for one in found.values():
        collections = [(Path(each.description["collection"]).name, each.description["split"]) for each in (first, one)]
        if collections[0] != collections[1]:
            raise InputError(
                f"{first.directory} and {one.directory} are of different collections or splits and cannot be compared: "
                f"{', '.join(collections[0])}; {', '.join(collections[1])}"
            )
        if first.texts != one.texts:
            raise InputError(
                f"{first.directory} and {one.directory} are of different queries and cannot be compared; run both "
                "evaluations again"
            )
    without = [name for name, one in found.items() if one.description.get("settings", {}).get(OWN_LEFT_OUT)]
    # Runs of what another run found, as of a reranking, may be without them, too.
    others = [name for name in found if name not in without and _has_own_passages(found[name])] if without else []
    if others:
        say(
            f"warning: passages with their query's own id, as ArguAna and Quora have them, are left out of "
            f"{', '.join(without)} and not of {', '.join(others)}; differences between these mean little"
        )


def _has_own_passages(evaluation: Evaluation) -> bool:
    """Whether its run has a passage with its query's id."""
    path = evaluation.directory / RUN
    return path.is_file() and any(query in scores for query, scores in iterate_run(path))


def _comparable(found: dict[str, Evaluation]) -> list[str]:
    """Measures that mean the same in all evaluations: not MAP, which has no end, of rankings of different depths."""
    is_one_depth = len(_depths(found)) == 1
    return [name for name in MEASURES if "@" in name or is_one_depth]


def _depths(found: dict[str, Evaluation]) -> set[int]:
    return {one.description["depth"] for one in found.values()}


def _compared(before: Scores, after: Scores, comparable: Sequence[str]) -> dict[str, Difference]:
    # A search that is not deep enough has no Recall@1000.
    return differences(before, after, [name for name in comparable if name in before.means and name in after.means])


def _systems(found: dict[str, Evaluation], comparable: Sequence[str]) -> str:
    """The evaluations side by side."""
    measured = {name for one in found.values() for name in one.scores.means}
    shown = [name for name in MEASURES_SHOWN if name in comparable and name in measured]
    rows = [
        {"system": name, **cells(shown, one.scores.means, one.description["intervals"])} for name, one in found.items()
    ]
    first = next(iter(found.values())).description
    title = f"{Path(first['collection']).name}, {first['split']}: {first['queries']:,} queries"
    if first["passages"] is not None:
        title += f", {first['passages']:,} passages"
    return table(rows, f"{title}\n{INTERVALS}")


def _differences(before: str, after: str, comparison: dict[str, Difference], is_adjusted: bool) -> str:
    rows = [
        {
            "measure": name,
            "difference": f"{gain.mean:+.4f}",
            "95 % interval": f"{gain.interval[0]:+.4f} to {gain.interval[1]:+.4f}",
            "p, randomization": _p_value(gain.randomization_p),
            "p, t-test": _p_value(gain.t_p),
            "better": gain.better,
            "worse": gain.worse,
        }
        for name, gain in comparison.items()
        if name in MEASURES_SHOWN
    ]
    return table(rows, f"{after} over {before}{', p-values by Holm' if is_adjusted else ''}")


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _queries(before: Evaluation, after: Evaluation, measure: str) -> str:
    """The queries that gain and lose most."""
    gains = {
        query: values[measure] - before.scores.per_query[query][measure]
        for query, values in after.scores.per_query.items()
    }
    by_gain = sorted(gains, key=lambda query: gains[query])
    lines = []
    for name, queries in (("gain", by_gain[: -QUERIES - 1 : -1]), ("lose", by_gain[:QUERIES])):
        changed = [query for query in queries if (gains[query] > 0 if name == "gain" else gains[query] < 0)]
        lines += [f"queries that {name} most in {measure}:{'' if changed else ' none'}"]
        lines += [f"  {gains[query]:+.4f}  {query}: {cut(after.texts[query], CHARACTERS)}" for query in changed]
    return "\n".join(lines)


def _plot(found: dict[str, Evaluation], pairs: Sequence[tuple[str, str]], measure: str, path: Path) -> None:
    """A panel for each comparison: the queries' differences, sorted."""
    from matplotlib.figure import Figure  # takes a while

    figure = Figure(figsize=(7, 2.4 * len(pairs)), layout="constrained")
    axes = figure.subplots(len(pairs), 1, squeeze=False)
    for axis, (before, after) in zip(axes[:, 0], pairs, strict=True):
        gains = found[after].scores.values([measure]) - found[before].scores.values([measure])
        gains = sorted(gains[:, 0].tolist(), reverse=True)
        axis.fill_between(range(len(gains)), gains, step="mid")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(f"{after} over {before}", fontsize=10)
        axis.set_xlabel("queries, sorted by their difference")
        axis.set_ylabel(f"difference in {measure}")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _named_directory(argument: str) -> tuple[str, Path]:
    name, separator, directory = argument.rpartition("=")
    if not separator or not name or not directory:
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=DIRECTORY")
    return name, Path(directory)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named: dict[str, Any] = {"action": "append", "type": _named_directory, "metavar": "NAME=DIR", "default": []}
    parser.add_argument(
        "--evaluation", required=True, **named, help="output directory of an evaluation, in table order"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="compare all with this one (default: each with the one above)"
    )
    parser.add_argument("--measure", default="nDCG@10", help="sort and plot queries by this (default: %(default)s)")
    parser.add_argument("--training", **named, help="directory of a training run")
    parser.add_argument("--output", type=Path, required=True, help="directory of the comparison")
    arguments = parser.parse_args(argv)
    for option, pairs in (("--evaluation", arguments.evaluation), ("--training", arguments.training)):
        if len(dict(pairs)) < len(pairs):
            parser.error(f"{option}: a name stands twice")
    compare(
        dict(arguments.evaluation),
        arguments.output,
        arguments.baseline,
        arguments.measure,
        dict(arguments.training),
    )


if __name__ == "__main__":
    main()
