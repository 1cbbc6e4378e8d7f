"""Puts evaluations of one split side by side, with the curves of the runs behind them.

    python -m eval.report --output runs/demo/report \\
        --evaluation 'BM25=runs/demo/eval/bm25' --evaluation 'fine-tuned=runs/demo/eval/finetuned' \\
        --run 'pretraining=runs/demo/pretrained' --run 'fine-tuning=runs/demo/finetuned'

Prints a table of the evaluations, and what each gains over the one above it with a 95 % confidence interval; what
pretraining runs say of the reconstruction gain; and example queries with the last evaluation's top hits. Writes
metrics.json, curves.png, and run.trec, the last evaluation's run.
"""

import argparse
import itertools
import json
import shutil
import textwrap
from pathlib import Path

from retromae_jax.curves import GAIN, plot_curves
from retromae_jax.data.retrieval import load_collection
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.files import read_json, read_json_lines
from retromae_jax.logging import table
from retromae_jax.retrieval.metrics import mean_gain
from retromae_jax.retrieval.runs import ranking, read_run

MEASURES = ("MRR@10", "Recall@100", "Recall@1000", "nDCG@10")
EXAMPLES, HITS = 3, 3
AGAIN = "run the evaluation again"


def report(evaluations: dict[str, Path], runs: dict[str, Path], output: Path) -> None:
    """Writes the report and prints it.

    Args:
        evaluations: name -> output directory of an evaluation command; all of one collection and split.
        runs: name -> directory of a training run.
        output: directory of the report, made if it is missing.

    Raises:
        InputError: if a directory is not what it should be, or the evaluations differ in collection or split.
    """
    found = {name: _read_evaluation(directory) for name, directory in evaluations.items()}
    judged = {(one["collection"], one["split"]) for one in found.values()}
    if len(judged) > 1:
        raise InputError(f"the evaluations are of different collections or splits and cannot be compared: {judged}")
    missing = [directory / "run.trec" for directory in evaluations.values() if not (directory / "run.trec").is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist; {AGAIN}")
    per_query = {name: read_json_lines(directory / "per_query.jsonl", AGAIN) for name, directory in evaluations.items()}
    remedy = "is it the directory of a training run?"
    curves = {name: read_json_lines(directory / "metrics.jsonl", remedy) for name, directory in runs.items()}
    gains = {
        name: [(row["step"], row[GAIN]) for row in rows if GAIN in row]
        for name, rows in curves.items()
        if any(GAIN in row for row in rows)
    }

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror}; choose another --output") from error
    # A search that is not deep enough has no Recall@1000.
    shown = [measure for measure in MEASURES if any(measure in one["metrics"] for one in found.values())]
    rows = [
        {"system": name} | {measure: one["metrics"].get(measure) for measure in shown} for name, one in found.items()
    ]
    gained = [
        {"gain of": name, "over": above}
        | {measure: _gain(per_query[above], per_query[name], measure) for measure in shown}
        for above, name in itertools.pairwise(found)
    ]
    summary = {"evaluations": found, "reconstruction_gain": gains, "training": {k: v[-1:] for k, v in curves.items()}}
    (output / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    last = list(evaluations.values())[-1]
    shutil.copyfile(last / "run.trec", output / "run.trec")
    plot_curves(curves, output / "curves.png")

    ((directory, split),) = judged
    first = next(iter(found.values()))
    title = f"{Path(directory).name}, {split}: {first['queries']:,} queries, {first['passages']:,} passages"
    print("\n" + table(rows, title))
    if gained:
        print("\n" + table(gained, "means of the queries' differences, with 95 % confidence intervals"))
    for name, measured in gains.items():
        path = ", ".join(f"{gain:.3f} at step {step:,}" for step, gain in measured)
        print(
            f"\nreconstruction gain of {name} (decoder loss with another text's sentence embedding less the loss with\n"
            f"the text's own, nats per token): {path}"
        )
    print("\n" + _examples(directory, split, last / "run.trec"))
    print(f"\nreport: {output}")


def _read_evaluation(directory: Path) -> dict:
    return read_json(directory / "metrics.json", dict, AGAIN)


def _gain(before: list[dict], after: list[dict], measure: str) -> str | None:
    """The gain in a measure over the queries, if both have it."""
    if measure not in before[0] or measure not in after[0]:
        return None
    ordered = ([line[measure] for line in sorted(lines, key=lambda line: line["query"])] for lines in (before, after))
    mean, margin = mean_gain(*ordered)
    return f"{mean:+.4f} ± {margin:.4f}"


def _examples(directory: str, split: str, run_file: Path) -> str:
    """Queries spread evenly over the split, so that nobody has picked them, with the top hits; `*` marks relevant."""
    collection = load_collection(directory, split)
    run = read_run(run_file)
    queries = list(collection.queries)
    lines = []
    for number in range(EXAMPLES):
        query = queries[(2 * number + 1) * len(queries) // (2 * EXAMPLES)]
        lines.append(f"query: {collection.queries[query]}")
        hits = ranking(run.get(query, {}))[:HITS]
        indices = collection.passages.indices([passage for passage, _ in hits])
        for (passage, score), index in zip(hits, indices, strict=True):
            mark = "*" if collection.qrels[query].get(passage, 0) >= collection.relevance_level else " "
            title, text = collection.passages[int(index)]
            shown = textwrap.shorten(f"{title}: {text}" if title else text, 100, placeholder=" ...")
            lines.append(f"  {mark} {score:.3f}  {shown}")
    return "\n".join(lines)


def _named_directory(argument: str) -> tuple[str, Path]:
    name, separator, directory = argument.rpartition("=")
    if not separator or not name or not directory:
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=DIRECTORY")
    return name, Path(directory)


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = {"action": "append", "type": _named_directory, "metavar": "NAME=DIR", "default": []}
    parser.add_argument(
        "--evaluation", required=True, **named, help="output directory of an evaluation, in table order"
    )
    parser.add_argument("--run", **named, help="directory of a training run")
    parser.add_argument("--output", type=Path, required=True, help="directory of the report")
    arguments = parser.parse_args()
    for option, pairs in (("--evaluation", arguments.evaluation), ("--run", arguments.run)):
        if len(dict(pairs)) < len(pairs):
            parser.error(f"{option}: a name stands twice")
    report(dict(arguments.evaluation), dict(arguments.run), arguments.output)


if __name__ == "__main__":
    main()
