"""The command on small datasets, with vectors of which the right answers are known, beside the package `beir`."""

import json
import re
import shutil
import zlib
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest

from eval import beir, msmarco, published
from eval.beir import CQADUPSTACK_PARTS, DATASETS, main, without_own
from retromae_jax.encoder import Encoder
from retromae_jax.models.pooling import EncoderSettings
from tests.eval.datasets import write_dataset

WIDTH = 64


def vectors(texts):
    """A vector for each text, in which each word adds to two of the dimensions."""
    found = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            number = zlib.crc32(word.encode())
            found[row, [number % WIDTH, number // WIDTH % WIDTH]] += (1, -0.3)
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)


class Searched(list):
    """How many passages were searched, dataset by dataset; and the weights, which have a digest."""


@pytest.fixture
def searched(monkeypatch):
    """Vectors of words in place of a model's."""
    weights, searched = SimpleNamespace(digest="0123"), Searched()

    class Retriever:
        def __init__(self, arguments):
            assert arguments.query_max_length == 24
            self.encoders = SimpleNamespace(query=weights, passage=weights)
            self.settings = {"model": arguments.model, "pooling": arguments.pooling}
            self.titles = arguments.titles

        def content(self, passages):
            return ""

        def index(self, passages, directory, hosts_searching):
            self.passages = vectors(passages.texts(self.titles)[:])
            searched.append(len(passages))

        def search_on_all_hosts(self, queries, k, directory):
            scores = vectors(queries) @ self.passages.T
            found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            missing = ((0, 0), (0, k - found.shape[1]))
            return (
                np.pad(np.take_along_axis(scores, found, axis=1), missing, constant_values=-np.inf),
                np.pad(found, missing, constant_values=-1),
            )

    source = SimpleNamespace(of_kind=lambda kind: SimpleNamespace(settings=EncoderSettings("cls", False, 24)))
    monkeypatch.setattr(beir, "open_model", lambda model: source)
    monkeypatch.setattr(beir.retriever, "Retriever", Retriever)
    searched.weights = weights
    return searched


def small(directory, relevant="1"):
    """A dataset in which 1 is found first for the query a, and 2 second."""
    passages = [
        {"_id": str(number), "title": "", "text": text} for number, text in enumerate(["x", "cats", "cats dogs"])
    ]
    write_dataset(directory, passages, [{"_id": "a", "text": "cats"}], [("a", relevant, 1)])


@pytest.fixture
def flawed(retrieval_data, tmp_path):
    """A real dataset with the flaws that published ones have.

    Ids of queries that are ids of passages, judged ones among them; passages that the corpus lacks; an id with quotes
    in it; a query without a relevant passage; a grade below 0; a passage without text.
    """
    directory = tmp_path / "flawed"
    shutil.copytree(retrieval_data / "cranfield", directory)
    corpus = directory / "corpus.jsonl"
    quoted = 'the_"boundary"_layer'
    added = [{"_id": quoted, "title": "", "text": "boundary layer flow"}, {"_id": "empty", "title": "", "text": ""}]
    corpus.write_text(corpus.read_text() + "".join(f"{json.dumps(record)}\n" for record in added))
    qrels = directory / "qrels" / "test.tsv"
    header, *lines = qrels.read_text().splitlines()
    first, last = lines[0].split("\t")[0], lines[-1].split("\t")[0]
    lines = [line if line.split("\t")[0] != last else f"{line.rsplit(chr(9), 1)[0]}\t0" for line in lines]
    lines += [f"{first}\tlost-{number}\t1" for number in range(3)]
    lines += [f"{first}\t{first}\t2", f"{first}\tempty\t-1", f'{first}\t"the_""boundary""_layer"\t2']
    qrels.write_text("\n".join([header, *lines]) + "\n")
    return directory


# The package leaves files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_equal_to_the_package_beir_with_the_same_vectors(flawed, searched, tmp_path, capsys):
    pytest.importorskip("beir")
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    class Model:
        def encode_queries(self, queries, **_):
            return vectors(queries)

        def encode_corpus(self, corpus, **_):
            return vectors([f"{passage['title']} {passage['text']}" for passage in corpus])

    corpus, queries, qrels = GenericDataLoader(str(flawed)).load(split="test")
    theirs = EvaluateRetrieval(DenseRetrievalExactSearch(Model()), k_values=[10, 100], score_function="dot")
    results = theirs.retrieve(corpus, queries)
    ndcg, means, recall, _ = theirs.evaluate(qrels, results, theirs.k_values)

    main(f"--model m --dataset {flawed} --depth 100 --output {tmp_path / 'o'}".split())
    written = json.loads((tmp_path / "o" / "flawed" / "metrics.json").read_text())
    for name, value in (("nDCG@10", ndcg["NDCG@10"]), ("Recall@100", recall["Recall@100"]), ("MAP", means["MAP@100"])):
        assert written["metrics"][name] == pytest.approx(value, abs=6e-6)  # they round to 5 digits
    assert 0.05 < ndcg["NDCG@10"] < 0.5
    printed = capsys.readouterr()
    assert "test.tsv: 3 lines of 1," in printed.err and "have a passage that corpus.jsonl lacks" in printed.err
    assert re.search(r"flawed: \d+ queries are judged with a passage of their own id, which is left out", printed.err)


def test_table_and_mean_beside_published_scores(searched, tmp_path, capsys):
    data = tmp_path / "data"
    small(data / "scifact")
    small(data / "quora", relevant="2")
    for part in CQADUPSTACK_PARTS:
        small(data / "cqadupstack" / part, relevant="1" if part < "h" else "2")
    main(f"--model models/mine --data {data} --output {tmp_path / 'o'}".split())
    assert len(searched) == 14
    second = 1 / np.log2(3)
    parts = (4 + 8 * second) / 12
    printed = capsys.readouterr()
    rows = {line.split("  ")[0]: line.split()[-7:] for line in printed.out.split("BEIR, test: mine")[1].splitlines()}
    assert rows["cqadupstack"] == ["12", "36", f"{parts:.4f}", "1.0000", "0.2820", "0.3470", "0.3170"]
    assert rows["quora"] == ["1", "3", f"{second:.4f}", "1.0000", "0.7870", "0.8530", "0.8470"]
    retromae = (0.317 + 0.847 + 0.653) / 3
    assert rows["mean of 3"][-5:-3] == [f"{fmean([1, second, parts]):.4f}", "1.0000"]
    assert float(rows["mean of 3"][-1]) == pytest.approx(retromae, abs=5e-5)
    assert "published nDCG@10 on these datasets, not measured here" in printed.out
    assert f"not measured, because not in {data}: trec-covid, bioasq, nfcorpus, nq, " in printed.err
    summary = json.loads((tmp_path / "o" / "beir.json").read_text())
    assert summary["datasets"]["cqadupstack"]["nDCG@10"] == pytest.approx(parts)
    # In BEIR's order.
    assert list(summary["datasets"]) == ["cqadupstack", "quora", "scifact"]
    assert (tmp_path / "o" / "cqadupstack" / "android" / "run.trec").is_file()


def test_a_mean_of_other_datasets_has_no_published_one_beside_it(searched, tmp_path, capsys):
    small(tmp_path / "data" / "scifact")
    small(tmp_path / "mine")
    main(
        f"--model m --data {tmp_path / 'data'} --dataset scifact {tmp_path / 'mine'} --output {tmp_path / 'o'}".split()
    )
    rows = {line.split("  ")[0]: line.split()[-3:] for line in capsys.readouterr().out.splitlines()}
    assert rows["scifact"] == ["0.5330", "0.5930", "0.6530"]
    assert rows["mine"] == rows["mean of 2"] == ["-", "-", "-"]


def test_another_split_is_no_published_one_and_has_a_directory_of_its_own(searched, tmp_path, monkeypatch, capsys):
    small(tmp_path / "scifact")
    (tmp_path / "scifact" / "qrels" / "test.tsv").rename(tmp_path / "scifact" / "qrels" / "dev.tsv")
    monkeypatch.chdir(tmp_path)
    main(["--model", "m", "--dataset", "scifact", "--split", "dev"])
    assert "published" not in capsys.readouterr().out
    assert (tmp_path / "runs" / "eval" / "beir-dev" / "m" / "beir.json").is_file()


def test_a_passage_that_is_not_there_has_no_text_in_the_report(searched, tmp_path):
    small(tmp_path / "mine")
    with (tmp_path / "mine" / "qrels" / "test.tsv").open("a") as file:
        file.write("a\tlost\t1\n")
    main(f"--model m --dataset {tmp_path / 'mine'} --output {tmp_path / 'o'}".split())
    page = (tmp_path / "o" / "mine" / "report.html").read_text()
    assert "<td>lost</td><td></td>" in page and "<td>1</td><td>cats</td>" in page


def test_what_is_measured_in_the_same_way_is_not_measured_again(searched, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    small(data / "quora")
    small(data / "scifact")
    command = f"--model m --data {data} --output {tmp_path / 'o'}"
    with monkeypatch.context() as patch:
        patch.setattr(beir, "report", lambda *arguments: report(*arguments) if len(searched) < 2 else interrupt())
        report, interrupt = msmarco.report, lambda: (_ for _ in ()).throw(RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            main(command.split())
    main(command.split())
    assert len(searched) == 3
    means = json.loads((tmp_path / "o" / "beir.json").read_text())["mean"]
    main(command.split())
    assert len(searched) == 3
    assert f"{data / 'scifact'}: measured already in the same way" in capsys.readouterr().err
    assert json.loads((tmp_path / "o" / "beir.json").read_text())["mean"] == means

    # The same weights elsewhere are the same model; other weights, settings or files are not.
    main(f"{command.replace('--model m', '--model elsewhere')}".split())
    assert len(searched) == 3
    for change in ("--pooling mean", "--no-titles", "--depth 200"):
        main(f"{command} {change} --dataset scifact".split())
    assert len(searched) == 6
    shutil.rmtree(data / "quora")
    small(data / "quora", relevant="22")
    with pytest.raises(SystemExit):
        main(f"{command} --dataset quora".split())
    assert "have a passage that" in capsys.readouterr().err
    searched.weights.digest = "4567"
    main(f"{command} --dataset scifact".split())
    assert len(searched) == 7


def test_mistakes_show_before_anything_is_encoded(searched, tmp_path, capsys):
    data = tmp_path / "data"
    small(data / "scifact")
    small(data / "cqadupstack" / "android")
    small(tmp_path / "scifact")
    for arguments, message in [
        ("", "neither --data nor --dataset says what to measure"),
        (f"--data {tmp_path}/data/scifact", "no directory there has the name of one of BEIR's datasets, trec-covid,"),
        (f"--data {data} --dataset scifact signal1m", "signal1m is behind a licence: apply at https://research.signal"),
        (f"--data {data} --dataset fiqa", f"fetch it: python -m eval.downloads fiqa --to {data}"),
        (f"--data {data} --dataset sciFact", "'sciFact' is neither a directory nor a dataset of --data"),
        (f"--data {data} --dataset scifact {tmp_path / 'scifact'}", "of the name 'scifact' is to be measured already"),
        (f"--data {data} --dataset cqadupstack", "CQADupStack's english, gaming, gis, mathematica"),
        (f"--data {data} --dataset scifact --split dev", "no qrels of a split 'dev'"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(["--model", "m", *arguments.split()])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--model", "m", "--depth", "99"])
    assert searched == []


def test_without_own():
    scores = np.array([[4, 3, 2], [4, 3, 2], [4, 3, -np.inf]], np.float32)
    indices = np.array([[7, 8, 9], [7, 8, 9], [7, 8, -1]])
    kept_scores, kept = without_own(scores, indices, np.array([8, -1, 7]))
    np.testing.assert_array_equal(kept, [[7, 9], [7, 8], [8, -1]])
    np.testing.assert_array_equal(kept_scores, [[4, 2], [4, 3], [3, -np.inf]])


def test_published_scores_have_the_quoted_means():
    assert len(DATASETS) == 18
    means = [fmean(column) for column in zip(*published.BEIR.values(), strict=True)]
    assert [round(mean, 3) for mean in means] == [0.371, 0.407, 0.452]


def test_a_real_model(minilm_directory, meaning, tmp_path, capsys):
    """The same weights in another directory are the same model."""
    shutil.copytree(minilm_directory, tmp_path / "copy")
    command = f"--dataset {meaning} --batch-size 8 --output {tmp_path / 'o'} --model"
    main([*command.split(), str(minilm_directory)])
    written = json.loads((tmp_path / "o" / "meaning" / "metrics.json").read_text())
    assert written["settings"]["query_max_length"] == written["settings"]["passage_max_length"] == 256
    # The last query's only relevant passage has its own id.
    assert written["metrics"]["nDCG@10"] == pytest.approx(2 / 3)
    main([*command.split(), str(tmp_path / "copy")])
    assert "measured already" in capsys.readouterr().err


def test_a_killed_command_goes_on_with_its_embeddings(small_encoder_directory, meaning, tmp_path, monkeypatch):
    command = f"--model {small_encoder_directory} --dataset {meaning} --output {tmp_path / 'o'}".split()
    batches, embed = [], Encoder.embed

    def counting(encoder, token_ids, lengths):
        batches.append(lengths)
        return embed(encoder, token_ids, lengths)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "embed", counting)
    with monkeypatch.context() as patch:
        patch.setattr(beir, "report", killed)
        with pytest.raises(SystemExit):
            main(command)
    assert len(batches) == 2  # one of the passages, one of the queries
    main(command)
    assert len(batches) == 3
    np.testing.assert_array_equal(batches[2], batches[1])
    assert not (tmp_path / "o" / "meaning" / ".embeddings").exists()
