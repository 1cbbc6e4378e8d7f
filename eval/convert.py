"""Hands embeddings to Pyserini, and takes them from there.

    python -m eval.convert --from embeddings/msmarco --to pyserini/msmarco
    python -m eval.convert --from embeddings/msmarco --to pyserini/msmarco --format jsonl
    python -m eval.convert --from pyserini/msmarco --to embeddings/msmarco

What --from holds decides the direction. `faiss` is a Faiss index with ids, which `pyserini.search.faiss` opens, and is
in memory as a whole; `jsonl` is lines of JSON, which `pyserini.index.faiss` and `pyserini.index.lucene` read. Runs need
no conversion: both write and read TREC's format.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import say
from retromae_jax.retrieval import pyserini
from retromae_jax.retrieval.embeddings import DESCRIPTION, Embeddings


def convert(source: Path, to: Path, layout: str) -> None:
    """Converts embeddings into one of Pyserini's layouts, or back.

    Args:
        source: directory of embeddings, or in either of Pyserini's layouts.
        to: directory that is not there yet, or is empty.
        layout: a key of `pyserini.FORMATS`, to write if `source` holds embeddings.

    Raises:
        InputError: if `source` or `to` cannot be used so.
    """
    is_back = not (source / DESCRIPTION).is_file() or (source / pyserini.INDEX).is_file()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to} is there already; choose another --to")
    unfinished = to.with_name(f"{to.name}.incomplete")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if is_back:
            pyserini.read(source, unfinished)
        else:
            embeddings = Embeddings(source)
            if embeddings.description.get("lexical_top_k"):
                raise InputError(f"{source}: embeddings with a lexical part are no vectors that others can search")
            pyserini.FORMATS[layout](embeddings, unfinished)
        unfinished.replace(to)
    except OSError as error:
        raise InputError(f"{to}: {error.strerror or error}; make room or choose another --to") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    say(f"{'embeddings' if is_back else layout}: {to}")


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", type=Path, required=True, help="directory to read")
    parser.add_argument("--to", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--format", choices=tuple(pyserini.FORMATS), default="faiss", help="of Pyserini (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    convert(arguments.source, arguments.to, arguments.format)


if __name__ == "__main__":
    main()
