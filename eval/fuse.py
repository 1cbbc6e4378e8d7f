"""Fuses runs by reciprocal ranks (k = 60): the hybrid of BM25 and an encoder, or of any systems.

    python -m eval.fuse --collection data/msmarco --split dev \\
        --run runs/eval/msmarco-dev/BM25/run.trec --run runs/eval/msmarco-dev/msmarco/run.trec

The best --depth passages of each run count. The result is an evaluation like any other.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from eval.measure import add_collection_arguments, add_output_arguments, open_evaluation, report_run
from eval.score import judged_run, system_of
from retromae_jax.errors import exits_on_input_error
from retromae_jax.retrieval.fusion import K, reciprocal_rank_fusion
from retromae_jax.retrieval.metrics import Scores


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.fuse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, action="append", required=True, help="what a system found, in TREC's or MS MARCO's format"
    )
    add_collection_arguments(parser, "dev")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    if len(arguments.run) < 2:
        parser.error("--run: give it twice or more often, a run each")
    return arguments


def evaluate(arguments: argparse.Namespace) -> Scores:
    """Fuses and reports.

    Raises:
        InputError: if collection, output or a run cannot be used.
    """
    system = "+".join(system_of(run) for run in arguments.run)
    collection, output = open_evaluation(arguments, system, arguments.run)
    started = time.monotonic()
    runs = [judged_run(run, collection, arguments.depth) for run in arguments.run]
    fused = reciprocal_rank_fusion(runs, arguments.depth)
    seconds = {"fuse": time.monotonic() - started}
    settings = {"runs": [str(run) for run in arguments.run], "k": K}
    return report_run(collection, fused, arguments.depth, output, system, None, settings, seconds)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    evaluate(parse(argv))


if __name__ == "__main__":
    main()
