"""Makes a collection to fine-tune on of training examples in jsonl, sentence-transformers' or Tevatron's.

    python -m train.convert  --from train.jsonl --to data/mine
    python -m train.finetune --config configs/msmarco.py \\
        --config.collection data/mine --config.negatives data/mine/negatives.tsv

Each line of the files is a query with its passages: texts `query`, `positive`, `negative` (also `negative_1`, ..., or
lists), or `query_id`, `query`, and lists `positive_passages` and `negative_passages` of `docid`, `title`, `text`.
Lines with the same query, by id or else by text, become one query with several relevant passages, and a passage that
stands on many lines one passage. Written are BEIR's corpus.jsonl, queries.jsonl and qrels/train.tsv, and, if there are
any, negatives.tsv.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from retromae_jax.data.blocks import partial_directory
from retromae_jax.data.examples import read_examples
from retromae_jax.data.lines import BadLineError
from retromae_jax.errors import InputError, exits_on_input_error, shown
from retromae_jax.logging import Progress, say


def convert(paths: Iterable[Path], directory: Path) -> dict[str, int]:
    """Writes the collection.

    Args:
        paths: files of examples.
        directory: where to; must not exist yet.

    Returns:
        The number of `queries` and `passages`.

    Raises:
        InputError: if a file is missing or broken, texts share an id, or the directory exists or cannot be written.
    """
    if directory.exists():
        raise InputError(f"{directory} exists; remove it, or choose another --to")
    partial = partial_directory(directory)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "qrels").mkdir(parents=True)
        queries, passages = _Ids(partial / "queries.jsonl"), _Ids(partial / "corpus.jsonl")
        with (
            queries,
            passages,
            (partial / "qrels" / "train.tsv").open("w", encoding="utf-8") as qrels,
            (partial / "negatives.tsv").open("w", encoding="utf-8") as negatives,
            Progress("convert", None, "examples") as progress,
        ):
            qrels.write("query-id\tcorpus-id\tscore\n")
            for path in paths:
                for line, example in enumerate(read_examples(path), 1):
                    try:
                        query = queries.id_of(example.query_id, text=example.query)
                        positive, negative = (
                            [passages.id_of(identifier, **passage._asdict()) for identifier, passage in group]
                            for group in (example.positives, example.negatives)
                        )
                    except BadLineError as problem:
                        raise InputError(f"{path}:{line}: {problem}") from None
                    qrels.writelines(f"{query}\t{passage}\t1\n" for passage in positive)
                    if negative:
                        negatives.write(f"{query}\t{','.join(negative)}\n")
                    progress.update()
        if not (partial / "negatives.tsv").stat().st_size:
            (partial / "negatives.tsv").unlink()
        partial.rename(directory)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}; choose another --to") from error
    return {"queries": len(queries), "passages": len(passages)}


class _Ids:
    """Writes each text of a file once, and knows its id: its own, or a number."""

    def __init__(self, path: Path):
        self._file = path.open("w", encoding="utf-8")
        # Digests of the texts by id, and ids of those without one by digest: there may be millions of texts.
        self._digests: dict[str, bytes] = {}
        self._numbers: dict[bytes, str] = {}

    def id_of(self, identifier: str | None, **fields: str) -> str:
        """The id of a text; raises a BadLineError if it is another text's."""
        digest = hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).digest()
        if identifier is None:
            identifier = self._numbers.setdefault(digest, self._free_id())
        if identifier not in self._digests:
            self._digests[identifier] = digest
            self._file.write(json.dumps({"_id": identifier, **fields}, ensure_ascii=False) + "\n")
        elif self._digests[identifier] != digest:
            raise BadLineError(
                f"the id {shown(identifier)} is that of another text on an earlier line; if files number their texts "
                "each for itself, convert them one by one, else mend the line"
            )
        return identifier

    def _free_id(self) -> str:
        number = len(self._digests)
        while f"n{number}" in self._digests:  # a text's own id
            number += 1
        return f"n{number}"

    def __len__(self) -> int:
        return len(self._digests)

    def __enter__(self) -> "_Ids":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="paths", required=True, nargs="+", type=Path, metavar="FILE", help="examples")
    parser.add_argument("--to", dest="directory", required=True, type=Path, metavar="DIR", help="where to write")
    flags = parser.parse_args(arguments)
    counts = convert(flags.paths, flags.directory)
    say(f"{flags.directory}: {counts['queries']:,} queries, {counts['passages']:,} passages")


if __name__ == "__main__":
    main()
