import json

import pytest

from eval import bm25
from eval.fuse import main


def test_bm25_and_another_system_become_one_evaluation(collection, tmp_path, capsys):
    bm25.main(f"--collection {collection} --output {tmp_path / 'BM25'}".split())
    (tmp_path / "dense.tsv").write_text("11\t3\t1\n11\t2\t2\n10\t0\t1\n12\t0\t1\n")
    runs = f"--run {tmp_path / 'BM25' / 'run.trec'} --run {tmp_path / 'dense.tsv'}"
    capsys.readouterr()
    main(f"{runs} --collection {collection} --output {tmp_path / 'o'}".split())
    # BM25 finds passages 2 and 3 for query 11, in this order.
    assert (tmp_path / "o" / "run.trec").read_text().splitlines() == [
        "10 Q0 0 1 0.032786883 BM25+dense",
        "11 Q0 3 1 0.032522473 BM25+dense",
        "11 Q0 2 2 0.032522473 BM25+dense",
    ]
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["settings"]["k"] == 60 and len(metrics["settings"]["runs"]) == 2
    assert metrics["metrics"]["MRR@10"] == 0.75
    assert capsys.readouterr().out.splitlines()[-1].startswith("BM25+dense  0.7500 ± 0.2500")
    assert (tmp_path / "o" / "report.html").is_file()


def test_what_cannot_be_fused_is_refused(collection, tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("10\t0\t1\n")
    (tmp_path / "b.tsv").write_text("10\tx\t1\n")
    command = f"--collection {collection} --output {tmp_path / 'o'} --run {tmp_path / 'a.tsv'}"
    for more, message in [
        ("", "--run: give it twice or more often"),
        (f"--run {tmp_path / 'b.tsv'}", "no passage 'x'"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(f"{command} {more}".split())
        assert caught.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
