"""The command from a corpus to embeddings, and its embeddings in other commands."""

import json
import shutil

import numpy as np
import pytest

from eval import mine, msmarco
from eval.encode import main
from retromae_jax.retrieval.embeddings import Embeddings


def test_corpora_and_queries_of_both_layouts(small_encoder_directory, tmp_path, capsys):
    beir, marco = tmp_path / "beir", tmp_path / "marco"
    beir.mkdir()
    marco.mkdir()
    # With the longest one, batches have one shape, and sums one order, with titles and without.
    longest = "apples fall from trees " * 6
    texts = {"a": ("Pets", "cats purr"), "b": ("", "apples fall"), "c": ("", longest)}
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": name, "title": title, "text": text}) + "\n" for name, (title, text) in texts.items())
    )
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "do cats purr"}\n')
    (marco / "para.txt").write_text(f"a\tcats purr\nb\tapples fall\nc\t{longest}\n")
    (marco / "para.title.txt").write_text("a\tPets\n")
    (marco / "queries.dev.tsv").write_text("q\tdo cats purr\n")

    def encoded(corpus, *arguments):
        output = tmp_path / "embeddings"
        shutil.rmtree(output, ignore_errors=True)
        main(["--model", str(small_encoder_directory), "--corpus", str(corpus), "--output", str(output), *arguments])
        last = capsys.readouterr().err.splitlines()[-1]
        count = len(Embeddings(output))
        assert last.startswith(f"{count} of {count} texts encoded in") and last.endswith(
            f"texts/s; embeddings: {output}"
        )
        return Embeddings(output)

    expected = encoded(beir)[:]
    for corpus in (beir / "corpus.jsonl", marco, marco / "para.txt"):
        found = encoded(corpus)
        assert found.ids.to_pylist() == ["a", "b", "c"]
        np.testing.assert_array_equal(found[:], expected)
    without_titles = encoded(marco, "--no-titles", "--passage-prompt", "read: ")[:]
    np.testing.assert_array_equal(without_titles[1:], expected[1:])
    assert np.abs(without_titles[0] - expected[0]).max() > 1e-3

    queries = [
        encoded(corpus, "--kind", "query")[:] for corpus in (beir, beir / "queries.jsonl", marco / "queries.dev.tsv")
    ]
    np.testing.assert_array_equal(queries[1], queries[0])
    np.testing.assert_array_equal(queries[2], queries[0])
    with pytest.raises(SystemExit):
        encoded(marco, "--kind", "query")
    assert "no queries.jsonl there; name the file of the queries, one of queries.dev.tsv" in capsys.readouterr().err


def test_commands_that_search_take_stored_embeddings(small_encoder_directory, collection, tmp_path):
    stored, model = tmp_path / "stored", f"--model {small_encoder_directory}"
    main(f"{model} --corpus {collection} --output {stored}".split())
    found = []
    for given in ([], ["--embeddings", str(stored)]):
        output = tmp_path / f"o{len(given)}"
        msmarco.main([*f"{model} --collection {collection} --output {output}".split(), *given])
        window = "--split dev --from-rank 1"
        mine.main([*f"{model} --collection {collection} --output {output / 'mined.tsv'} {window}".split(), *given])
        found.append([(output / name).read_text() for name in ("run.trec", "mined.tsv")])
    assert found[0] == found[1]
    assert json.loads((tmp_path / "o2" / "metrics.json").read_text())["settings"]["title_separator"] == " : "


def test_lexical_parts_are_stored_in_float32_only(small_encoder_directory, collection, tmp_path, capsys, monkeypatch):
    from retromae_jax.retrieval import embeddings

    described = embeddings.describe
    monkeypatch.setattr(embeddings, "describe", lambda *of: described(*of) | {"lexical_top_k": 4})
    arguments = f"--model {small_encoder_directory} --corpus {collection} --output {tmp_path / 'o'}"
    with pytest.raises(SystemExit):
        main(f"{arguments} --dtype bfloat16".split())
    assert "hold numbers of words, which bfloat16 rounds; store them in float32" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
