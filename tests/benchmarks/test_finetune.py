"""The benchmark's machinery, and that both systems compute the same; nothing is timed."""

import json

import pytest

from benchmarks.finetune import losses, main, model_directory, summary
from benchmarks.rounds import compare
from benchmarks.texts import load_groups
from benchmarks.worker import FinetuningTask
from retromae_jax.errors import InputError
from tests.conftest import FAST_COMPILING

TEXTS = [
    "the heart pumps blood through the body",
    "the heart of a whale pumps slowly",
    "cardiomyopathy weakens the muscle of the heart",
    "lungs take oxygen from the air to the blood",
    "the liver cleans blood",
    "bones carry the body and its muscle",
]
QUERIES = ["what pumps blood", "whale heart", "what muscle of the heart", "the oxygen of the air", "what cleans blood"]


@pytest.fixture
def data(tmp_path):
    """A directory with one collection; the first query has two relevant passages."""
    directory = tmp_path / "squad_dev"
    (directory / "qrels").mkdir(parents=True)
    passages = [json.dumps({"_id": f"p{n}", "title": "", "text": text}) for n, text in enumerate(TEXTS)]
    queries = [json.dumps({"_id": f"q{n}", "text": text}) for n, text in enumerate(QUERIES)]
    judged = ["query-id\tcorpus-id\tscore", "q0\tp0\t1", "q0\tp1\t1", *(f"q{n}\tp{n}\t1" for n in range(1, 5))]
    for name, lines in (("corpus.jsonl", passages), ("queries.jsonl", queries), ("qrels/train.tsv", judged)):
        (directory / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_query_has_its_passage_and_what_else_bm25_finds(data):
    groups = load_groups("squad_dev", data, 7, group_size=3, seed=0)
    assert groups[5:] == groups[:2]  # they repeat
    by_query = {query: passages for query, *passages in groups}
    assert sorted(by_query) == sorted(QUERIES)
    for number, query in enumerate(QUERIES):
        positive, *negatives = by_query[query]
        assert positive == TEXTS[number]
        assert len({positive, *negatives}) == 3
        assert all(set(query.split()) & set(text.split()) for text in negatives)
    assert TEXTS[1] not in by_query[QUERIES[0]]  # relevant, too


def test_missing_collections_are_named(data):
    with pytest.raises(InputError, match=r"medquad: the collection does not exist; --data DIR"):
        load_groups("medquad", data, 1, 2, seed=0)
    with pytest.raises(InputError, match="no query has 6 passages that share a word"):
        load_groups("squad_dev", data, 1, 7, seed=0)


def test_more_threads_than_cores_are_refused(data, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(data), "--threads", "100000"])
    assert "--threads 100000: this machine has" in capsys.readouterr().err


def test_ratios_are_taken_within_each_round_and_losses_side_by_side():
    ours = {
        "system": "retromae_jax",
        "seconds": [1.0, 4.0, 2.0],
        "tokens_per_second": [80.0, 20.0, 40.0],
        "peak_megabytes": 500.0,
        "losses": [2.0, 1.0],
    }
    theirs = {**ours, "system": "sentence_transformers", "seconds": [3.0, 8.0, 8.0], "peak_megabytes": 2000.0}
    theirs["losses"] = [2.0, 1.5]
    row, baseline = summary([ours, theirs], pairs=8)
    assert (row["pairs/s"], row["least"], row["most"], row["tokens/s"]) == ("4.00", "2.00", "8.00", 40)
    assert (row["speed ratio"], row["memory ratio"]) == (3.0, 0.25)
    assert (baseline["speed ratio"], baseline["memory ratio"]) == (1.0, 1.0)
    assert "speed ratio" not in summary([ours], pairs=8)[0]
    expected = {"step": 2, "retromae_jax": "1.000000", "sentence_transformers": "1.500000", "difference": "5.0e-01"}
    assert losses([ours, theirs])[1] == expected


@pytest.mark.long
@pytest.mark.parametrize("chunk", [0, 2])
def test_both_systems_compute_the_same_losses(minilm_directory, data, monkeypatch, tmp_path, chunk):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILING)  # one device
    task = FinetuningTask(
        texts=load_groups("squad_dev", data, 8, group_size=2, seed=0),
        batch_size=4,
        max_length=16,
        threads=1,
        seed=0,
        model=str(model_directory("tiny", minilm_directory, tmp_path)),
        temperature=0.05,
        chunk=chunk,
        dropout=0.0,
    )
    ours, theirs = compare(task, ["retromae_jax", "sentence_transformers"], rounds=2)
    assert len(ours["losses"]) == 2
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
