"""Runs against MS MARCO's and NIST's rules: the official script in plain Python, and trec_eval on the raw files."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import pytrec_eval

from eval.score import main

DEPTH = 30


def official_mrr(qrels_file: Path, run_file: Path) -> float:
    """MRR@10 by the rules of MS MARCO's evaluation script, from files `qid 0 pid grade` and `qid TAB pid TAB rank`."""
    relevant, ranked = {}, {}
    for line in qrels_file.read_text().splitlines():
        query, _, passage, _ = line.split()
        relevant.setdefault(int(query), []).append(int(passage))
    for line in run_file.read_text().splitlines():
        query, passage, rank = map(int, line.split("\t"))
        # A rank that the file lacks holds passage 0, which is none.
        ranked.setdefault(query, [0] * 1000)[rank - 1] = passage
    for passages in ranked.values():
        assert all(count == 1 or passage == 0 for passage, count in Counter(passages).items()), "ranked twice"
    judged = [query for query in ranked if query in relevant]
    assert judged, "no query is judged"
    total = 0.0
    for query in judged:
        ranks = [rank for rank, passage in enumerate(ranked[query][:10], 1) if passage in relevant[query]]
        total += 1 / ranks[0] if ranks else 0.0
    # Over all judged queries, also those that the run lacks.
    return total / len(relevant)


def trec_eval(qrels_file: Path, run_file: Path, measures: set[str], level: int = 1, cut: int | None = None) -> dict:
    """Means as `trec_eval -c -l LEVEL -M CUT` takes them, from files in TREC's format."""
    with qrels_file.open() as qrels, run_file.open() as run:
        qrels, run = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
    if cut is not None:
        run = {
            query: dict(sorted(scores.items(), key=lambda found: (found[1], found[0]), reverse=True)[:cut])
            for query, scores in run.items()
        }
    found = pytrec_eval.RelevanceEvaluator(qrels, measures, relevance_level=level).evaluate(run)
    names = {name for values in found.values() for name in values}
    return {name: sum(values[name] for values in found.values()) / len(qrels) for name in names}


@pytest.fixture
def msmarco(tmp_path: Path) -> Path:
    """A collection in MS MARCO's layout with 60 judged queries; a run that lacks some and has others, in two formats.

    Passage ids begin at 1: to the official script, passage 0 is none.
    """
    draw = random.Random(3)
    directory = tmp_path / "small"
    directory.mkdir()
    (directory / "collection.tsv").write_text("".join(f"{number}\tpassage {number}\n" for number in range(1, 201)))
    (directory / "queries.dev.small.tsv").write_text("".join(f"{query}\tquery {query}\n" for query in range(60)))
    (directory / "qrels.dev.small.tsv").write_text(
        "".join(
            f"{query}\t0\t{passage}\t1\n"
            for query in range(60)
            for passage in draw.sample(range(1, 201), draw.choice([1, 1, 1, 2, 4]))
        )
    )
    with (tmp_path / "run.tsv").open("w") as ranks, (tmp_path / "mine.trec").open("w") as scores:
        for query in [*range(0, 60, 3), *range(1, 60, 3), *range(100, 105)]:
            for rank, passage in enumerate(draw.sample(range(1, 201), draw.choice([1, 7, 12, DEPTH])), 1):
                ranks.write(f"{query}\t{passage}\t{rank}\n")
                scores.write(f"{query} Q0 {passage} {rank} {1 / rank} mine\n")
    return directory


def test_ms_marcos_rules(msmarco, tmp_path, capsys):
    arguments = f"--collection {msmarco} --output {tmp_path / 'o'} --depth 1000"
    measured = []
    for run in ("run.tsv", "mine.trec"):
        main(f"--run {tmp_path / run} {arguments}".split())
        measured.append(json.loads((tmp_path / "o" / "metrics.json").read_text())["metrics"])
        said = capsys.readouterr().err
        assert f"{run}: 5 of 45 queries are not judged; they are passed over" in said
        assert f"{run}: 20 of 60 judged queries are not in it; they count 0" in said
    qrels = msmarco / "qrels.dev.small.tsv"
    official = official_mrr(qrels, tmp_path / "run.tsv")
    assert 0.01 < official < 0.5
    for means in measured:
        assert means["MRR@10"] == pytest.approx(official, abs=1e-12)
        reciprocal = trec_eval(qrels, tmp_path / "mine.trec", {"recip_rank"}, cut=10)
        assert means["MRR@10"] == pytest.approx(reciprocal["recip_rank"], abs=1e-6)
        rest = trec_eval(qrels, tmp_path / "mine.trec", {"map", "recall.50,100,1000", "ndcg_cut.10"})
        assert means["MAP"] == pytest.approx(rest["map"], abs=1e-6)
        assert means["nDCG@10"] == pytest.approx(rest["ndcg_cut_10"], abs=1e-6)
        for depth in (50, 100, 1000):
            assert means[f"Recall@{depth}"] == pytest.approx(rest[f"recall_{depth}"], abs=1e-6)


@pytest.fixture
def graded(tmp_path: Path) -> tuple[Path, Path]:
    """Files in the formats of TREC's Deep Learning track: grades from 0 to 3, and a run with many ties."""
    draw = random.Random(4)
    qrels, run = tmp_path / "2019qrels-pass.txt", tmp_path / "system.trec"
    with qrels.open("w") as judgements, run.open("w") as found:
        for query in range(19_001, 19_044):
            for passage in draw.sample(range(1, 301), 120):
                judgements.write(f"{query} Q0 {passage} {draw.choice([0, 0, 1, 2, 3])}\n")
            for rank, passage in enumerate(draw.sample(range(1, 301), 150), 1):
                found.write(f"{query} Q0 {passage} {rank} {draw.randrange(40) / 4} system\n")
    return qrels, run


def test_nists_rules_for_graded_judgements(graded, tmp_path):
    qrels, run = graded
    main(f"--run {run} --qrels {qrels} --output {tmp_path / 'o'}".split())
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["relevance_level"] == 2 and metrics["system"] == "system"
    means = metrics["metrics"]
    binary = trec_eval(qrels, run, {"map", "recall.50,100,1000"}, level=2)
    assert means["MAP"] == pytest.approx(binary["map"], abs=1e-6)
    for depth in (50, 100, 1000):
        assert means[f"Recall@{depth}"] == pytest.approx(binary[f"recall_{depth}"], abs=1e-6)
    first = trec_eval(qrels, run, {"recip_rank"}, level=2, cut=10)
    assert means["MRR@10"] == pytest.approx(first["recip_rank"], abs=1e-6)
    # Grades, 1 among them, are gains.
    assert means["nDCG@10"] == pytest.approx(trec_eval(qrels, run, {"ndcg_cut.10"})["ndcg_cut_10"], abs=1e-6)
    lenient = trec_eval(qrels, run, {"map"}, level=1)
    assert abs(means["MAP"] - lenient["map"]) > 0.01


def test_qrels_alone_give_the_same_scores(collection, tmp_path, capsys):
    run = tmp_path / "ours.v1.tsv"
    run.write_text("10\t3\t1\n10\t0\t2\n")
    main(f"--run {run} --collection {collection} --output {tmp_path / 'a'}".split())
    main(f"--run {run} --qrels {collection / 'qrels.dev.tsv'} --output {tmp_path / 'b'}".split())
    with_texts, alone = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert with_texts["metrics"] == alone["metrics"] and alone["metrics"]["MRR@10"] == 0.25
    assert (with_texts["system"], with_texts["passages"], with_texts["titles"]) == ("ours.v1", 4, None)
    assert (alone["split"], alone["passages"], alone["passages_file"]) == ("qrels.dev.tsv", None, None)
    assert (tmp_path / "a" / "run.trec").read_text() == "10 Q0 3 1 -1.0 ours.v1\n10 Q0 0 2 -2.0 ours.v1\n"
    printed = capsys.readouterr().out.splitlines()
    assert "animals, dev: 2 queries, 4 passages of corpus.tsv" in printed
    assert "animals, qrels.dev.tsv: 2 queries" in printed
    assert "cats purr" in (tmp_path / "a" / "report.html").read_text()
    assert "cats purr" not in (tmp_path / "b" / "report.html").read_text()


def test_qrels_of_beir_alone(tmp_path):
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t2\n")
    (tmp_path / "run.trec").write_text("q Q0 b 1 1.0 x\nq Q0 a 2 0.5 x\n")
    main(f"--run {tmp_path / 'run.trec'} --qrels {tmp_path / 'test.tsv'} --output {tmp_path / 'o'}".split())
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    # A run.trec is called by its directory.
    assert metrics["system"] == tmp_path.name and metrics["relevance_level"] == 1
    assert metrics["metrics"]["MRR@10"] == 0.5


def test_a_run_is_called_as_its_evaluation_says_and_not_overwritten(collection, tmp_path, capsys):
    run = tmp_path / "my.system.v2.run.gz"
    run.write_bytes(gzip.compress(b"10\t3\t1\n10\t0\t2\n"))
    main(f"--run {run} --collection {collection} --output {tmp_path / 'o'}".split())
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["system"] == "my.system.v2"
    written = (tmp_path / "o" / "run.trec").read_text()
    again = f"--run {tmp_path / 'o' / 'run.trec'} --collection {collection} --depth 1 --output"
    with pytest.raises(SystemExit):
        main([*again.split(), str(tmp_path / "o")])
    assert "run.trec is read, and would be written anew; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "o" / "run.trec").read_text() == written
    main([*again.split(), str(tmp_path / "p")])
    assert json.loads((tmp_path / "p" / "metrics.json").read_text())["system"] == "my.system.v2"


def test_judged_passages_that_the_collection_lacks_count_as_not_found(collection, tmp_path, capsys):
    with (collection / "qrels.dev.tsv").open("a") as file:
        file.write("10\t0\tlost\t1\n")
    (tmp_path / "run.tsv").write_text("10\t0\t1\n")
    main(f"--run {tmp_path / 'run.tsv'} --collection {collection} --output {tmp_path / 'o'}".split())
    assert "have a passage that corpus.tsv lacks; it counts as one that is not found" in capsys.readouterr().err
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["metrics"]["Recall@100"] == 0.25


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("10\t7\t1\n", "", "has no passage '7'; take a run of this collection"),
        ("99\t0\t1\n", "", "none of its queries is judged in the split 'dev'; take a run of it"),
        ("10\t0\t1\n10\t0\t2\n", "", "run.tsv:2: passage '0' stands twice under query '10'; remove one line"),
        ("10 0 1 2\n", "", "run.tsv:1: 4 fields where 6 are expected"),
        ("10\t0\t1\n", "--split test", "no qrels of a split 'test'"),
    ],
)
def test_what_cannot_be_scored_is_refused(run, arguments, message, collection, tmp_path, capsys):
    (tmp_path / "run.tsv").write_text(run)
    with pytest.raises(SystemExit) as caught:
        main(f"--run {tmp_path / 'run.tsv'} --collection {collection} --output {tmp_path / 'o'} {arguments}".split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o" / "metrics.json").exists()
