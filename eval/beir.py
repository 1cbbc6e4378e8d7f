"""Measures an encoder on BEIR: the 18 datasets of its published averages, or any collections in BEIR's layout.

    python -m eval.beir --model exported/beir --data data/beir
    python -m eval.beir --model exported/beir --data data/beir --dataset scifact nfcorpus
    python -m eval.beir --model exported/beir --dataset data/my_collection

The data directory holds the datasets under their names, as their archives unpack (`python -m eval.downloads` lists and
fetches them). Four are behind licences, and are measured where somebody has put them: bioasq, signal1m, trec-news and
robust04. CQADupStack's score is the mean of its twelve parts.

Each dataset gets the files that all evaluations write, in a directory of its name; the output directory also gets
beir.json. Started again, the command takes what is measured already with the same weights, settings and files as it
is, and goes on with the rest.

As in BEIR, titles stand before texts, queries and passages are cut at the model's own maximum for passages, and a
passage with the id of the query is left out of what was found for it: in ArguAna and Quora, queries are passages of the
collection. Where ids of queries and passages have nothing to do with each other, measure with `eval.msmarco` instead,
which leaves out none.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import jax
import numpy as np

from eval import published, retriever
from eval.downloads import LICENSED
from eval.measure import OWN_LEFT_OUT, add_titles_argument, open_evaluation, positive, report
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.retrieval import locate
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.files import read_json
from retromae_jax.logging import say, table
from retromae_jax.models.text_encoder import KINDS
from retromae_jax.retrieval.runs import write_lines

DATASETS = tuple(published.BEIR)
CQADUPSTACK = "cqadupstack"
CQADUPSTACK_PARTS = (
    "android",
    "english",
    "gaming",
    "gis",
    "mathematica",
    "physics",
    "programmers",
    "stats",
    "tex",
    "unix",
    "webmasters",
    "wordpress",
)
MEASURES_SHOWN = ("nDCG@10", "Recall@100")
# What published scores are of.
PUBLISHED_SPLIT = "test"
_, PASSAGE = KINDS
RECALL = "search_recall"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.beir", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    retriever.add_model_argument(parser)
    parser.add_argument("--data", type=Path, help="directory that holds the datasets under BEIR's names")
    parser.add_argument(
        "--dataset",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="a dataset of --data, or the directory of a collection in BEIR's layout (default: all of the 18 there)",
    )
    parser.add_argument("--split", default=PUBLISHED_SPLIT, help="which qrels (default: %(default)s)")
    add_titles_argument(parser)
    parser.add_argument(
        "--output",
        type=Path,
        help="directory of the results (default: runs/eval/beir/SYSTEM, or beir-SPLIT where it is not test)",
    )
    parser.add_argument(
        "--depth", type=positive, default=1000, help="passages to rank for each query (default: %(default)s)"
    )
    retriever.add_encoder_arguments(parser)
    retriever.add_search_argument(parser)
    hosts.add_flags(parser)
    # BEIR's titles stand before texts, whatever the model was trained on.
    parser.set_defaults(titles=True, embeddings=None)
    arguments = parser.parse_args(argv)
    if arguments.depth < 100:
        parser.error(f"--depth {arguments.depth} is less than the 100 of Recall@100")
    return arguments


def evaluate(arguments: argparse.Namespace) -> dict[str, dict[str, float]] | None:
    """Measures on all hosts; reports on the first, None on the others.

    Returns:
        Dataset -> measure -> score.

    Raises:
        InputError: if datasets, output or model cannot be used; before anything is encoded, where a dataset is missing.
    """
    system = Path(arguments.model).resolve().name
    source = open_model(arguments.model)  # a mistyped name shows before a large collection is read
    datasets = _find(arguments.data, arguments.dataset)
    files = {path: locate(path, arguments.split) for parts in datasets.values() for path in parts.values()}
    benchmark = "beir" if arguments.split == PUBLISHED_SPLIT else f"beir-{arguments.split}"
    output = arguments.output or Path("runs", "eval", benchmark, system)
    if arguments.query_max_length is None:
        # Some of BEIR's queries are as long as passages, whatever the model was trained on.
        arguments.query_max_length = source.of_kind(PASSAGE).settings.max_length
    encoder = retriever.Retriever(arguments)
    digests = {f"{kind}_encoder": getattr(encoder.encoders, kind).digest for kind in KINDS}
    settings = encoder.settings | {"titles": arguments.titles} | digests

    found: dict[str, dict[str, dict]] = {}
    for dataset, parts in datasets.items():
        found[dataset] = {}
        for part, path in parts.items():
            # The sizes of files tell one version of a dataset from another.
            sizes = {file.name: file.stat().st_size for file in files[path][:3]}
            own = argparse.Namespace(**vars(arguments) | {"collection": path, "output": output / dataset / part})
            measured = _evaluate(own, system, encoder, settings | {"files": sizes})
            if measured is not None:  # as on other hosts than the first
                found[dataset][part] = measured
    hosts.part()
    return _summarize(found, output, system, arguments) if hosts.is_first() else None


def _find(data: Path | None, names: Sequence[str] | None) -> dict[str, dict[str, Path]]:
    """Dataset -> part -> directory; what is no CQADupStack is one part without a name."""
    if names is None:
        if data is None:
            raise InputError("neither --data nor --dataset says what to measure; name the directory of BEIR's datasets")
        names = [name for name in DATASETS if (data / name).is_dir()]
        if not names:
            raise InputError(
                f"{data}: no directory there has the name of one of BEIR's datasets, {', '.join(DATASETS)}"
            )
        if missing := [name for name in DATASETS if name not in names]:
            say(f"not measured, because not in {data}: {', '.join(missing)}; eval.downloads lists how to get them")
    found: dict[str, dict[str, Path]] = {}
    for name in names:
        directory = next((path for path in (data and data / name, Path(name)) if path and path.is_dir()), None)
        if directory is None and name in DATASETS:
            raise InputError(_how_to_get(name, data))
        if directory is None:
            raise InputError(
                f"{name!r} is neither a directory nor a dataset of --data {data or ''}; BEIR's are "
                f"{', '.join(DATASETS)}"
            )
        dataset = directory.resolve().name
        if dataset in found:
            raise InputError(f"{directory}: a dataset of the name {dataset!r} is to be measured already; name it once")
        found[dataset] = _parts(directory) if dataset == CQADUPSTACK else {"": directory}
    return found


def _how_to_get(name: str, data: Path | None) -> str:
    place = (data or Path("DIR")) / name
    if name in LICENSED:
        return (
            f"{place} is not there; {name} is behind a licence: apply at {LICENSED[name]} and put it there in BEIR's "
            "layout as https://github.com/beir-cellar/beir/tree/main/examples/dataset says"
        )
    return f"{place} is not there; fetch it: python -m eval.downloads {name} --to {place.parent}"


def _parts(directory: Path) -> dict[str, Path]:
    missing = [part for part in CQADUPSTACK_PARTS if not (directory / part).is_dir()]
    if missing:
        raise InputError(
            f"{directory}: CQADupStack's {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there; its "
            f"score is the mean of {len(CQADUPSTACK_PARTS)} parts: unpack all of its archive"
        )
    return {part: directory / part for part in CQADUPSTACK_PARTS}


def _evaluate(
    arguments: argparse.Namespace, system: str, encoder: retriever.Retriever, settings: Mapping[str, object]
) -> dict | None:
    """The description of one collection's results (`metrics.json`), measured now or before; None on other hosts."""
    before = _measured(arguments, settings)
    hosts.check_same(str(before))  # a host that sees other files would wait for the others forever
    if before is not None:
        say(f"{arguments.collection}: measured already in the same way; to do it again, remove {arguments.output}")
        return before
    collection, output = open_evaluation(arguments, system)
    own = collection.passages.indices(list(collection.queries))
    relevant = sum(query in collection.qrels[query] for query in collection.queries)
    if relevant:
        say(
            f"{arguments.collection}: {relevant:,} queries are judged with a passage of their own id, which is left out"
        )
    with hosts.scratch(output / ".embeddings", "--output", encoder.content(collection.passages)) as directory:
        started = time.monotonic()
        encoder.index(collection.passages, directory, jax.process_count())
        encoded = time.monotonic()
        # One more, in the place of the query's own passage.
        queries = list(collection.queries.values())
        scores, indices = encoder.search_on_all_hosts(queries, arguments.depth + 1, directory)
        seconds = {"encode": encoded - started, "search": time.monotonic() - encoded}
        hosts.wait_for_all("found")
        if not hosts.is_first():
            return None
        found = without_own(scores, indices, own)
        learnt = {OWN_LEFT_OUT: int(np.sum(own >= 0))}
        if RECALL in encoder.settings:  # what an approximate search found of what there was
            learnt[RECALL] = encoder.settings[RECALL]
        report(collection, found, output, system, arguments.titles, {**settings, **learnt}, seconds)
    return read_json(output / "metrics.json")


def _measured(arguments: argparse.Namespace, settings: Mapping[str, object]) -> dict | None:
    path = arguments.output / "metrics.json"
    if not path.is_file():
        return None
    found = read_json(path, remedy="remove it")
    wanted = {"split": arguments.split, "depth": arguments.depth, "settings": json.loads(json.dumps(settings))}
    # A model's weights decide, not its name; and what was found out is no setting.
    before = found.get("settings") or {}
    ignored = {key: before[key] for key in ("model", RECALL, OWN_LEFT_OUT) if key in before}
    wanted["settings"] |= ignored
    return found if wanted == {key: found.get(key) for key in wanted} else None


def without_own(scores: np.ndarray, indices: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out what has the query's own id, as BEIR does.

    Args:
        scores: [Q, k + 1], best first.
        indices: passages, [Q, k + 1]; -1 where a query has found no more.
        own: of each query the passage with its id, [Q]; -1 where there is none.

    Returns:
        Scores and passages, [Q, k].
    """
    is_own = (indices == own[:, None]) & (indices >= 0)
    kept = np.argsort(is_own, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(scores, kept, axis=1), np.take_along_axis(indices, kept, axis=1)


def _summarize(
    found: Mapping[str, Mapping[str, dict]], output: Path, system: str, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Prints the table of all datasets beside the published scores, and writes it to beir.json."""
    means = {
        dataset: {measure: fmean(part["metrics"][measure] for part in parts.values()) for measure in MEASURES_SHOWN}
        for dataset, parts in found.items()
    }
    known = [dataset for dataset in found if dataset in published.BEIR and arguments.split == PUBLISHED_SPLIT]
    beside = {
        name: {dataset: published.BEIR[dataset][column] for dataset in known}
        for column, name in enumerate(published.BEIR_SYSTEMS if known else ())
    }
    rows = [
        {
            "dataset": dataset,
            "queries": sum(part["queries"] for part in parts.values()),
            "passages": sum(part["passages"] for part in parts.values()),
            **means[dataset],
            **{name: values.get(dataset) for name, values in beside.items()},
        }
        for dataset, parts in found.items()
    ]
    average = {measure: fmean(scores[measure] for scores in means.values()) for measure in MEASURES_SHOWN}
    rows.append(
        {
            "dataset": f"mean of {len(found)}",
            "queries": None,
            "passages": None,
            **average,
            # Means over other datasets are not to be compared.
            **{name: fmean(values.values()) if len(known) == len(found) else None for name, values in beside.items()},
        }
    )
    print(f"\n{table(rows, f'BEIR, {arguments.split}: {system}')}")
    if known:
        print(f"{', '.join(published.BEIR_SYSTEMS)}: published nDCG@10 on these datasets, not measured here.")
    summary = {"system": system, "split": arguments.split, "datasets": means, "mean": average}
    write_lines(output / "beir.json", [json.dumps(summary, indent=2)])
    say(f"results: {output}")
    return means


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    hosts.start(arguments)
    evaluate(arguments)


if __name__ == "__main__":
    main()
