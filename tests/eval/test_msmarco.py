"""The command from end to end, with an encoder of which the right answers are known."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval.msmarco
import eval.retriever
from eval import published
from eval.msmarco import main
from retromae_jax.models.pooling import EncoderSettings

VOCABULARY = ["cats", "purr", "dogs", "bark", "apples", "fall", "fruit", "pets"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Word counts in place of a model; records what was asked for."""
    calls = []

    class WordCounts:
        dimension, max_length = len(VOCABULARY), 24
        settings = EncoderSettings("mean", False, max_length)

    class Encoders:
        query = passage = WordCounts()

        @classmethod
        def from_pretrained(cls, model, pooling=None, normalize=None, compute_dtype="float32", dimension=None):
            calls.append(("model", model, pooling, normalize, compute_dtype, dimension))
            return cls()

    def encode(encoder, texts, max_length, batch_size, task, directory=None):
        texts = texts[:]
        calls.append((task, texts, max_length, batch_size))
        return np.array([[text.split().count(word) for word in VOCABULARY] for text in texts], np.float32)

    monkeypatch.setattr(eval.msmarco, "open_model", lambda model: None)
    monkeypatch.setattr(eval.retriever, "Encoders", Encoders)
    monkeypatch.setattr(eval.retriever, "encode_on_all_hosts", encode)
    monkeypatch.setattr(eval.retriever, "encode_texts", encode)
    return calls


def read(output: Path) -> SimpleNamespace:
    return SimpleNamespace(
        run=(output / "run.trec").read_text().splitlines(),
        metrics=json.loads((output / "metrics.json").read_text()),
        per_query=[json.loads(line) for line in (output / "per_query.jsonl").read_text().splitlines()],
    )


def test_writes_run_and_scores(collection, calls, tmp_path, capsys):
    output = tmp_path / "results"
    main(f"--model models/mine/ --collection {collection} --output {output} --no-titles --depth 100".split())
    written = read(output)
    assert written.run[:4] == [
        "10 Q0 0 1 2.0 mine",
        "10 Q0 3 2 0.0 mine",
        "10 Q0 2 3 0.0 mine",
        "10 Q0 1 4 0.0 mine",
    ]
    assert written.run[4:6] == ["11 Q0 3 1 3.0 mine", "11 Q0 2 2 2.0 mine"]
    assert [(values["query"], values["MRR@10"]) for values in written.per_query] == [("10", 1.0), ("11", 0.5)]
    metrics = written.metrics
    assert metrics["metrics"] == {
        "MRR@10": 0.75,
        "Recall@50": 1.0,
        "Recall@100": 1.0,
        "nDCG@10": pytest.approx((1 + 1 / np.log2(3)) / 2),
        "MAP": 0.75,
    }
    assert (metrics["queries"], metrics["passages"], metrics["split"]) == (2, 4, "dev")
    assert (metrics["passages_file"], metrics["titles"]) == ("corpus.tsv", False)
    assert metrics["settings"]["model"] == "models/mine/"
    assert metrics["seconds"].keys() == {"encode", "search"}
    assert sorted(path.name for path in output.iterdir()) == ["metrics.json", "per_query.jsonl", "run.trec"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "animals, dev: 2 queries, 4 passages of corpus.tsv without titles"
    assert printed[1].split() == ["system", "MRR@10", "Recall@100", "nDCG@10", "MAP"]
    assert printed[3].split() == ["mine", "0.7500", "1.0000", "0.8155", "0.7500"]


def test_titles_and_defaults(collection, calls, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(f"--model models/mine --collection {collection}".split())
    assert calls == [
        ("model", "models/mine", None, None, "float32", None),
        (
            "passages",
            ["pets cats purr", "pets dogs bark bark", "fruit fruit apples fall", "apples fall fall"],
            24,
            64,
        ),
        ("queries", ["cats purr", "apples fall fruit"], 24, 64),
    ]
    metrics = read(tmp_path / "runs/eval/animals-dev/mine").metrics
    assert metrics["titles"] is True
    assert metrics["metrics"]["MRR@10"] == 1.0
    assert metrics["metrics"]["Recall@1000"] == 1.0
    assert "4 passages of corpus.tsv with titles" in capsys.readouterr().out


def test_settings_reach_the_encoder(collection, calls, tmp_path):
    arguments = (
        "--query-max-length 5 --passage-max-length 7 --batch-size 3 --compute-dtype bfloat16 --pooling mean "
        "--no-normalize --title-separator [SEP] --dimension 6"
    )
    main(f"--model m --collection {collection} --output {tmp_path / 'o'} {arguments}".split())
    assert calls[0] == ("model", "m", "mean", False, "bfloat16", 6)
    assert calls[1][1][0] == "pets[SEP]cats purr"
    assert calls[1][2:] == (7, 3)
    assert calls[2][2:] == (5, 3)


def test_graded_judgements_of_trec(collection, calls, tmp_path):
    (collection / "2019qrels-pass.txt").write_text("10 Q0 0 1\n11 Q0 2 3\n11 Q0 3 1\n")
    (collection / "msmarco-test2019-queries.tsv").write_text("10\tcats purr\n11\tapples fall\n12\tnot judged\n")
    main(f"--model m --collection {collection} --split dl19 --output {tmp_path / 'o'} --no-titles".split())
    metrics = read(tmp_path / "o").metrics
    assert metrics["relevance_level"] == 2
    # A grade of 1 counts in nDCG only.
    assert metrics["metrics"]["MRR@10"] == pytest.approx((0 + 1 / 2) / 2)
    ndcg = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
    assert metrics["metrics"]["nDCG@10"] == pytest.approx((1 + ndcg) / 2)


@pytest.mark.parametrize(
    "split, measures, known",
    [
        ("dev", ["MRR@10", "Recall@1000"], ["RetroMAE, of MS MARCO, distilled", "0.4160", "0.9880", "README"]),
        ("dl19", ["nDCG@10"], ["RetroMAE, distilled", "0.6810", "RetroMAE v2"]),
    ],
)
def test_published_scores_beside_those_of_all_of_ms_marco(
    split, measures, known, collection, calls, tmp_path, monkeypatch, capsys
):
    (collection / "2019qrels-pass.txt").write_text("10 Q0 0 2\n")
    (collection / "msmarco-test2019-queries.tsv").write_text("10\tcats purr\n")
    command = f"--model models/mine --collection {collection} --split {split} --output {tmp_path / 'o'}".split()
    main(command)
    assert "published" not in capsys.readouterr().out
    monkeypatch.setattr(published, "MSMARCO_PASSAGES", 4)
    main(command)
    lines = capsys.readouterr().out.split(f"MS MARCO, {split}: published scores, which were not measured here")[1]
    header, _, *rows = [re.split(r"\s{2,}", line) for line in lines.splitlines()[1:]]
    assert header == ["system", *measures, "published in"]
    assert known in rows
    assert rows[-1][0] == "mine, with titles" and rows[-1][-1] == "-"
    assert "1.0000" in rows[-1]


def test_mistakes_show_before_the_model_is_loaded(collection, calls, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (f"--collection {collection} --split test", "no qrels of a split 'test'"),
        (f"--collection {tmp_path / 'empty'}", "no passages in BEIR's or MS MARCO's layout"),
        (f"--collection {collection} --output {blocked}", "cannot be written to"),
        (f"--collection {collection} --output {blocked / 'below'}", "cannot be written to"),
    ]:
        output = [] if "--output" in arguments else ["--output", str(tmp_path / "o")]
        with pytest.raises(SystemExit) as caught:
            main(["--model", "m", *arguments.split(), *output])
        assert caught.value.code == 2
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("error: ")
        assert message in errors[-1]
    assert calls == []
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "argument", ["--depth 0", "--batch-size -1", "--compute-dtype float16", "--query-max-length x"]
)
def test_wrong_arguments(argument, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--model", "m", "--collection", "c", *argument.split()])
    assert caught.value.code == 2
    assert argument.split()[0] in capsys.readouterr().err


def test_help_shows_the_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python -m eval.msmarco --model exported/ --collection" in shown
    assert "--passage-max-length" in shown


def test_real_encoder_finds_by_meaning(minilm_directory, tmp_path):
    """No query shares a word with its passage."""
    directory = tmp_path / "meaning"
    directory.mkdir()
    (directory / "collection.tsv").write_text(
        "a\tThe feline slept on a sofa.\nb\tShares fell sharply in New York.\nc\tHe fried two eggs and bacon.\n"
    )
    (directory / "queries.test.tsv").write_text("q1\tsleeping cat\nq2\tstock market crash\nq3\tcooking breakfast\n")
    (directory / "qrels.test.tsv").write_text("q1\t0\ta\t1\nq2\t0\tb\t1\nq3\t0\tc\t1\n")
    output = tmp_path / "o"
    main(f"--model {minilm_directory} --collection {directory} --split test --output {output} --batch-size 8".split())
    written = read(output)
    assert written.metrics["metrics"]["MRR@10"] == 1.0
    scores = [float(line.split()[4]) for line in written.run]
    assert len(scores) == 9
    assert max(map(abs, scores)) <= 1.0 + 1e-6

    # The first dimensions alone are other embeddings, again of length 1.
    arguments = f"--model {minilm_directory} --collection {directory} --split test --batch-size 8 --output {output}"
    main(f"{arguments} --dimension 64".split())
    shortened = read(output)
    assert shortened.metrics["settings"]["dimension"] == 64
    assert shortened.metrics["metrics"]["MRR@10"] == 1.0
    assert [float(line.split()[4]) for line in shortened.run] != scores
    assert max(abs(float(line.split()[4])) for line in shortened.run) <= 1.0 + 1e-6
    with pytest.raises(SystemExit):
        main(f"{arguments} --dimension 385".split())
