"""Reranking from run to run, with a cross-encoder of which the right answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest

import eval.rerank
from eval.rerank import main
from retromae_jax.models.pooling import EncoderSettings

RUN = """\
10 Q0 3 1 9.0 first
10 Q0 1 2 8.0 first
10 Q0 0 3 7.0 first
10 Q0 2 4 6.0 first
11 Q0 1 1 5.0 first
11 Q0 2 2 4.0 first
12 Q0 0 1 3.0 first
"""


@pytest.fixture
def collection(collection: Path) -> Path:
    """With a run beside it, and a query that the run lacks."""
    with (collection / "queries.dev.tsv").open("a") as queries, (collection / "qrels.dev.tsv").open("a") as qrels:
        queries.write("13\tnot in the run\n")
        qrels.write("13\t0\t3\t1\n")
    (collection.parent / "run.trec").write_text(RUN)
    return collection


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Counts of shared words in place of a model; records what was asked for."""
    calls = []

    class CrossEncoder:
        digest, compute_dtype = "0123", "float32"
        titles = True  # what it says of itself

        @classmethod
        def from_pretrained(cls, model, compute_dtype, **changes):
            calls.append(("model", model, compute_dtype))
            model = cls()
            model.settings = EncoderSettings("cls", False, 24, titles=cls.titles).changed(**changes)
            return model

        def scores(self, queries, passages, batch_size):
            calls.append((len(queries), self.settings.max_length, batch_size))
            shared = [len(set(q.split()) & set(p.split())) for q, p in zip(queries, passages, strict=True)]
            return np.array(shared, np.float32) - 0.5

    monkeypatch.setattr(eval.rerank, "open_model", lambda model: None)
    monkeypatch.setattr(eval.rerank, "CrossEncoder", CrossEncoder)
    return calls


def test_a_run_is_reranked_and_the_gain_is_shown(collection, calls, tmp_path, capsys):
    output = tmp_path / "o"
    main(f"--model m/mine --collection {collection} --run {tmp_path / 'run.trec'} --output {output} --depth 3".split())
    # Query 12 is of another split, and passage 2 of query 10 is beyond the depth.
    assert (output / "run.trec").read_text().splitlines() == [
        "10 Q0 0 1 1.5 mine",
        "10 Q0 3 2 -0.5 mine",
        "10 Q0 1 3 -0.5 mine",
        "11 Q0 2 1 2.5 mine",
        "11 Q0 1 2 -0.5 mine",
    ]
    assert (output / "scores.tsv").read_text().splitlines() == [
        "10\t3\t-0.5",
        "10\t1\t-0.5",
        "10\t0\t1.5",
        "11\t1\t-0.5",
        "11\t2\t2.5",
    ]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["before"]["MAP"] == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert metrics["metrics"]["MAP"] == pytest.approx(2 / 3)
    assert metrics["settings"]["max_length"] == 24 and metrics["depth"] == 3
    assert metrics["gain"]["MAP"]["mean"] == pytest.approx(7 / 18)
    assert (metrics["gain"]["MAP"]["better"], metrics["gain"]["MAP"]["worse"]) == (2, 0)
    before, after, gain = (line.split() for line in capsys.readouterr().out.splitlines()[-3:])
    assert before[:2] == ["before", "0.2778"] and after[:2] == ["mine", "0.6667"] and gain[:2] == ["gain", "+0.3889"]
    assert calls == [("model", "m/mine", "float32"), (5, 24, None)]


def test_pairs_of_mined_negatives_are_scored_with_the_relevant_passages(collection, calls, tmp_path, monkeypatch):
    pairs, output = tmp_path / "negatives.tsv", tmp_path / "o"
    pairs.write_text("10\t1,3\n11\t3\n11\t2\n")
    command = f"--model m --collection {collection} --pairs {pairs} --output {output} --batch-size 4 --max-length 9"
    expected = ["10\t0\t1.5", "10\t1\t-0.5", "10\t3\t-0.5", "11\t2\t2.5", "11\t3\t1.5"]
    for at_once in (100, 1):
        monkeypatch.setattr(eval.rerank, "PAIRS_AT_ONCE", at_once)
        main(command.split())
        assert (output / "scores.tsv").read_text().splitlines() == expected
    assert [call for call in calls if call[0] != "model"] == [(5, 9, 4), (3, 9, 4), (2, 9, 4)]
    assert [path.name for path in output.iterdir()] == ["scores.tsv"]


def test_scores_of_a_killed_run_are_not_made_again(collection, calls, tmp_path, monkeypatch, capsys):
    (tmp_path / "negatives.tsv").write_text("10\t1,3\n11\t3\n11\t2\n")
    command = f"--model m --collection {collection} --pairs {tmp_path / 'negatives.tsv'} --output {tmp_path / 'o'}"
    monkeypatch.setattr(eval.rerank, "PAIRS_AT_ONCE", 1)
    with monkeypatch.context() as patch:

        def killed(*arguments):
            raise KeyboardInterrupt

        patch.setattr(eval.rerank, "write_lines", killed)
        with pytest.raises(SystemExit):
            main(command.split())
    next((tmp_path / "o" / ".scores").glob("scores-000001*")).unlink()
    main(command.split())
    assert [call for call in calls if call[0] != "model"] == [(3, 24, None), (2, 24, None), (2, 24, None)]
    assert "1 of 2 files of scores are there already" in capsys.readouterr().err
    expected = ["10\t0\t1.5", "10\t1\t-0.5", "10\t3\t-0.5", "11\t2\t2.5", "11\t3\t1.5"]
    assert (tmp_path / "o" / "scores.tsv").read_text().splitlines() == expected
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["scores.tsv"]


@pytest.mark.parametrize(
    "options, digest, again",
    [
        ("", "0123", False),
        ("", "4567", True),
        ("--max-length 9", "0123", True),
        ("--no-titles", "0123", True),
        ("--depth 1", "0123", True),
    ],
)
def test_scores_are_kept_until_they_are_reported_if_they_are_of_the_same(
    collection, calls, tmp_path, monkeypatch, options, digest, again
):
    command = f"--model m --collection {collection} --run {tmp_path / 'run.trec'} --output {tmp_path / 'o'}"
    with monkeypatch.context() as patch:

        def killed(*arguments):
            raise KeyboardInterrupt

        patch.setattr(eval.rerank, "report", killed)
        with pytest.raises(SystemExit):
            main(command.split())
    calls.clear()
    monkeypatch.setattr(eval.rerank.CrossEncoder, "digest", digest)
    main(f"{command} {options}".split())
    assert any(call[0] != "model" for call in calls) == again
    assert (tmp_path / "o" / "metrics.json").is_file() and not (tmp_path / "o" / ".scores").exists()


def test_titles_stand_where_the_model_learnt_them(collection, calls, tmp_path, monkeypatch):
    """The query is of a word in a passage's title, and of one in its text."""
    queries = collection / "queries.dev.tsv"
    queries.write_text(queries.read_text().replace("10\t", "10\tpets ", 1))
    found = []
    for learnt, option in ((True, ""), (True, "--no-titles"), (False, ""), (False, "--titles")):
        monkeypatch.setattr(eval.rerank.CrossEncoder, "titles", learnt)
        output = tmp_path / f"o{learnt}{option}"
        main(f"--model m --collection {collection} --run {tmp_path / 'run.trec'} --output {output} {option}".split())
        scores = dict(line.rsplit("\t", 1) for line in (output / "scores.tsv").read_text().splitlines())
        found.append((json.loads((output / "metrics.json").read_text())["titles"], float(scores["10\t0"])))
    assert found == [(True, 2.5), (False, 1.5), (False, 1.5), (True, 2.5)]


@pytest.mark.parametrize(
    "run, arguments, message",
    [
        (RUN.replace("Q0 1 2", "Q0 7 2"), "", "has no passage '7'; take a run of this collection"),
        ("12 Q0 0 1 3.0 first\n", "", "none of its queries is judged in the split 'dev'"),
        (RUN, "--split test", "no qrels of a split 'test'"),
    ],
)
def test_what_cannot_be_reranked_is_refused(run, arguments, message, collection, tmp_path, capsys):
    (tmp_path / "run.trec").write_text(run)
    command = f"--model m --collection {collection} --run {tmp_path / 'run.trec'} --output {tmp_path / 'o'} {arguments}"
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
