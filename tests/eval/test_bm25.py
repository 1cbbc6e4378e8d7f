import json

import pytest

from eval.bm25 import main

KNOWN = {"cranfield": ("test", 0.334), "medquad": ("test", 0.606)}


@pytest.mark.parametrize("name", KNOWN)
def test_known_scores_of_real_collections(name, retrieval_data, tmp_path, capsys):
    split, ndcg = KNOWN[name]
    main(f"--collection {retrieval_data / name} --split {split} --output {tmp_path} --depth 100".split())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["metrics"]["nDCG@10"] == pytest.approx(ndcg, abs=0.01)
    assert metrics["settings"] == {"k1": 0.9, "b": 0.4}
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "BM25"


def test_run_leaves_out_passages_without_a_word_of_the_query(tmp_path):
    directory = tmp_path / "fruit"
    directory.mkdir()
    (directory / "collection.tsv").write_text("a\tapples fall\nb\tcats purr\nc\tapples\n")
    (directory / "queries.test.tsv").write_text("q1\tapples\nq2\tpears\n")
    (directory / "qrels.test.tsv").write_text("q1\t0\tc\t1\nq2\t0\ta\t1\n")
    main(f"--collection {directory} --split test --output {tmp_path / 'o'}".split())
    run = [line.split() for line in (tmp_path / "o" / "run.trec").read_text().splitlines()]
    assert [(query, passage, rank) for query, _, passage, rank, _, _ in run] == [("q1", "c", "1"), ("q1", "a", "2")]
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["metrics"]["MRR@10"] == 0.5
    assert metrics["titles"] is False


def test_missing_split_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(f"--collection {tmp_path / 'nowhere'} --output {tmp_path / 'o'}".split())
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'nowhere'}: no such directory; name one with a collection in BEIR's or MS MARCO's layout\n"
    )
