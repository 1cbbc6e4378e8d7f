"""The whole chain by its commands: each stage works with the files that the one before it has left."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from retromae_jax.data.retrieval import load_collection
from train import demo_data

PASSAGES = 300


@pytest.fixture
def directory(tmp_path, demo_packages, monkeypatch):
    """The current directory, with the demo's data, of whose collection a part is left."""
    monkeypatch.chdir(tmp_path)
    demo = Path("build", "demo")
    demo_data.make_demo_data(demo)
    collection = demo / "collection"
    corpus = (collection / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:PASSAGES]
    (collection / "corpus.jsonl").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    for qrels in (collection / "qrels").iterdir():
        header, *lines = qrels.read_text().splitlines()
        kept = [line for line in lines if int(line.split("\t")[1]) < PASSAGES]
        qrels.write_text("\n".join([header, *kept]) + "\n")
    shutil.copyfile(collection / "corpus.jsonl", demo / "text.jsonl")
    return tmp_path


@pytest.fixture
def run(directory, monkeypatch):
    """Runs a command as its command line does; recipes are the tiny variants of the project's."""
    configs = Path(demo_data.__file__).parents[1] / "configs"

    def run(command, *arguments, recipe="", **settings):
        if recipe:
            arguments = ("--config", f"{configs / recipe}.py:tiny")
            arguments += tuple(f"--config.{key}={value}" for key, value in settings.items())
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        importlib.import_module(command).main()

    return run


def negatives_of(path):
    return {query: ids.split(",") for query, ids in (line.split("\t") for line in path.read_text().splitlines())}


@pytest.mark.long
def test_from_text_to_a_distilled_encoder_and_a_cross_encoder(run):
    steps = {"num_steps": 2, "log_every": 1, "checkpoint_every": 2}
    on_collection = ("--collection", "build/demo/collection")
    short = ("--query-max-length", 16, "--passage-max-length", 32)
    judged = load_collection("build/demo/collection", "train").qrels
    passages = {str(number) for number in range(PASSAGES)}

    def checked(path):
        """Negatives of every query to train on, none of them relevant."""
        negatives = negatives_of(path)
        assert negatives.keys() <= judged.keys() and len(negatives) > 0.9 * len(judged)
        for query, ids in negatives.items():
            assert set(ids) <= passages - judged[query].keys() and len(set(ids)) == len(ids)
        return negatives

    run("train.prepare", recipe="wiki", workers=1)
    run("train.pretrain", recipe="wiki", workdir="pretrained", evaluate_every=2, **steps)

    run("eval.mine", "--bm25", *on_collection, "--output", "bm25_negatives.tsv")
    checked(Path("bm25_negatives.tsv"))
    finetuning = {"init": "pretrained", **steps}
    run("train.finetune", recipe="msmarco", workdir="first", negatives="bm25_negatives.tsv", **finetuning)

    run("train.export", "--from", "first", "--to", "exported/first")
    mining = ("--model", "exported/first", *short, "--negatives", 3)
    run("eval.mine", *mining, *on_collection, "--output", "mined_negatives.tsv")
    mined = checked(Path("mined_negatives.tsv"))
    assert mined.keys() == judged.keys() and {len(ids) for ids in mined.values()} == {3}
    nested = {"matryoshka_dims": "32,8", **finetuning}
    run("train.finetune", recipe="msmarco", workdir="second", negatives="mined_negatives.tsv", **nested)
    evaluated = (*short, *on_collection, "--split", "test", "--depth", 100)
    run("eval.msmarco", "--model", "second", *evaluated, "--output", "eval/second")
    run("eval.msmarco", "--model", "second", *evaluated, "--dimension", 8, "--output", "eval/second_short")
    short_settings = json.loads(Path("eval", "second_short", "metrics.json").read_text())["settings"]
    assert short_settings["dimension"] == 8
    runs = [Path("eval", name, "run.trec").read_text() for name in ("second", "second_short")]
    assert runs[0] != runs[1]

    run("train.rerank", recipe="rerank", workdir="reranker", negatives="mined_negatives.tsv", **finetuning)
    run("train.export", "--from", "reranker", "--to", "exported/reranker")
    scoring = ("--model", "exported/reranker", *on_collection)
    run("eval.rerank", *scoring, "--split", "train", "--pairs", "mined_negatives.tsv", "--output", "teacher")
    scores = [line.split("\t")[:2] for line in Path("teacher", "scores.tsv").read_text().splitlines()]
    assert len(scores) == sum(len(judged[query]) + len(ids) for query, ids in mined.items())
    assert {(query, passage) for query, passage in scores} == {
        (query, passage) for query, ids in mined.items() for passage in (*judged[query], *ids)
    }
    ranked = ("--split", "test", "--run", "eval/second/run.trec", "--depth", 10)
    run("eval.rerank", *scoring, *ranked, "--output", "eval/reranked")

    teacher = {"negatives": "mined_negatives.tsv", "teacher_scores": "teacher/scores.tsv"}
    run("train.finetune", recipe="msmarco_distill", workdir="distilled", **teacher, **finetuning)
    lines = [json.loads(line) for line in Path("distilled", "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(line["distillation_loss"] > 0 for line in lines)
    run("train.export", "--from", "distilled", "--to", "exported/distilled")
    run("eval.msmarco", "--model", "exported/distilled", *evaluated, "--output", "eval/distilled")

    queries = load_collection("build/demo/collection", "test").queries
    for name, depth in (("second", 100), ("second_short", 100), ("reranked", 10), ("distilled", 100)):
        found = [line.split()[0] for line in Path("eval", name, "run.trec").read_text().splitlines()]
        assert {query: found.count(query) for query in queries} == dict.fromkeys(queries, depth)
        measured = json.loads(Path("eval", name, "metrics.json").read_text())
        wanted = {"MRR@10", "nDCG@10"} | ({"Recall@100"} if depth == 100 else set())
        assert measured["queries"] == len(queries) > 5 and wanted <= measured["metrics"].keys()
        assert all(0 <= value <= 1 for value in measured["metrics"].values())
        # Models of two steps find about what chance does, in a collection of this size: not nothing.
        assert depth < 100 or measured["metrics"]["Recall@100"] > 0
