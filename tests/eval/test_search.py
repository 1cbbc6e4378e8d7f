"""The prompt, through a pipe and with an encoder of which the right answers are known."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval.retriever
import eval.search
from eval.search import main
from retromae_jax import logging
from retromae_jax.models.pooling import EncoderSettings
from tests.conftest import FAST_COMPILING

WORDS = ["cats", "purr", "dogs", "bark", "apples", "fall", "fruit", "pets"]


@pytest.fixture
def settings(monkeypatch):
    """Word counts in place of a model; its settings can be changed until it is opened."""

    def counts(texts) -> np.ndarray:
        return np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32)

    class Stored(np.ndarray):
        def check(self, description) -> None:
            pass

    def encode_to_disk(encoder, passages, kind, directory, batch_size=None) -> None:
        directory.mkdir()
        np.save(directory / "counts.npy", counts(passages.texts()))

    def open_encoders(arguments) -> SimpleNamespace:
        encoder = SimpleNamespace(dimension=len(WORDS), settings=settings.of_encoder)
        return SimpleNamespace(query=encoder, passage=encoder)

    settings = SimpleNamespace(of_encoder=EncoderSettings("mean", False, 24))
    monkeypatch.setattr(eval.search, "open_model", lambda model: None)
    monkeypatch.setattr(eval.retriever, "open_encoders", open_encoders)
    monkeypatch.setattr(eval.retriever, "describe", lambda *arguments: {})
    monkeypatch.setattr(eval.retriever, "encode_to_disk", encode_to_disk)
    monkeypatch.setattr(eval.retriever, "Embeddings", lambda directory: np.load(directory / "counts.npy").view(Stored))
    monkeypatch.setattr(eval.retriever, "encode_texts", lambda encoder, texts, kind, batch_size: counts(texts))
    monkeypatch.setattr(logging, "_silent", False)
    return settings


def type_in(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize("method", [[], ["--search", "device"], ["--search", "hnsw"]])
def test_shows_the_best_passages_of_each_line(collection, settings, method, monkeypatch, capsys):
    type_in(monkeypatch, "apples fall fruit\n\n   \nbark\n")
    main(["--model", "m", "--corpus", str(collection), "--hits", "2", *method])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "query> apples fall fruit",
        "   1    4.0000  2  fruit fruit: apples fall",
        "   2    3.0000  3  apples fall fall",
    ]
    assert lines[3].startswith("4 passages in ") and lines[3].endswith(" ms")
    assert lines[5:7] == ["query> bark", "   1    2.0000  1  pets: dogs bark bark"]
    assert len(lines) == 10


def test_more_hits_than_passages_and_long_texts(collection, settings, monkeypatch, capsys):
    (collection / "corpus.tsv").write_text(f"7\t\tcats {'purr ' * 200}\nlonger-id\tpets\tdogs\n")
    type_in(monkeypatch, "cats")  # without the end of a line
    main(["--model", "m", "--corpus", str(collection)])
    _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("   1    1.0000  7          cats purr purr") and first.endswith(" ...")
    assert len(first) <= 125
    assert second == "   2    0.0000  longer-id  pets: dogs"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--search ivfpq", "4 passages of a host are too few to train IVF-PQ, which takes 10,240"),
        ("--search flat:gpu=1", "Faiss has no GPU here"),
        ("--search annoy", "no method of search; there are device, flat, hnsw, ivfpq"),
        ("--hits 0", "0 is not 1 or more"),
        ("--corpus nowhere", "nowhere: no passages in BEIR's or MS MARCO's layout"),
    ],
)
def test_mistakes_show_before_anything_is_encoded(arguments, message, collection, settings, monkeypatch, capsys):
    monkeypatch.setattr(eval.retriever, "encode_to_disk", lambda *arguments: pytest.fail("encoded"))
    with pytest.raises(SystemExit) as caught:
        main(["--model", "m", "--corpus", str(collection), *arguments.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_approximate_search_of_lexical_parts_is_refused(collection, settings, capsys):
    settings.of_encoder = EncoderSettings("mean", False, 24, lexical_top_k=2)
    with pytest.raises(SystemExit):
        main(["--model", "m", "--corpus", str(collection), "--search", "hnsw"])
    assert "embeddings with a lexical part have a search of their own; leave out --search" in capsys.readouterr().err


def test_through_a_pipe(minilm_directory, tmp_path):
    """No query shares a word with its passage."""
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "a", "title": "", "text": "The feline slept."}\n{"_id": "b", "title": "", "text": "Shares fell."}\n'
    )
    command = [sys.executable, "-m", "eval.search", "--model", str(minilm_directory), "--corpus", str(tmp_path)]
    finished = subprocess.run(
        [*command, "--hits", "1"],
        input="sleeping cat\nstock market crash\n",
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": FAST_COMPILING},
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("   1")] == ["a", "b"]
    assert "a query a line; Ctrl-D ends" in finished.stderr.splitlines()[-1]
