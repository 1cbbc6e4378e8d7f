"""Measures BM25 (k1 = 0.9, b = 0.4, no stemming), the baseline, on a collection in MS MARCO's or BEIR's layout.

python -m eval.bm25 --collection data/scifact --split test
"""

import argparse
import time
from collections.abc import Sequence

from eval.measure import argument_parser, open_evaluation, report
from retromae_jax.errors import exits_on_input_error
from retromae_jax.retrieval.bm25 import BM25, K1, B
from retromae_jax.retrieval.metrics import Scores

SYSTEM = "BM25"


def evaluate(arguments: argparse.Namespace) -> Scores:
    """Searches and reports.

    Raises:
        InputError: if collection or output cannot be used.
    """
    collection, output = open_evaluation(arguments, SYSTEM)
    started = time.monotonic()
    index = BM25(collection.passages.texts(arguments.titles))
    found = index.search(list(collection.queries.values()), arguments.depth)
    seconds = {"search": time.monotonic() - started}
    return report(collection, found, output, SYSTEM, arguments.titles, {"k1": K1, "b": B}, seconds)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    evaluate(argument_parser("bm25", __doc__).parse_args(argv))


if __name__ == "__main__":
    main()
