"""Mines hard negatives for `train.finetune` and `train.rerank`: passages that a search ranks high, but not relevant.

    python -m eval.mine --model exported/msmarco --collection data/msmarco --split train --margin 0.5 \\
        --output data/msmarco/mined_negatives.tsv

The search is an encoder's (--model), BM25's (--bm25) or any that wrote a run (--run). Passages that the split's
qrels call relevant are left out. The output's lines are `query-id TAB passage-id,passage-id,...`, the hardest first.

On several hosts, each encodes its share of the passages and searches for its share of the queries; the first writes
what one host alone would have written, where all see it. A run is read by the first alone.

Beside the output lies, until it is written, a directory with an encoder's passage embeddings (passages x width x 4
bytes; none with --embeddings, those that eval.encode has made) and each host's negatives. Killed and started again, the
command goes on with these embeddings. Memory holds the queries, their qrels, and the passages' ids and positions in
their file; the results of 16,384 queries at a time, which are 12 bytes for each of their ranks (39 MB at 200), or some
150 while a run is read; and an encoder's embeddings of these queries and of one block of passages (512 MiB). All else
is time and disk. BM25's index is in memory as a whole, on every host: some 8 bytes for each different word of each
passage, and several times that while it is made. For collections that are too large for it, give a search engine's run.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa

from eval import retriever
from eval.measure import add_collection_arguments, add_titles_argument, passage_indices, positive
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.retrieval import Collection, load_collection
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import Progress, say, table
from retromae_jax.retrieval.bm25 import BM25
from retromae_jax.retrieval.negatives import NegativeSampler
from retromae_jax.retrieval.runs import iterate_run, ranking, write_lines

QUERIES_AT_ONCE = 2**14
# Arguments that mean nothing to other searches.
OF_ENCODERS = (
    *(name for name in retriever.SETTINGS if name != "titles"),
    *("dimension", "encoder", "batch_size", "compute_dtype", "search", "embeddings"),
)
# From queries and k to scores and passage indices [Q, k] of what was found.
Search = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


class Found(NamedTuple):
    """What was found for some queries: their numbers in the split, scores [Q, k], passage indices [Q, k] or -1."""

    queries: Sequence[int]
    scores: np.ndarray
    indices: np.ndarray


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.mine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    search = parser.add_mutually_exclusive_group(required=True)
    search.add_argument(
        "--model",
        help="search with this encoder, or both of untied ones: Hugging Face directory or Hub name, or run directory",
    )
    search.add_argument("--bm25", action="store_true", help="search with BM25")
    search.add_argument(
        "--run",
        type=Path,
        help="read a run in TREC's or MS MARCO's format, in which lines of a query follow each other",
    )
    add_collection_arguments(parser, "train")
    add_titles_argument(parser)
    parser.add_argument("--output", type=Path, required=True, help="file of hard negatives to write")
    parser.add_argument("--from-rank", type=positive, default=2, help="first rank of the window (default: 2)")
    parser.add_argument("--to-rank", type=positive, default=200, help="last rank of the window (default: 200)")
    parser.add_argument(
        "--margin",
        type=_not_negative,
        help="leave out passages that score above the best-scored relevant passage less this: many are relevant and "
        "not judged (default: leave none out); of a run in MS MARCO's format, which has no scores, in ranks",
    )
    parser.add_argument("--negatives", type=positive, help="negatives drawn for each query (default: all)")
    parser.add_argument("--seed", type=int, default=42, help="of the draws (default: 42)")
    retriever.add_arguments(parser)
    hosts.add_flags(parser)
    arguments = parser.parse_args(argv)
    given = [name for name in OF_ENCODERS if getattr(arguments, name) != parser.get_default(name)]
    if given and not arguments.model:
        parser.error(f"--{given[0].replace('_', '-')}: only an encoder's search has that, with --model")
    if arguments.from_rank > arguments.to_rank:
        parser.error(f"--from-rank {arguments.from_rank} is behind --to-rank {arguments.to_rank}")
    return arguments


def _not_negative(argument: str) -> float:
    number = float(argument)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{argument} is not 0 or more")
    return number


def mine(arguments: argparse.Namespace) -> None:
    """Searches and draws negatives on all hosts; writes them on the first, and prints a summary.

    Raises:
        InputError: if collection, model or run cannot be used, or no query has negatives.
    """
    if arguments.model:
        open_model(arguments.model)  # a mistyped name shows before a large collection is read
    collection = load_collection(arguments.collection, arguments.split)
    encoder = retriever.Retriever(arguments) if arguments.model else None
    content = encoder.content(collection.passages) if encoder else ""
    place = arguments.output.with_name(f".{arguments.output.name}.mining")
    with hosts.scratch(place, "--output", content) as directory:
        _mine(arguments, collection, encoder, directory)


def _mine(
    arguments: argparse.Namespace, collection: Collection, encoder: retriever.Retriever | None, directory: Path
) -> None:
    """Mines, by way of files in a directory that all hosts see."""
    relevant = collection.relevant_passages()
    trained = [number for number, passages in enumerate(relevant) if len(passages)]
    if not trained:
        raise InputError(f"no query of {collection.directory}, split {collection.split}, has a relevant passage")
    sampler = NegativeSampler(
        arguments.from_rank, arguments.to_rank, arguments.margin, arguments.negatives, arguments.seed
    )
    query_ids = list(collection.queries)
    counts = [np.empty((0, 4), np.int64)]

    def lines(found: Iterator[Found]) -> Iterator[str]:
        for queries, scores, indices in found:
            drawn = [
                sampler.sample(query, own_scores, own_indices, relevant[query])
                for query, own_scores, own_indices in zip(queries, scores, indices, strict=True)
            ]
            counts.append(np.array([(len(one.negatives), *one[1:]) for one in drawn], np.int64))
            for query, one in zip(queries, drawn, strict=True):
                if len(one.negatives):
                    passages = collection.passages.ids.take(pa.array(one.negatives)).to_pylist()
                    yield f"{query_ids[query]}\t{','.join(passages)}"

    process = jax.process_index()
    files, counted = hosts.files(directory, "negatives.tsv"), hosts.files(directory, "counts.npy")
    write_lines(files[process], lines(_search(arguments, collection, encoder, trained, directory)))
    np.save(counted[process], np.concatenate(counts))
    hosts.part()
    if not hosts.is_first():
        return
    mined = np.concatenate([np.load(file) for file in counted])
    if not mined[:, 0].any():
        raise InputError("no query has negatives; take a wider window of ranks or a smaller margin")
    write_lines(arguments.output, _lines_of(files))
    _report(arguments, mined, len(trained))


def _lines_of(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        with path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


def _search(
    arguments: argparse.Namespace,
    collection: Collection,
    encoder: retriever.Retriever | None,
    trained: Sequence[int],
    directory: Path,
) -> Iterator[Found]:
    """Searches for this host's share of the queries with these numbers."""
    if arguments.run is not None:
        if hosts.is_first():
            yield from _read(arguments.run, collection, trained, arguments.to_rank)
        return
    find: Search
    if encoder is None:
        find = BM25(collection.passages.texts(arguments.titles is not False)).search
    else:
        encoder.index(collection.passages, directory)
        find = encoder.search
    texts = list(collection.queries.values())
    own = hosts.share(len(trained))
    for start in own[::QUERIES_AT_ONCE]:
        queries = trained[start : min(start + QUERIES_AT_ONCE, own.stop)]
        yield Found(queries, *find([texts[query] for query in queries], arguments.to_rank))


def _read(path: Path, collection: Collection, trained: Sequence[int], depth: int) -> Iterator[Found]:
    """The best `depth` passages of a run's queries that are among the trained ones."""
    ids = list(collection.queries)
    numbers = {ids[number]: number for number in trained}
    queries: list[int] = []
    rankings: list[list[tuple[str, float]]] = []

    def found() -> Found:
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        indices = np.full((len(queries), depth), -1, np.int64)
        passages = [passage for ranked in rankings for passage, _ in ranked]
        all_indices = passage_indices(path, collection, passages)
        ends = np.cumsum([len(ranked) for ranked in rankings])
        for row, (ranked, end) in enumerate(zip(rankings, ends, strict=True)):
            scores[row, : len(ranked)] = [score for _, score in ranked]
            indices[row, : len(ranked)] = all_indices[end - len(ranked) : end]
        return Found(queries, scores, indices)

    known = 0
    with Progress(f"read {path.name}", len(trained), "queries") as progress:
        for query, passages in iterate_run(path):
            if query not in numbers:
                continue
            known += 1
            progress.update()
            queries.append(numbers[query])
            rankings.append(ranking(passages)[:depth])
            if len(queries) == QUERIES_AT_ONCE:
                yield found()
                queries, rankings = [], []
    if queries:
        yield found()
    if known == 0:
        raise InputError(
            f"{path}: none of its queries has a relevant passage in the split {collection.split!r}; take a run of this "
            "split"
        )


def _report(arguments: argparse.Namespace, mined: np.ndarray, queries: int) -> None:
    """Prints what came of the queries."""
    negatives, window, relevant, likely_relevant = mined.T
    with_negatives = negatives[negatives > 0]
    rows = {
        "queries with a relevant passage": queries,
        "queries with negatives": len(with_negatives),
        "negatives": int(negatives.sum()),
        "negatives per query: mean": float(with_negatives.mean()),
        "negatives per query: fewest": int(with_negatives.min()),
        "negatives per query: most": int(with_negatives.max()),
        "passages in the window": int(window.sum()),
        "relevant ones, left out": int(relevant.sum()),
        "likely relevant ones, left out": int(likely_relevant.sum()),
    }
    shown = {name: f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" for name, value in rows.items()}
    width = max(map(len, shown.values()))
    print(table([{"hard negatives": name, "number": value.rjust(width)} for name, value in shown.items()]))
    say(f"hard negatives: {arguments.output}")


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    hosts.start(arguments)
    mine(arguments)


if __name__ == "__main__":
    main()
