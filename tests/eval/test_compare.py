import json
import re

import pytest

from eval import bm25
from eval.compare import compare, main
from retromae_jax.errors import InputError


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two splits of a small BEIR collection, evaluated with BM25."""
    directory = tmp_path_factory.mktemp("evaluated")
    collection = directory / "collection"
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
        bm25.main(["--collection", str(collection), "--split", split, "--output", str(directory / split)])
    return directory


@pytest.fixture
def systems(tmp_path):
    """Three evaluations of 40 queries, of which the second gains in 30, and the third is like the second."""
    for name, gained in (("old", 0.0), ("new", 0.5), ("same", 0.5)):
        (tmp_path / name).mkdir()
        values = [0.25 + (gained if query < 30 else -gained / 4) for query in range(40)]
        lines = [
            {"query": f"q{query}", "text": f"text of {query}", "nDCG@10": value, "MAP": value / 2}
            for query, value in enumerate(values)
        ]
        (tmp_path / name / "per_query.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        mean = sum(values) / 40
        description = {"collection": "data/mine", "split": "dev", "queries": 40, "passages": 900, "depth": 1000}
        description["metrics"] = {"nDCG@10": mean, "MAP": mean / 2}
        description["intervals"] = {"nDCG@10": [mean - 0.1, mean + 0.1], "MAP": [mean / 2 - 0.1, mean / 2 + 0.1]}
        (tmp_path / name / "metrics.json").write_text(json.dumps(description))
        (tmp_path / name / "run.trec").write_text(f"q0 Q0 p 1 1.0 {name}\n")
    return {name: tmp_path / name for name in ("old", "new", "same")}


def columns(line):
    return re.split("  +", line.strip())


def test_systems_and_what_each_gains(systems, tmp_path, capsys):
    first, second = compare(systems, tmp_path / "o")
    assert first["nDCG@10"].mean == pytest.approx((30 * 0.5 - 10 * 0.125) / 40)
    # The smallest that so many draws can tell, and Holm's factor of two comparisons.
    assert first["nDCG@10"].randomization_p == pytest.approx(2 / 10_001)
    assert second["nDCG@10"].randomization_p == second["nDCG@10"].t_p == 1.0
    printed = capsys.readouterr().out.strip().splitlines()
    assert [columns(line) for line in printed[-3:]] == [
        ["old", "0.2500 ± 0.1000", "0.1250 ± 0.1000"],
        ["new", "0.5938 ± 0.1000", "0.2969 ± 0.1000"],
        ["same", "0.5938 ± 0.1000", "0.2969 ± 0.1000"],
    ]
    assert "mine, dev: 40 queries, 900 passages" in printed
    gain = columns(printed[printed.index("new over old, p-values by Holm") + 3])
    assert gain[:2] == ["nDCG@10", "+0.3438"] and gain[3:] == ["0.0002", "< 0.0001", "30", "10"]
    low, high = map(float, gain[2].split(" to "))
    assert 0.2 < low < 0.3438 < high < 0.5
    most = printed.index("queries that lose most in nDCG@10:")
    assert printed[most + 1] == "  -0.1250  q30: text of 30"
    assert "queries that gain most in nDCG@10: none" in printed[most:]

    summary = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert [(one["system"], one["over"]) for one in summary["differences"]] == [("new", "old"), ("same", "new")]
    assert summary["differences"][0]["MAP"]["worse"] == 10
    assert (tmp_path / "o" / "differences.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "o" / "run.trec").read_text() == "q0 Q0 p 1 1.0 same\n"
    assert not (tmp_path / "o" / "curves.png").exists()


def test_own_passages_left_out_of_some_evaluations_only_are_told(systems, tmp_path, capsys):
    path = systems["new"] / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"own_passages_left_out": 7}}))
    compare(systems, tmp_path / "o")
    assert "warning" not in capsys.readouterr().err
    (systems["old"] / "run.trec").write_text("q0 Q0 p 1 1.0 old\nq1 Q0 p 1 2.0 old\nq1 Q0 q1 2 1.0 old\n")
    compare(systems, tmp_path / "o")
    assert "left out of new and not of old; differences between these mean little" in capsys.readouterr().err


def test_all_over_one_baseline(systems, tmp_path, capsys):
    evaluations = [argument for name, path in systems.items() for argument in ("--evaluation", f"{name}={path}")]
    main([*evaluations, "--baseline", "new", "--measure", "MAP", "--output", str(tmp_path / "o")])
    printed = capsys.readouterr().out
    assert "old over new, p-values by Holm" in printed and "same over new, p-values by Holm" in printed
    assert "queries that lose most in MAP:\n  -0.2500  q0: text of 0" in printed


def test_trainings_have_gain_and_curves(evaluated, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"step": 0, "held_out/reconstruction_gain": 0.0, "held_out/loss": 9.0},
        {"step": 5, "loss": 8.0, "encoder_loss": 4.0},
        {"step": 10, "loss": 7.0, "encoder_loss": 3.0},
        {"step": 10, "held_out/reconstruction_gain": 0.25, "held_out/loss": 7.5},
    ]
    # The last line is that of a killed run.
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 15, "lo')
    compare({"only": evaluated / "test"}, tmp_path / "report", trainings={"pretraining": run})
    printed = capsys.readouterr().out
    expected = json.loads((evaluated / "test" / "metrics.json").read_text())["metrics"]
    row = columns(printed.strip().splitlines()[-1])
    assert row[0] == "only" and row[1].startswith(f"{expected['MRR@10']:.4f} ± ")
    assert "0.000 at step 0, 0.250 at step 10" in printed
    summary = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert summary["reconstruction_gain"] == {"pretraining": [[0, 0.0], [10, 0.25]]}
    assert (tmp_path / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_measure_that_a_shallow_search_lacks_is_a_dash(evaluated, tmp_path, capsys):
    collection = str(evaluated / "collection")
    bm25.main(["--collection", collection, "--split", "test", "--depth", "10", "--output", str(tmp_path / "shallow")])
    capsys.readouterr()
    (gain,) = compare({"deep": evaluated / "test", "shallow": tmp_path / "shallow"}, tmp_path / "report")
    # Nor is MAP, which goes as deep as the ranking.
    assert list(gain) == ["MRR@10", "nDCG@10"] and gain["nDCG@10"].t_p == 1.0
    printed = capsys.readouterr().out
    assert columns(printed.strip().splitlines()[-1])[2:4] == ["-", "-"]
    # There is only one comparison.
    assert "shallow over deep\n" in printed
    message = "MAP cannot be compared (the rankings are 10 and 1,000 passages deep), but MRR@10, nDCG@10; choose"
    with pytest.raises(InputError, match=re.escape(message)):
        compare({"deep": evaluated / "test", "shallow": tmp_path / "shallow"}, tmp_path / "o", measure="MAP")


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ({"a": "test", "b": "dev"}, "are of different collections or splits and cannot be compared: collection, test;"),
        ({"a": "nowhere"}, "nowhere/metrics.json: cannot be read: No such file or directory; run the evaluation again"),
        ({"a": "test/run.trec"}, "score it first: python -m eval.score --run"),
        ({"a": "test", "b": "no_queries"}, "no_queries/per_query.jsonl: [Errno 2] No such file"),
        ({"a": "cut"}, "cut/per_query.jsonl:3: "),
        ({"a": "empty"}, "empty/per_query.jsonl: not what an evaluation writes"),
        ({"a": "no_text"}, "no_text/per_query.jsonl: not what an evaluation writes"),
        ({"a": "test", "b": "fewer"}, "are of different queries and cannot be compared"),
        ({"a": "no_run"}, "run.trec does not exist; run the evaluation again"),
    ],
)
def test_what_cannot_be_compared_is_refused(evaluations, message, evaluated, tmp_path):
    lines = (evaluated / "test" / "per_query.jsonl").read_text()
    whole, *_, last = lines.splitlines(keepends=True)
    untold = json.loads(whole)
    del untold["text"]
    for split in ("test", "dev"):
        (tmp_path / split).symlink_to(evaluated / split)
    contents = {
        "no_queries": None,
        "cut": lines[:-30],
        "empty": "",
        "no_text": json.dumps(untold),
        "fewer": whole + last,
        "no_run": lines,
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text((evaluated / "test" / "metrics.json").read_text())
        if content is not None:
            (tmp_path / name / "per_query.jsonl").write_text(content)
        if name != "no_run":
            (tmp_path / name / "run.trec").write_text("q Q0 p 1 1.0 x\n")
    with pytest.raises(InputError, match=re.escape(message)):
        compare({name: tmp_path / path for name, path in evaluations.items()}, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_wrong_arguments(systems, tmp_path, capsys):
    with pytest.raises(InputError, match="MRR@10 cannot be compared, but nDCG@10, MAP; choose another --measure"):
        compare(systems, tmp_path / "o", measure="MRR@10")
    with pytest.raises(InputError, match="there is no evaluation 'BM25', but old, new, same"):
        compare(systems, tmp_path / "o", baseline="BM25")
    with pytest.raises(InputError, match="is it the directory of a training run"):
        compare(systems, tmp_path / "o", trainings={"run": tmp_path / "nowhere"})
    kept = (systems["same"] / "metrics.json").read_text()
    with pytest.raises(InputError, match="is the directory of 'same', which is compared; choose another --output"):
        compare(systems, systems["same"])
    assert (systems["same"] / "metrics.json").read_text() == kept
    twice = ["--evaluation", f"a={systems['old']}"] * 2
    with pytest.raises(SystemExit):
        main([*twice, "--output", str(tmp_path / "o")])
    assert "--evaluation: a name stands twice" in capsys.readouterr().err
