"""The encoder in PyTorch beside ours."""

import json
import sys

import numpy as np
import pytest

from eval import msmarco
from retromae_jax.checkpoints import huggingface
from retromae_jax.data.retrieval import load_collection
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.encoder import Encoder, Encoders
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import UntiedEncoders
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.retrieval.runs import ranking, read_run

TEXTS = ["A compact encoder.", "Retrieval-oriented pre-training makes its first token carry the text!", "naïve"]


def test_both_rank_real_passages_alike(minilm_directory, retrieval_data, tmp_path):
    """The first 60 passages of a real collection, and the queries that have a relevant one among them."""
    whole = load_collection(retrieval_data / "cranfield", "test")
    known = set(whole.passages.ids[:60].to_pylist())
    part = tmp_path / "part"
    part.mkdir()
    texts = zip(whole.passages.ids[:60].to_pylist(), whole.passages.texts()[:60], strict=True)
    (part / "collection.tsv").write_text("".join(f"{name}\t{' '.join(text.split())}\n" for name, text in texts))
    judged = [(query, name) for query, grades in whole.qrels.items() for name in grades if name in known][:64]
    (part / "qrels.test.tsv").write_text("".join(f"{query}\t0\t{name}\t1\n" for query, name in judged))
    queries = list(dict.fromkeys(query for query, _ in judged))
    (part / "queries.test.tsv").write_text("".join(f"{query}\t{whole.queries[query]}\n" for query in queries))
    command = f"--model {minilm_directory} --collection {part} --split test --depth 10"
    command += " --passage-max-length 32 --query-max-length 16 --batch-size 8"
    runs = {}
    for encoder in ("jax", "torch"):
        msmarco.main(f"{command} --encoder {encoder} --output {tmp_path / encoder}".split())
        runs[encoder] = read_run(tmp_path / encoder / "run.trec")
    assert len(queries) > 20 and runs["jax"].keys() == runs["torch"].keys()
    for query, found in runs["jax"].items():
        ours, theirs = ranking(found), ranking(runs["torch"][query])
        np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], atol=1e-5)
        # But for those that have all but the same score.
        for (name, score), (other, _) in zip(ours, theirs, strict=True):
            assert name == other or runs["torch"][query].get(name, score) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_projections_pooling_and_settings_are_the_same_in_both(minilm_directory, tmp_path, pooling):
    tokenizer = load_tokenizer(str(minilm_directory))
    bert = BertConfig(len(tokenizer), 32, 2, 2, 64, initializer_range=0.3)
    settings = EncoderSettings(pooling, pooling == "mean", 16, 8, untie_encoder=True, query_prompt="find: ")
    weights = parameters.initialize(lambda rngs: UntiedEncoders(bert, settings, Computation(), rngs), seed=1)
    weights |= {name: value * 1.1 for name, value in weights.items() if name.startswith("passage.")}
    huggingface.save_encoder(tmp_path / "exported", bert, weights, tokenizer, settings)
    options = {"dimension": 6, "compute_dtype": "float32"}
    ours, theirs = (
        Encoders.from_pretrained(str(tmp_path / "exported"), backend=b, **options) for b in ("jax", "torch")
    )
    for kind in ("query", "passage"):
        pair = getattr(ours, kind), getattr(theirs, kind)
        assert pair[0].digest == pair[1].digest
        embeddings = [encode_texts(encoder, TEXTS, kind) for encoder in pair]
        assert embeddings[0].shape == (3, 6)
        np.testing.assert_allclose(embeddings[1], embeddings[0], atol=1e-5)
    rounded = Encoders.from_pretrained(str(tmp_path / "exported"), "bfloat16", backend="torch").query
    assert rounded.compute_dtype == "bfloat16"
    exact = encode_texts(Encoder.from_pretrained(str(tmp_path / "exported" / "query")), TEXTS, "query")
    np.testing.assert_allclose(encode_texts(rounded, TEXTS, "query"), exact, atol=0.1 * np.abs(exact).max())


def test_what_pytorch_cannot_do_is_said(small_encoder_directory, tmp_path, monkeypatch):
    def opened(directory, **changes):
        return Encoders.from_pretrained(str(directory), backend="torch", **changes)

    with pytest.raises(InputError, match="embeddings with a lexical part are not made by --encoder torch"):
        opened(small_encoder_directory, lexical_top_k=4, normalize=False)
    (tmp_path / "run").mkdir()
    settings = {"pooling": "cls", "normalize": False, "max_length": 9}
    run = {"command": "", "model": {}, "encoder": settings, "config": {}, "data": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    (tmp_path / "run" / "tokenizer").symlink_to(small_encoder_directory)
    with pytest.raises(InputError, match="is a training run, which PyTorch does not open; export it with"):
        opened(tmp_path / "run")
    monkeypatch.delitem(sys.modules, "retromae_jax.torch_encoder")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs PyTorch, which is not installed; pip install 'retromae_jax\[torch\]'"):
        opened(small_encoder_directory)
