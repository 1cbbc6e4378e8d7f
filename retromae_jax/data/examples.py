"""Training examples in jsonl: a query with its positive and negative passages in each line.

- As sentence-transformers has them: texts under `query` (or `anchor`), `positive` and `negative`, the last two also
  with a number (`negative_1`) or as lists.
- As Tevatron has them: `query_id`, `query`, and lists `positive_passages` and `negative_passages` of objects with
  `docid`, `title` and `text`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from retromae_jax.data.lines import BadLineError, Lines, encodable, json_object
from retromae_jax.data.retrieval import Passage
from retromae_jax.errors import shown

REMEDY = "mend or remove the line"
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
        yield lines.parsed(row, _example)


def _example(line: str) -> Example:
    record = json_object(line)
    key = next((key for key in QUERY_KEYS if key in record), None)
    query = encodable(record[key], key) if key and isinstance(record[key], str) else ""
    if not query.strip():
        raise BadLineError(
            f"no text under {' or '.join(map(repr, QUERY_KEYS))}, but the keys {shown(list(record))}; {REMEDY}"
        )
    query_id = _id(record["query_id"]) if "query_id" in record else None
    passages = _tevatron_passages if "positive_passages" in record else _passages_without_ids
    positives, negatives = (passages(record, kind) for kind in ("positive", "negative"))
    if not positives:
        raise BadLineError(f"no positive passage, but the keys {shown(list(record))}; {REMEDY}")
    return Example(query_id, query, positives, negatives)


def _passages_without_ids(record: dict, kind: str) -> list[tuple[str | None, Passage]]:
    return [(None, Passage("", text)) for key in record if _TEXTS[kind].fullmatch(key) for text in _texts(record, key)]


def _texts(record: dict, key: str) -> list[str]:
    texts = record[key] if isinstance(record[key], list) else [record[key]]
    if not all(isinstance(text, str) for text in texts):
        raise BadLineError(f"{key!r} is neither a text nor a list of texts; {REMEDY}")
    return [encodable(text, key) for text in texts]


def _tevatron_passages(record: dict, kind: str) -> list[tuple[str | None, Passage]]:
    passages = record.get(f"{kind}_passages") or []
    if not isinstance(passages, list):
        raise BadLineError(f"'{kind}_passages' is no list; {REMEDY}")
    return [_tevatron_passage(passage) for passage in passages]


def _tevatron_passage(record: object) -> tuple[str, Passage]:
    match record:
        case {"docid": docid, "text": str(text), "title": str(title)}:
            pass
        case {"docid": docid, "text": str(text), **others} if others.get("title") is None:
            title = ""
        case _:
            raise BadLineError(f"a passage without 'docid' or 'text', or whose title is no text; {REMEDY}")
    return _id(docid), Passage(encodable(title, "title"), encodable(text, "text"))


def _id(value: object) -> str:
    # White space separates the fields of TREC's files, commas the passages of a list of negatives.
    if isinstance(value, bool) or not isinstance(value, str | int) or re.fullmatch(r"[^\s,]+", str(value)) is None:
        raise BadLineError(
            f"the id {shown(value)} is empty, has white space or a comma in it, or is neither text nor number; {REMEDY}"
        )
    return encodable(str(value), "docid")
