"""Small datasets in BEIR's layout."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_dataset(
    directory: Path, passages: Iterable[dict], queries: Iterable[dict], qrels: Iterable[Sequence], split: str = "test"
) -> Path:
    """Writes a dataset: its passages, queries and judgements, `(query, passage, grade)`."""
    (directory / "qrels").mkdir(parents=True)
    for name, records in (("corpus", passages), ("queries", queries)):
        (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in qrels)]
    (directory / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return directory
