"""The command from end to end, with an encoder of which the right answers are known."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

import eval.msmarco
import eval.retriever
from eval import published
from eval.msmarco import main
from retromae_jax.data.retrieval import load_passages
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.retrieval.embeddings import encode_to_disk

VOCABULARY = ["cats", "purr", "dogs", "bark", "apples", "fall", "fruit", "pets"]
SPECIAL = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Word counts in place of a model; records what was asked for, and the texts that came."""
    calls = []
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + VOCABULARY)}, "[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens(SPECIAL)
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])

    class WordCounts:
        name, compute_dtype, platform, devices, digest = "jax", "float32", "cpu", 1, "counts"
        source, dimension = SimpleNamespace(directory="counts"), len(VOCABULARY)
        tokenizer = SimpleNamespace(backend_tokenizer=words, pad_token_id=2)

        def __init__(self, settings):
            self.settings = settings

        def embed(self, token_ids, lengths):
            texts = [ids[:length].tolist() for ids, length in zip(token_ids, lengths, strict=True)]
            calls.extend(words.decode(ids[1:-1], skip_special_tokens=False) for ids in texts)
            return np.array([np.bincount(ids, minlength=12)[4:] for ids in texts], np.float32)

    class Encoders:
        @classmethod
        def from_pretrained(cls, model, compute_dtype, dimension, backend, **changes):
            changes = {name: value for name, value in changes.items() if value is not None}
            calls.append((model, compute_dtype, dimension, backend, changes))
            encoder = WordCounts(dataclasses.replace(EncoderSettings("mean", False, 24), **changes))
            return SimpleNamespace(query=encoder, passage=encoder)

    monkeypatch.setattr(eval.msmarco, "open_model", lambda model: None)
    monkeypatch.setattr(eval.retriever, "Encoders", Encoders)
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
    assert [(values["query"], values["text"], values["MRR@10"]) for values in written.per_query] == [
        ("10", "cats purr", 1.0),
        ("11", "apples fall fruit", 0.5),
    ]
    metrics = written.metrics
    assert metrics["metrics"] == {
        "MRR@10": 0.75,
        "Recall@50": 1.0,
        "Recall@100": 1.0,
        "nDCG@10": pytest.approx((1 + 1 / np.log2(3)) / 2),
        "MAP": 0.75,
    }
    # Of two queries drawn from two, both are the first, or the second, in a quarter of the cases.
    assert metrics["intervals"]["MRR@10"] == [0.5, 1.0] and metrics["intervals"]["Recall@50"] == [1.0, 1.0]
    assert (metrics["queries"], metrics["passages"], metrics["split"]) == (2, 4, "dev")
    assert (metrics["passages_file"], metrics["titles"]) == ("corpus.tsv", False)
    assert metrics["settings"]["model"] == "models/mine/"
    assert metrics["seconds"].keys() == {"encode", "search"}
    assert sorted(path.name for path in output.iterdir()) == [
        "metrics.json",
        "per_query.jsonl",
        "report.html",
        "run.trec",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "animals, dev: 2 queries, 4 passages of corpus.tsv without titles"
    assert printed[2].split() == ["system", "MRR@10", "Recall@100", "nDCG@10", "MAP"]
    assert re.split("  +", printed[4]) == [
        "mine",
        "0.7500 ± 0.2500",
        "1.0000 ± 0.0000",
        "0.8155 ± 0.1845",
        "0.7500 ± 0.2500",
    ]


def test_titles_and_defaults(collection, calls, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(f"--model models/mine --collection {collection}".split())
    assert calls[0] == ("models/mine", "float32", None, "jax", {})
    passages = ["pets cats purr", "pets dogs bark bark", "fruit fruit apples fall", "apples fall fall"]
    assert sorted(set(calls[1:])) == sorted([*passages, "cats purr", "apples fall fruit"])
    metrics = read(tmp_path / "runs/eval/animals-dev/mine").metrics
    assert metrics["titles"] is True
    assert metrics["metrics"]["MRR@10"] == 1.0
    assert metrics["metrics"]["Recall@1000"] == 1.0
    assert "4 passages of corpus.tsv with titles" in capsys.readouterr().out


def test_settings_reach_the_encoder(collection, calls, tmp_path):
    arguments = (
        "--query-max-length 5 --passage-max-length 7 --batch-size 3 --compute-dtype bfloat16 --pooling mean "
        "--no-normalize --title-separator [SEP] --dimension 6 --query-prompt purr --passage-prompt bark --encoder torch"
    )
    main(f"--model m --collection {collection} --output {tmp_path / 'o'} {arguments}".split())
    changes = {
        "query_max_length": 5,
        "max_length": 7,
        "query_prompt": "purr",
        "passage_prompt": "bark",
        "title_separator": "[SEP]",
        "pooling": "mean",
        "normalize": False,
    }
    assert calls[0] == ("m", "bfloat16", 6, "torch", changes)
    # The prompt is a word with the one behind it, which is unknown; of the longest texts, the end is cut off.
    assert "[UNK] [SEP] cats purr" in calls and "[UNK] fall fruit" in calls
    settings = read(tmp_path / "o").metrics["settings"]
    assert settings["query_prompt"] == "purr" and settings["passage_max_length"] == 7


def test_stored_embeddings_are_searched_if_they_are_of_this_model_and_collection(collection, calls, tmp_path, capsys):
    output = tmp_path / "o"
    stored = encode_to_disk_of(collection, tmp_path / "stored")
    before = len(calls)
    main(f"--model m --collection {collection} --output {output} --embeddings {stored}".split())
    assert set(calls[before + 1 :]) == {"cats purr", "apples fall fruit"}
    assert read(output).metrics["metrics"]["MRR@10"] == 1.0
    assert read(output).metrics["settings"]["embeddings"] == str(stored)
    for changed, message in (
        (
            "--passage-max-length 7",
            "holds other embeddings: max_length (there 24, here 7); take the embeddings of this",
        ),
        ("--no-titles", "titles (there True, here False); title_separator (there ' ', here '')"),
        (f"--embeddings {tmp_path / 'none'}", "none: no embeddings there, it has no embeddings.json; make them with"),
    ):
        with pytest.raises(SystemExit):
            main(f"--model m --collection {collection} --output {output} --embeddings {stored} {changed}".split())
        assert message in capsys.readouterr().err
    with (collection / "corpus.tsv").open("a") as file:
        file.write("4\t\tapples\n")
    with pytest.raises(SystemExit):
        main(f"--model m --collection {collection} --output {output} --embeddings {stored}".split())
    assert "count (there 4, here 5); corpus with other content" in capsys.readouterr().err


@pytest.mark.parametrize("killed_in", ["eval.retriever.Retriever.search_on_all_hosts", "eval.msmarco.report"])
def test_a_killed_command_goes_on_with_its_embeddings(collection, calls, tmp_path, monkeypatch, killed_in):
    command = f"--model m --collection {collection} --output {tmp_path / 'o'}".split()

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(killed_in, killed)
        with pytest.raises(SystemExit):
            main(command)
    assert "pets cats purr" in calls
    calls.clear()
    main(command)
    assert set(calls[1:]) == {"cats purr", "apples fall fruit"}
    assert read(tmp_path / "o").metrics["metrics"]["MRR@10"] == 1.0
    assert not (tmp_path / "o" / ".embeddings").exists()
    # Others are made anew.
    with monkeypatch.context() as patch:
        patch.setattr(killed_in, killed)
        with pytest.raises(SystemExit):
            main(command)
    main([*command, "--no-titles"])
    assert "dogs bark bark" in calls


def encode_to_disk_of(collection, directory):
    """The fixture's embeddings of a collection, stored."""
    encoder = eval.retriever.Encoders.from_pretrained("m", "float32", None, "jax").passage
    encode_to_disk(encoder, load_passages(collection), "passage", directory, "float16")
    return directory


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


def test_an_approximate_search_says_how_much_it_finds(collection, calls, tmp_path):
    arguments = "--no-titles --depth 1 --search hnsw:M=8,efSearch=50"
    main(f"--model m --collection {collection} --output {tmp_path / 'o'} {arguments}".split())
    settings = read(tmp_path / "o").metrics["settings"]
    assert (settings["search"], settings["search_recall"]) == ("hnsw:M=8,efSearch=50", 1.0)
