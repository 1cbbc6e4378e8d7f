"""Reranks with a cross-encoder: scores each query's best passages anew, and measures what that gains.

    python -m eval.rerank --model exported/rerank --collection data/msmarco --split dev --depth 100 \\
        --run runs/eval/msmarco-dev/msmarco/run.trec

scores the best 100 passages of each query in any run. Beside what all evaluations write, the output directory gets
`scores.tsv`, lines `query-id TAB passage-id TAB score`. Both rows of the table are of these passages alone.

    python -m eval.rerank --model exported/rerank --collection data/msmarco --split train \\
        --pairs data/msmarco/mined_negatives.tsv --output runs/teacher

scores training pairs, and writes `scores.tsv` only: the passages that a file names for each query, in lines `query-id
TAB passage-id` or `query-id TAB passage-id,passage-id,...` as `eval.mine` writes them, and the relevant passages.

On several hosts, each scores its share of the pairs and the first writes, where all see it. Killed and started again,
the command goes on with the pairs that have no score yet, on any number of hosts. Memory holds the number of each
pair's passage, 8 bytes, and its score, 4 bytes; of a run, which is measured, too, some 150 bytes for each line.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from eval.measure import add_model_arguments, argument_parser, measures_of, open_evaluation, positive, report
from eval.score import judged_run
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.cross_encoder import CrossEncoder
from retromae_jax.data.retrieval import Collection, read_negatives
from retromae_jax.errors import exits_on_input_error
from retromae_jax.files import write_array
from retromae_jax.logging import Progress, say
from retromae_jax.retrieval.metrics import Scores, score
from retromae_jax.retrieval.runs import write_lines

# Pairs whose lengths are sorted together, and whose scores are a file.
PAIRS_AT_ONCE = 2**14


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("rerank", __doc__)
    parser.set_defaults(depth=100, titles=None)  # as the model says
    parser.add_argument(
        "--model", required=True, help="cross-encoder: Hugging Face directory or Hub name, or run directory"
    )
    pairs = parser.add_mutually_exclusive_group(required=True)
    pairs.add_argument("--run", type=Path, help="run whose best passages are scored, in TREC's or MS MARCO's format")
    pairs.add_argument("--pairs", type=Path, help="file of the passages to score for each query")
    parser.add_argument(
        "--max-length", type=positive, help="tokens of query and passage together (default: the model's own maximum)"
    )
    parser.add_argument("--title-separator", help="between title and text (default: the model's own)")
    add_model_arguments(parser)
    hosts.add_flags(parser)
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> Scores | None:
    """Scores pairs on all hosts; reports on the first, where they are those of a run, else None.

    Raises:
        InputError: if collection, output, model, run or pairs cannot be used.
    """
    system = Path(arguments.model).resolve().name
    open_model(arguments.model)  # a mistyped name shows before a large collection is read
    collection, output = open_evaluation(arguments, system, [arguments.run] if arguments.run else [])
    cross_encoder = CrossEncoder.from_pretrained(
        arguments.model,
        arguments.compute_dtype,
        max_length=arguments.max_length,
        titles=arguments.titles,
        title_separator=arguments.title_separator,
    )
    own = cross_encoder.settings
    if arguments.run is not None:
        before, candidates = _best_of_run(arguments.run, collection, arguments.depth)
    else:
        candidates = _of_file(arguments.pairs, collection)

    started = time.monotonic()
    query_ids = list(collection.queries)
    portions = list(_portions(candidates))
    # What a run's scores are to be reported with.
    shape = (len(query_ids) if arguments.run is not None else 0, arguments.depth)
    scores, indices = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)

    def lines(files: Sequence[Path]) -> Iterator[str]:
        """Lines of all pairs, given the files of their scores."""
        for queries, file in zip(portions, files, strict=True):
            ends = np.cumsum([len(candidates[query]) for query in queries])
            for query, values in zip(queries, np.split(np.load(file), ends[:-1]), strict=True):
                if arguments.run is not None:
                    scores[query, : len(values)], indices[query, : len(values)] = values, candidates[query]
                ids = collection.passages.ids.take(pa.array(candidates[query])).to_pylist()
                for passage, value in zip(ids, values, strict=True):
                    yield f"{query_ids[query]}\t{passage}\t{value!s}"

    content = _content(cross_encoder, collection, candidates)
    with hosts.scratch(output / ".scores", "--output", content) as directory:
        files = [directory / f"scores-{number:06d}-of-{len(portions):06d}.npy" for number in range(len(portions))]
        _score(cross_encoder, collection, candidates, portions, files, arguments.batch_size)
        hosts.part()
        if not hosts.is_first():
            return None
        seconds = {"score": time.monotonic() - started}
        write_lines(output / "scores.tsv", lines(files))
        if arguments.run is None:
            say(f"scores: {output / 'scores.tsv'}")
            return None
        settings = {
            "model": arguments.model,
            "run": str(arguments.run),
            "max_length": own.max_length,
            "title_separator": own.title_separator,
            "batch_size": arguments.batch_size,
            "compute_dtype": arguments.compute_dtype,
        }
        return report(collection, (scores, indices), output, system, own.titles, settings, seconds, before)


def _content(cross_encoder: CrossEncoder, collection: Collection, candidates: Sequence[np.ndarray]) -> str:
    """What decides the pairs' scores, and which file has those of which pairs."""
    pairs = hashlib.sha256(json.dumps(list(collection.queries.items())).encode())
    for passages in candidates:
        pairs.update(len(passages).to_bytes(8, "little") + passages.astype("<i8").tobytes())
    own = cross_encoder.settings
    description = {
        "model": cross_encoder.digest,
        "passages": collection.passages.digest,
        "pairs": pairs.hexdigest(),
        "pairs_at_once": PAIRS_AT_ONCE,
        "max_length": own.max_length,
        "titles": own.titles,
        "title_separator": own.title_separator,
        "compute_dtype": cross_encoder.compute_dtype,
    }
    return json.dumps(description, indent=2)


def _score(
    cross_encoder: CrossEncoder,
    collection: Collection,
    candidates: Sequence[np.ndarray],
    portions: Sequence[Sequence[int]],
    files: Sequence[Path],
    batch_size: int | None,
) -> None:
    """Scores the pairs of the portions that have no file yet, each host a share of them."""
    missing = np.flatnonzero(hosts.of_first(np.array([not file.exists() for file in files], bool)))
    if 0 < len(missing) < len(files):
        say(f"{len(files) - len(missing):,} of {len(files):,} files of scores are there already")
    own = missing[hosts.share(len(missing))].tolist()
    texts = list(collection.queries.values())
    passages = collection.passages.texts(cross_encoder.settings.titles, cross_encoder.settings.title_separator)
    pairs = [sum(len(candidates[query]) for query in portions[number]) for number in own]
    with Progress("rerank", sum(pairs), "pairs") as progress:
        for number, count in zip(own, pairs, strict=True):
            of_query = [texts[query] for query in portions[number] for _ in candidates[query]]
            of_passage = [passages[int(passage)] for query in portions[number] for passage in candidates[query]]
            write_array(files[number], cross_encoder.scores(of_query, of_passage, batch_size=batch_size))
            progress.update(count)


def _best_of_run(path: Path, collection: Collection, depth: int) -> tuple[Scores, list[np.ndarray]]:
    """How good a run's best `depth` passages are; and for each query of the collection, their indices."""
    run = judged_run(path, collection, depth)
    best = [list(run.get(query, ())) for query in collection.queries]
    indices = collection.passages.indices([passage for passages in best for passage in passages])
    before = score(run, collection.qrels, measures_of(depth), collection.relevance_level)
    return before, np.split(indices, np.cumsum([len(passages) for passages in best])[:-1])


def _of_file(path: Path, collection: Collection) -> list[np.ndarray]:
    """For each query of the collection, if a file names it, its relevant passages and those of the file."""
    named = read_negatives([path], list(collection.queries), collection.passages, len(collection.passages))
    return [
        np.concatenate([relevant, np.setdiff1d(named[query], relevant)]) if query in named else relevant[:0]
        for query, relevant in enumerate(collection.relevant_passages())
    ]


def _portions(candidates: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Numbers of successive queries with candidates that have about `PAIRS_AT_ONCE` together."""
    queries, pairs = [], 0
    for query, passages in enumerate(candidates):
        if not len(passages):
            continue
        queries.append(query)
        pairs += len(passages)
        if pairs >= PAIRS_AT_ONCE:
            yield queries
            queries, pairs = [], 0
    if queries:
        yield queries


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    hosts.start(arguments)
    evaluate(arguments)


if __name__ == "__main__":
    main()
