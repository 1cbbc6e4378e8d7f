"""What the packages `beir` and `mteb` compute with our encoders is what the command computes."""

import json

import numpy as np
import pytest

from eval.beir import main
from eval.wrappers import BeirModel, MtebModel
from retromae_jax.errors import InputError
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.retrieval.runs import read_run, write_run


@pytest.fixture
def measured(minilm_directory, meaning, tmp_path):
    """Run and scores of the command."""
    main(f"--model {minilm_directory} --dataset {meaning} --batch-size 8 --output {tmp_path / 'o'}".split())
    written = json.loads((tmp_path / "o" / "meaning" / "metrics.json").read_text())
    return read_run(tmp_path / "o" / "meaning" / "run.trec"), written["metrics"]


# The first package leaves files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_packages_agree(minilm_directory, meaning, measured, tmp_path):
    pytest.importorskip("beir")
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    run, metrics = measured
    corpus, queries, qrels = GenericDataLoader(str(meaning)).load(split="test")
    searcher = DenseRetrievalExactSearch(BeirModel(str(minilm_directory), batch_size=8))
    theirs = EvaluateRetrieval(searcher, score_function="dot")
    results = theirs.retrieve(corpus, queries)
    assert results.keys() == run.keys()
    for query, scores in results.items():
        assert scores == pytest.approx(run[query], abs=1e-5)
    # Runs go there and come back.
    for given in (results, read_run(tmp_path / "o" / "meaning" / "run.trec")):
        ndcg, _, recall, _ = EvaluateRetrieval.evaluate(qrels, given, [10, 100])
        assert (ndcg["NDCG@10"], recall["Recall@100"]) == pytest.approx(
            (metrics["nDCG@10"], metrics["Recall@100"]), abs=6e-6
        )
    write_run(tmp_path / "theirs.trec", results, "beir")
    assert read_run(tmp_path / "theirs.trec") == {query: pytest.approx(scores) for query, scores in results.items()}


def test_a_task_of_mteb(minilm_directory, meaning, measured):
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.models_protocols import EncoderProtocol

    def records(name):
        return [json.loads(line) for line in (meaning / f"{name}.jsonl").read_text().splitlines()]

    class Meaning(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Meaning",
            dataset={"path": "here", "revision": "1"},
            description="Queries that share no word with their passages.",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )
        ignore_identical_ids = True

        def load_data(self, **_):
            corpus, queries = (
                Dataset.from_list([{"id": record.pop("_id"), **record} for record in records(name)])
                for name in ("corpus", "queries")
            )
            lines = (meaning / "qrels" / "test.tsv").read_text().splitlines()[1:]
            qrels = {query: {passage: int(grade)} for query, passage, grade in map(str.split, lines)}
            split = {"corpus": corpus, "queries": queries, "relevant_docs": qrels, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    model = MtebModel(str(minilm_directory), batch_size=8)
    assert isinstance(model, EncoderProtocol)
    result = mteb.evaluate(model, Meaning(), cache=None)
    assert result.model_name == "local/model"
    scores = result.task_results[0].scores["test"][0]
    _, metrics = measured
    assert scores["ndcg_at_10"] == pytest.approx(metrics["nDCG@10"], abs=1e-5)
    assert scores["recall_at_100"] == pytest.approx(metrics["Recall@100"], abs=1e-5)
    vectors = np.eye(3, dtype=np.float32)[:2]
    assert model.similarity(vectors, vectors[:1]).tolist() == [[1], [0]]
    assert model.similarity_pairwise(vectors, vectors[::-1].copy()).tolist() == [0, 0]


def test_embeddings_with_a_lexical_part_are_refused(monkeypatch):
    lexical = type("Encoder", (), {"settings": EncoderSettings("cls", False, 16, lexical_top_k=4)})
    monkeypatch.setattr("eval.wrappers.Encoder.from_pretrained", lambda *_, **__: lexical)
    with pytest.raises(InputError, match="embeddings with a lexical part are no vectors that others can search"):
        BeirModel("exported/dupmae")
