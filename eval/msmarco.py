"""Measures an encoder on MS MARCO, TREC Deep Learning, or any collection in MS MARCO's or BEIR's layout.

    python -m eval.msmarco --model exported/ --collection data/msmarco --split dev

Queries and passages are encoded, all passages are searched, exactly unless --search names an approximate index
(docs/search.md), and the run is scored: MRR@10, Recall@100, Recall@1000, nDCG@10, MAP. Embeddings with a lexical part
(lexical_top_k) are searched without an index, which takes long: docs/design.md has figures.

Until the end, the embeddings lie in files in the output directory (passages x width x 4 bytes) instead of memory, and a
command that was killed goes on with them when it is started again. With --embeddings, those that eval.encode has made
are searched.

Of MS MARCO's own passages, published scores are shown beside the new one. Those of RetroMAE are of passages with titles
(RocketQA's corpus); the output says which file was searched, and whether with titles. `python -m eval.downloads` lists
what there is to fetch.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from eval import published, retriever
from eval.measure import argument_parser, open_evaluation, report
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.errors import exits_on_input_error
from retromae_jax.logging import table
from retromae_jax.retrieval.metrics import Scores


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("msmarco", __doc__)
    retriever.add_model_argument(parser)
    retriever.add_arguments(parser)
    hosts.add_flags(parser)
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> Scores | None:
    """Encodes and searches on all hosts, and reports on the first; None on the others.

    Raises:
        InputError: if collection, output or model cannot be used.
    """
    # A run or exported directory is called by its name, a model of the Hub by its last part.
    system = Path(arguments.model).resolve().name
    open_model(arguments.model)  # a mistyped name shows before a large collection is read
    collection, output = open_evaluation(arguments, system)
    encoder = retriever.Retriever(arguments)

    with hosts.scratch(output / ".embeddings", "--output", encoder.content(collection.passages)) as directory:
        started = time.monotonic()
        encoder.index(collection.passages, directory, jax.process_count())
        encoded = time.monotonic()
        found = encoder.search_on_all_hosts(list(collection.queries.values()), arguments.depth, directory)
        seconds = {"encode": encoded - started, "search": time.monotonic() - encoded}
        hosts.part()
        if not hosts.is_first():
            return None
        scores = report(collection, found, output, system, encoder.titles, encoder.settings, seconds)
    if len(collection.passages) == published.MSMARCO_PASSAGES and collection.split in published.MSMARCO:
        is_titled = encoder.titles and collection.passages.is_titled
        print(
            beside_published(scores.means, collection.split, f"{system}, {'with' if is_titled else 'without'} titles")
        )
    return scores


def beside_published(means: Mapping[str, float], split: str, system: str) -> str:
    """A table of published scores on a split of MS MARCO, and of new ones below them."""
    rows = published.MSMARCO[split]
    measures = list(rows[0].scores)
    shown = [{"system": row.system, **row.scores, "published in": row.source} for row in rows]
    shown.append({"system": system, **{measure: means.get(measure) for measure in measures}, "published in": None})
    return f"\n{table(shown, f'MS MARCO, {split}: published scores, which were not measured here, and the new one')}"


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    hosts.start(arguments)
    evaluate(arguments)


if __name__ == "__main__":
    main()
