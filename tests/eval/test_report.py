import json

import pytest

from eval import bm25
from eval.report import report
from retromae_jax.errors import InputError


@pytest.fixture
def evaluated(tmp_path):
    """A small BEIR collection, evaluated with BM25."""
    collection = tmp_path / "collection"
    (collection / "qrels").mkdir(parents=True)
    passages = {"p1": "red apples grow", "p2": "blue whales swim", "p3": "green apples fall"}
    queries = {"q1": "red apples", "q2": "whales", "q3": "green"}
    for name, texts in (("corpus", passages), ("queries", queries)):
        lines = [json.dumps({"_id": key, "title": "", "text": text}) for key, text in texts.items()]
        (collection / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judgements = "query-id\tcorpus-id\tscore\nq1\tp1\t1\nq2\tp2\t1\nq3\tp1\t1\n"
    (collection / "qrels" / "test.tsv").write_text(judgements)
    (collection / "qrels" / "dev.tsv").write_text(judgements)
    for split in ("test", "dev"):
        bm25.main(["--collection", str(collection), "--split", split, "--output", str(tmp_path / split)])
    return tmp_path


def test_a_report_has_table_gain_examples_and_files(evaluated, capsys):
    run = evaluated / "run"
    run.mkdir()
    rows = [
        {"step": 0, "held_out/reconstruction_gain": 0.0, "held_out/loss": 9.0},
        {"step": 5, "loss": 8.0, "encoder_loss": 4.0},
        {"step": 10, "loss": 7.0, "encoder_loss": 3.0},
        {"step": 10, "held_out/reconstruction_gain": 0.25, "held_out/loss": 7.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report({"first": evaluated / "test", "second": evaluated / "test"}, {"pretraining": run}, evaluated / "report")
    printed = capsys.readouterr().out
    expected = json.loads((evaluated / "test" / "metrics.json").read_text())["metrics"]
    for system in ("first", "second"):
        row = next(line for line in printed.splitlines() if line.startswith(system))
        assert f"{expected['nDCG@10']:.4f}" in row and f"{expected['MRR@10']:.4f}" in row
    # Of the same evaluation twice, nothing is gained.
    gained = next(line for line in printed.splitlines() if line.startswith("second   first"))
    assert gained.count("+0.0000 ± 0.0000") == 4
    assert "0.000 at step 0, 0.250 at step 10" in printed
    # p1 is found for q1 and is relevant; q3's hit p3 is not.
    assert "query: red apples\n  * " in printed
    assert "query: green\n    " in printed
    summary = json.loads((evaluated / "report" / "metrics.json").read_text())
    assert summary["reconstruction_gain"] == {"pretraining": [[0, 0.0], [10, 0.25]]}
    assert (evaluated / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (evaluated / "report" / "run.trec").read_text() == (evaluated / "test" / "run.trec").read_text()


def test_a_measure_that_a_shallow_search_lacks_is_a_dash(evaluated, capsys):
    collection = str(evaluated / "collection")
    bm25.main(["--collection", collection, "--split", "test", "--depth", "10", "--output", str(evaluated / "shallow")])
    capsys.readouterr()
    report({"deep": evaluated / "test", "shallow": evaluated / "shallow"}, {}, evaluated / "report")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(row for row in rows if row[:1] == ["shallow"])[2:4] == ["-", "-"]


def test_what_cannot_be_compared_is_refused(evaluated):
    with pytest.raises(InputError, match="different collections or splits"):
        report({"a": evaluated / "test", "b": evaluated / "dev"}, {}, evaluated / "report")
    with pytest.raises(InputError, match="run the evaluation again"):
        report({"a": evaluated / "nowhere"}, {}, evaluated / "report")
    with pytest.raises(InputError, match="is it the directory of a training run"):
        report({"a": evaluated / "test"}, {"run": evaluated / "nowhere"}, evaluated / "report")
