"""Reranks with a cross-encoder: scores each query's best passages anew, and measures what that gains.

    python -m eval.rerank --model exported/rerank --collection data/msmarco --split dev --depth 100 \\
        --run runs/eval/msmarco-dev/msmarco/run.trec

scores the best 100 passages of each query in any run. Beside what all evaluations write, the output directory gets
`scores.tsv`, lines `query-id TAB passage-id TAB score`. Both rows of the table are of these passages alone.

    python -m eval.rerank --model exported/rerank --collection data/msmarco --split train \\
        --pairs data/msmarco/mined_negatives.tsv --output runs/teacher

scores training pairs, and writes `scores.tsv` only: the passages that a file names for each query, in lines `query-id
TAB passage-id` or `query-id TAB passage-id,passage-id,...` as `eval.mine` writes them, and the relevant passages.

On several hosts, each scores its share of the queries and the first writes, where all see it. Memory holds the number
of each pair's passage, 8 bytes, and its score, 4 bytes.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa

from eval.measure import add_model_arguments, argument_parser, measures_of, open_evaluation, positive, report
from eval.score import judged_run
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.cross_encoder import CrossEncoder
from retromae_jax.data.retrieval import Collection, read_negatives
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import Progress, say
from retromae_jax.retrieval.metrics import Scores, score
from retromae_jax.retrieval.runs import write_lines

# Pairs whose lengths are sorted together.
PAIRS_AT_ONCE = 2**14


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("rerank", __doc__)
    parser.set_defaults(depth=100)
    parser.add_argument(
        "--model", required=True, help="cross-encoder: Hugging Face directory or Hub name, or run directory"
    )
    pairs = parser.add_mutually_exclusive_group(required=True)
    pairs.add_argument("--run", type=Path, help="run whose best passages are scored, in TREC's or MS MARCO's format")
    pairs.add_argument("--pairs", type=Path, help="file of the passages to score for each query")
    parser.add_argument(
        "--max-length", type=positive, help="tokens of query and passage together (default: the model's own maximum)"
    )
    parser.add_argument("--title-separator", default=" ", help="between title and text (default: a space)")
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
    collection, output = open_evaluation(arguments, system)
    cross_encoder = CrossEncoder.from_pretrained(arguments.model, arguments.compute_dtype)
    max_length = arguments.max_length or cross_encoder.max_length
    if not 8 <= max_length <= cross_encoder.config.max_length:
        raise InputError(
            f"--max-length {max_length} is not between 8 and the model's {cross_encoder.config.max_length} positions"
        )
    if arguments.run is not None:
        before, candidates = _best_of_run(arguments.run, collection, arguments.depth)
    else:
        candidates = _of_file(arguments.pairs, collection)

    started = time.monotonic()
    query_ids, texts = list(collection.queries), list(collection.queries.values())
    passages = collection.passages.texts(arguments.titles, arguments.title_separator)
    scored = [query for query, own in enumerate(candidates) if len(own)]
    # What a run's scores are to be reported with.
    shape = (len(texts) if arguments.run is not None else 0, arguments.depth)
    scores, indices = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)

    def found() -> Iterator[np.ndarray]:
        """Scores of this host's share of the queries."""
        own = [scored[number] for number in hosts.share(len(scored))]
        with Progress("rerank", sum(len(candidates[query]) for query in own), "pairs") as progress:
            for queries in _portions(candidates, own):
                of_query = [texts[query] for query in queries for _ in candidates[query]]
                of_passage = [passages[int(number)] for query in queries for number in candidates[query]]
                yield cross_encoder.scores(of_query, of_passage, max_length, arguments.batch_size)
                progress.update(len(of_query))

    def lines(values: Iterator[float]) -> Iterator[str]:
        """Lines of all pairs, given their scores."""
        for query in scored:
            own = np.fromiter(values, np.float32, len(candidates[query]))
            if arguments.run is not None:
                scores[query, : len(own)], indices[query, : len(own)] = own, candidates[query]
            ids = collection.passages.ids.take(pa.array(candidates[query])).to_pylist()
            for passage, value in zip(ids, own, strict=True):
                yield f"{query_ids[query]}\t{passage}\t{value!s}"

    with hosts.scratch(output / ".scores", "--output") as directory:
        files = hosts.files(directory, "scores.npy")
        np.save(files[jax.process_index()], np.concatenate([np.empty(0, np.float32), *found()]))
        hosts.part()
        if not hosts.is_first():
            return None
        seconds = {"score": time.monotonic() - started}
        write_lines(output / "scores.tsv", lines(value for file in files for value in np.load(file)))
    if arguments.run is None:
        say(f"scores: {output / 'scores.tsv'}")
        return None
    settings = {
        "model": arguments.model,
        "run": str(arguments.run),
        "max_length": max_length,
        "title_separator": arguments.title_separator,
        "batch_size": arguments.batch_size,
        "compute_dtype": arguments.compute_dtype,
    }
    return report(collection, (scores, indices), output, system, arguments.titles, settings, seconds, before)


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


def _portions(candidates: Sequence[np.ndarray], scored: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of successive queries that have about `PAIRS_AT_ONCE` candidates together."""
    queries, pairs = [], 0
    for query in scored:
        queries.append(query)
        pairs += len(candidates[query])
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
