"""A small collection for the commands that measure."""

from pathlib import Path

import pytest


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
