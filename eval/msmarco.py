"""Measures an encoder on MS MARCO, TREC Deep Learning, or any collection in MS MARCO's or BEIR's layout.

    python -m eval.msmarco --model exported/ --collection data/msmarco --split dev

Queries and passages are encoded, all passages are searched exactly, and the run is scored: MRR@10, Recall@100,
Recall@1000, nDCG@10, MAP. Embeddings with a lexical part (lexical_top_k) are searched without an index, which takes
long: docs/design.md has figures. Until the end, the embeddings lie in files in the output directory (passages x width x
4 bytes) instead of memory. Published MS MARCO scores use passages with titles (RocketQA's corpus).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from eval.measure import (
    QUERY_MAX_LENGTH,
    add_encoder_arguments,
    argument_parser,
    open_evaluation,
    positive,
    report,
)
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.encoder import Encoders
from retromae_jax.errors import exits_on_input_error
from retromae_jax.retrieval.encode import encode_on_all_hosts
from retromae_jax.retrieval.metrics import Scores
from retromae_jax.retrieval.search import search


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="Hugging Face directory or Hub name, or run directory; of untied encoders the directory that holds both",
    )
    add_encoder_arguments(parser)
    parser.add_argument(
        "--dimension",
        type=positive,
        help="keep so many of an embedding's dimensions, the first ones, for models trained with matryoshka_dims "
        "(default: all)",
    )
    hosts.add_flags(parser)
    return parser.parse_args(argv)


def evaluate(arguments: argparse.Namespace) -> Scores | None:
    """Encodes on all hosts, searches and reports on the first; None on the others.

    Raises:
        InputError: if collection, output or model cannot be used.
    """
    # A run or exported directory is called by its name, a model of the Hub by its last part.
    system = Path(arguments.model).resolve().name
    open_model(arguments.model)  # a mistyped name shows before a large collection is read
    collection, output = open_evaluation(arguments, system)
    encoders = Encoders.from_pretrained(
        arguments.model, arguments.pooling, arguments.normalize, arguments.compute_dtype, arguments.dimension
    )
    query_max_length = arguments.query_max_length or min(QUERY_MAX_LENGTH, encoders.query.max_length)
    passage_max_length = arguments.passage_max_length or encoders.passage.max_length
    passages = collection.passages.texts(arguments.titles, arguments.title_separator)

    queries = list(collection.queries.values())
    lexical_top_k = encoders.passage.settings.lexical_top_k

    with hosts.scratch(output / ".embeddings", "--output") as directory:
        started = time.monotonic()
        query_embeddings = encode_on_all_hosts(
            encoders.query, queries, query_max_length, arguments.batch_size, "queries", directory
        )
        passage_embeddings = encode_on_all_hosts(
            encoders.passage, passages, passage_max_length, arguments.batch_size, "passages", directory
        )
        hosts.part()
        if not hosts.is_first():
            return None
        encoded = time.monotonic()
        found = search(query_embeddings[:], passage_embeddings, arguments.depth, lexical_top_k)
        searched = time.monotonic()

    settings = {
        "model": arguments.model,
        "query_max_length": query_max_length,
        "passage_max_length": passage_max_length,
        "title_separator": arguments.title_separator,
        "pooling": arguments.pooling,
        "normalize": arguments.normalize,
        "dimension": encoders.passage.dimension,
        "lexical_top_k": lexical_top_k,
        "batch_size": arguments.batch_size,
        "compute_dtype": arguments.compute_dtype,
    }
    seconds = {"encode": encoded - started, "search": searched - encoded}
    return report(collection, found, output, system, arguments.titles, settings, seconds)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    hosts.start(arguments)
    evaluate(arguments)


if __name__ == "__main__":
    main()
