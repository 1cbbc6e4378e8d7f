"""Training examples in jsonl: a query with its positive and negative passages in each line.

- As sentence-transformers has them: texts under `query` (or `anchor`), `positive` and `negative`, the last two also
  with a number (`negative_1`) or as lists.
- As Tevatron has them: `query_id`, `query`, and lists `positive_passages` and `negative_passages` of objects with
  `docid`, `title` and `text`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from retromae_jax.data.retrieval import Lines, Passage
from retromae_jax.errors import InputError

QUERY_KEYS = ("query", "anchor")
_TEXTS = {kind: re.compile(rf"{kind}(_\d+)?") for kind in ("positive", "negative")}


class Example(NamedTuple):
    """A line.

    Attributes:
        query_id: None where the line has none.
        query: text.
        positives: relevant passages and their ids (None where they have none), at least one.
        negatives: passages that are not, likewise; maybe none.
    """

    query_id: str | None
    query: str
    positives: list[tuple[str | None, Passage]]
    negatives: list[tuple[str | None, Passage]]


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file, also `.gz`, in its order.

    Raises:
        InputError: if the file is missing or a line is broken.
    """
    lines = Lines(path)
    for row in range(len(lines)):
        try:
            yield _example(json.loads(lines[row]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{row + 1}: {error}; mend or remove the line") from None


def _example(record: object) -> Example:
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} where an object is expected")
    query = next((record[key] for key in QUERY_KEYS if key in record), None)
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"no text under {' or '.join(map(repr, QUERY_KEYS))}; the line has {', '.join(record)}")
    query_id = _id(record["query_id"]) if "query_id" in record else None
    if "positive_passages" in record:
        positives, negatives = (
            [_tevatron_passage(passage) for passage in record.get(f"{kind}_passages") or []]
            for kind in ("positive", "negative")
        )
    else:
        positives, negatives = (
            [(None, Passage("", text)) for key in record if _TEXTS[kind].fullmatch(key) for text in _texts(record, key)]
            for kind in ("positive", "negative")
        )
    if not positives:
        raise ValueError(f"no positive passage; the line has {', '.join(record)}")
    return Example(query_id, query, positives, negatives)


def _texts(record: dict, key: str) -> list[str]:
    texts = record[key] if isinstance(record[key], list) else [record[key]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} is neither a text nor a list of texts")
    return texts


def _tevatron_passage(record: object) -> tuple[str, Passage]:
    if not isinstance(record, dict) or "docid" not in record or not isinstance(record.get("text"), str):
        raise ValueError("a passage without 'docid' or 'text'")
    return _id(record["docid"]), Passage(record.get("title") or "", record["text"])


def _id(value: object) -> str:
    # White space separates the fields of TREC's files, commas the passages of a list of negatives.
    if isinstance(value, bool) or not isinstance(value, str | int) or re.fullmatch(r"[^\s,]+", str(value)) is None:
        raise ValueError(f"the id {value!r} is empty, has white space or a comma in it, or is neither text nor number")
    return str(value)
