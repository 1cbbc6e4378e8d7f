"""Embeddings that go to Pyserini's layouts are read there as `pyserini` 1.6 does, and come back as they were."""

import json

import faiss
import numpy as np
import pyarrow as pa
import pytest

from eval.convert import main
from retromae_jax.retrieval import pyserini
from retromae_jax.retrieval.embeddings import Embeddings, store

COUNT, WIDTH = 7, 8


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(pyserini, "WINDOW", 3)


def stored(directory, dtype="float32"):
    """Embeddings on disk, and their vectors."""
    vectors = np.random.default_rng(0).standard_normal((COUNT, WIDTH), np.float32)
    description = {"kind": "passage", "count": COUNT, "width": WIDTH, "dtype": dtype, "texts_per_shard": 3}
    ids = pa.array([f"doc-{number}é" for number in range(COUNT)], pa.large_string())
    shards = [vectors[start : start + 3] for start in range(0, COUNT, 3)]
    store(directory, description | {"model_sha256": "0123"}, ids, shards)
    embeddings = Embeddings(directory)
    return embeddings, embeddings[0:COUNT].astype(np.float32)


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_faiss_index_and_back(dtype, small_parts, tmp_path):
    embeddings, vectors = stored(tmp_path / "embeddings", dtype)
    main(["--from", str(tmp_path / "embeddings"), "--to", str(tmp_path / "pyserini")])
    # As FaissSearcher.load_index and .search.
    index = faiss.read_index(str(tmp_path / "pyserini" / "index"))
    docids = [line.rstrip() for line in (tmp_path / "pyserini" / "docid").read_text().splitlines()]
    assert (index.d, index.ntotal, len(docids)) == (WIDTH, COUNT, COUNT)
    queries = np.random.default_rng(1).standard_normal((2, WIDTH), np.float32)
    scores, found = index.search(queries, COUNT)
    expected = queries @ vectors.T
    np.testing.assert_array_equal(found, np.argsort(-expected, axis=1))
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), rtol=1e-5, atol=1e-5)
    assert [docids[number] for number in found[0]] == embeddings.ids.take(pa.array(found[0])).to_pylist()

    main(["--from", str(tmp_path / "pyserini"), "--to", str(tmp_path / "back")])
    assert content(tmp_path / "back") == content(tmp_path / "embeddings")


def test_lines_of_json_and_back(small_parts, tmp_path):
    _, vectors = stored(tmp_path / "embeddings")
    main(f"--from {tmp_path / 'embeddings'} --to {tmp_path / 'lines'} --format jsonl".split())
    # As pyserini.index.faiss: every file of the directory.
    (path,) = (tmp_path / "lines").iterdir()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [f"doc-{number}é" for number in range(COUNT)]
    np.testing.assert_array_equal(np.array([line["vector"] for line in lines], "float32"), vectors)

    main(["--from", str(tmp_path / "lines"), "--to", str(tmp_path / "back")])
    back = Embeddings(tmp_path / "back")
    np.testing.assert_array_equal(back[0:COUNT], vectors)
    assert back.ids.to_pylist() == [line["id"] for line in lines]
    assert "model_sha256" not in back.description


def test_what_cannot_be_converted(tmp_path, capsys):
    stored(tmp_path / "embeddings")
    (tmp_path / "nothing").mkdir()
    for name in ("ids", "other", "lines"):
        (tmp_path / name).mkdir()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(np.eye(WIDTH, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "ids" / "index"))
    (tmp_path / "ids" / "docid").write_text("a\nb\n")
    (tmp_path / "other" / "index").write_text("?")
    (tmp_path / "other" / "docid").write_text("a\n")
    (tmp_path / "lines" / "a.jsonl").write_text('{"id": "a", "vector": [1, 2]}\n{"id": "b", "vector": [1]}\n')
    for source, message in (
        ("nowhere", "neither a Faiss index (index and docid) nor lines of JSON (*.jsonl) there"),
        ("nothing", "neither a Faiss index"),
        ("ids", "docid: 2 ids of 8 vectors; take both files from one index"),
        ("other", "is no Faiss index that still has its vectors"),
        ("lines", "a.jsonl:2: a vector of 1 numbers, the first has 2"),
    ):
        with pytest.raises(SystemExit):
            main(["--from", str(tmp_path / source), "--to", str(tmp_path / "o")])
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        main(["--from", str(tmp_path / "embeddings"), "--to", str(tmp_path / "ids")])
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob("*.incomplete"))
    description = json.loads((tmp_path / "embeddings" / "embeddings.json").read_text())
    (tmp_path / "embeddings" / "embeddings.json").write_text(json.dumps(description | {"lexical_top_k": 2}))
    with pytest.raises(SystemExit):
        main(["--from", str(tmp_path / "embeddings"), "--to", str(tmp_path / "o")])
    assert "embeddings with a lexical part" in capsys.readouterr().err
