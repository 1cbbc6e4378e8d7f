"""Looks: shows what an encoder finds for the queries that are typed.

    python -m eval.search --model exported/msmarco --corpus data/msmarco
    echo 'how do whales sleep' | python -m eval.search --model exported/msmarco --corpus data/msmarco

The passages are encoded first, or their embeddings read where `eval.encode` has left them (--embeddings). Then each
line is a query; an empty one is passed over, and Ctrl-D ends. The search is exact unless --search says otherwise: it
reads all embeddings for each query, so that for millions of passages an approximate one is more fun (--search hnsw).
"""

import argparse
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from eval import retriever
from eval.measure import add_titles_argument, positive
from retromae_jax import logging
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.retrieval import Passages, load_passages
from retromae_jax.errors import exits_on_input_error

PROMPT = "query> "
# Characters of a passage that are shown.
WIDTH = 100
# What is searched for before a query is typed, the first words of some passages: an approximate search says how much it
# finds of the best, and programs for queries of the usual lengths are compiled.
TRIALS, WORDS = 64, (4, 12, 20, 28)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    retriever.add_model_argument(parser)
    parser.add_argument(
        "--corpus", type=Path, required=True, help="BEIR directory, or directory with MS MARCO's own files"
    )
    parser.add_argument("--hits", type=positive, default=10, help="passages to show (default: %(default)s)")
    add_titles_argument(parser)
    retriever.add_arguments(parser)
    return parser.parse_args(argv)


def search(arguments: argparse.Namespace) -> None:
    """Encodes the passages, then answers the queries of stdin.

    Raises:
        InputError: if corpus or model cannot be used.
    """
    open_model(arguments.model)  # a mistyped name shows before a large collection is read
    passages = load_passages(arguments.corpus)
    encoder = retriever.Retriever(arguments)
    texts = passages.texts(titles=False)
    with tempfile.TemporaryDirectory() as directory:
        encoder.index(passages, Path(directory))
        trials = [text.split() for text in texts[:: -(-len(texts) // TRIALS)]]
        encoder.search([" ".join(words[: WORDS[0]]) for words in trials], arguments.hits)
        for count in WORDS:
            encoder.search([" ".join(max(trials, key=len)[:count])], arguments.hits)
        logging.say("a query a line; Ctrl-D ends")
        logging.silence()  # from here on, progress would come between queries and hits
        for query in _queries():
            started = time.perf_counter()
            found = encoder.search([query], arguments.hits)
            milliseconds = 1000 * (time.perf_counter() - started)
            print(_shown(passages, *(part[0] for part in found)))
            print(f"{len(passages):,} passages in {milliseconds:,.0f} ms\n", flush=True)


def _queries() -> Iterator[str]:
    """The lines of stdin that are not empty, with a prompt on a terminal."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - lets `input` edit lines and remember them

    while True:
        try:
            query = input(PROMPT if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if query:
            if not sys.stdin.isatty():
                print(f"{PROMPT}{query}")
            yield query


def _shown(passages: Passages, scores: Sequence[float], indices: Sequence[int]) -> str:
    """A line for each hit: rank, score, id, and title and text as far as there is room."""
    hits = [(float(score), int(index)) for score, index in zip(scores, indices, strict=True) if index >= 0]
    ids = [passages.ids[index].as_py() for _, index in hits]
    width = max(map(len, ids), default=0)
    lines = []
    for rank, ((score, index), passage) in enumerate(zip(hits, ids, strict=True), 1):
        title, text = passages[index]
        shown = textwrap.shorten(f"{title}: {text}" if title else text, WIDTH, placeholder=" ...")
        lines.append(f"{rank:>4}  {score:8.4f}  {passage:{width}}  {shown}")
    return "\n".join(lines)


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    search(parse(argv))


if __name__ == "__main__":
    main()
