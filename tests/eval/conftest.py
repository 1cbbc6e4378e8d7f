"""A small collection for the commands that measure."""

from pathlib import Path

import pytest

from tests.eval.datasets import write_dataset


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """The first query finds its passage at rank 1; the second at rank 2, with titles at rank 1."""
    directory = tmp_path / "animals"
    directory.mkdir()
    (directory / "corpus.tsv").write_text(
        "0\tpets\tcats purr\n1\tpets\tdogs bark bark\n2\tfruit fruit\tapples fall\n3\t\tapples fall fall\n"
    )
    (directory / "queries.dev.tsv").write_text("10\tcats purr\n11\tapples fall fruit\n")
    (directory / "qrels.dev.tsv").write_text("10\t0\t0\t1\n11\t0\t2\t1\n")
    return directory


@pytest.fixture
def meaning(tmp_path: Path) -> Path:
    """A dataset in BEIR's layout in which no query shares a word with its passage; one query has a passage's id."""
    passages = [
        {"_id": "a", "title": "At home", "text": "The feline slept on a sofa."},
        {"_id": "b", "title": "", "text": "Shares fell sharply in New York."},
        {"_id": "c", "title": "Meals", "text": "He fried two eggs and bacon."},
    ]
    queries = [("q1", "sleeping cat"), ("q2", "cooking breakfast"), ("b", "stock market crash")]
    qrels = [("q1", "a", 1), ("q2", "c", 1), ("b", "b", 1)]
    return write_dataset(tmp_path / "meaning", passages, [{"_id": k, "text": v} for k, v in queries], qrels)
