"""Encodes a corpus: embeddings on disk, for eval.msmarco, eval.mine, or any program that reads numpy's files.

    python -m eval.encode --model exported/ --corpus data/msmarco --output embeddings/msmarco --dtype float16

The corpus is a collection's directory in BEIR's or MS MARCO's layout, of which only the passages are read, or one file
of passages in either layout; with `--kind query`, a file of queries. Prompts, titles, longest texts and pooling are the
model's own, and can be changed here.

A run that was stopped or killed goes on when the same command is given again: what is on disk is kept, in files of
16,384 texts each, which docs/encoding.md describes. On several hosts, each makes a share of the files that are missing,
in a directory that all see; a run may go on with other hosts. Memory holds ids and positions of the texts, and one
file's embeddings.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from eval import retriever
from eval.measure import add_titles_argument
from retromae_jax import hosts
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.retrieval import load_passages, load_queries
from retromae_jax.errors import exits_on_input_error
from retromae_jax.logging import duration, say
from retromae_jax.models.text_encoder import KINDS
from retromae_jax.retrieval.embeddings import DTYPES, Embeddings, encode_to_disk


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    retriever.add_model_argument(parser)
    parser.add_argument("--corpus", type=Path, required=True, help="directory of a collection, or a file of texts")
    parser.add_argument("--kind", choices=KINDS, default="passage", help="of texts (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="directory of the embeddings")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="that is stored (default: %(default)s)"
    )
    add_titles_argument(parser)
    retriever.add_encoder_arguments(parser)
    hosts.add_flags(parser)
    return parser.parse_args(argv)


def encode(arguments: argparse.Namespace) -> None:
    """Encodes on all hosts what is not on disk yet.

    Raises:
        InputError: if model, corpus or output cannot be used.
    """
    open_model(arguments.model)  # a mistyped name shows before a large corpus is read
    load = load_queries if arguments.kind == "query" else load_passages
    texts = load(arguments.corpus)
    encoder = getattr(retriever.open_encoders(arguments), arguments.kind)
    started = time.monotonic()
    made = encode_to_disk(encoder, texts, arguments.kind, arguments.output, arguments.dtype, arguments.batch_size)
    seconds = time.monotonic() - started
    count = len(Embeddings(arguments.output))
    say(
        f"{made:,} of {count:,} texts encoded in {duration(seconds)}, {made / seconds:,.1f} texts/s; embeddings: "
        f"{arguments.output}"
    )


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    hosts.start(arguments)
    encode(arguments)


if __name__ == "__main__":
    main()
