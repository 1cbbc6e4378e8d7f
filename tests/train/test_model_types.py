"""RoBERTa and XLM-RoBERTa through all commands: text, blocks, pretraining, fine-tuning, export."""

import json

import numpy as np
import pytest
import transformers
from sentence_transformers import SentenceTransformer

from configs import msmarco, wiki
from retromae_jax.checkpoints import train_state
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.retrieval.encode import encode_texts
from train.export import export
from train.finetune import finetune
from train.prepare import prepare
from train.pretrain import pretrain

TEXTS = [
    "Dogs bark and cats sleep. The encoder reads the text.",
    "A compact encoder carries the whole sentence! It reads, sentence by sentence.",
    "我们读书。他们睡觉。 世界の人々は本を読みます。",
]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def pretraining(tmp_path, model_type, model_type_tokenizer):
    """A tiny recipe, its text prepared."""
    write_lines(tmp_path / "text.jsonl", [{"text": " ".join(TEXTS[i % 3 :])} for i in range(60)])
    config = wiki.get_config("tiny")
    config.sources = (str(tmp_path / "text.jsonl"),)
    config.data, config.workdir = str(tmp_path / "blocks"), str(tmp_path / "run")
    config.tokenizer, config.workers = str(model_type_tokenizer), 1
    with config.model.unlocked():
        sizes = {"vocab_size": 500, "max_position_embeddings": 34, "num_hidden_layers": 1}
        config.model.update({"model_type": model_type} | sizes)
    config.num_steps = 3
    prepare(config)
    return config


def check_vectors(directory):
    ours = encode_texts(Encoder.from_pretrained(str(directory)), TEXTS, "passage")
    theirs = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("model_type", ["roberta", pytest.param("xlm-roberta", marks=pytest.mark.long)], indirect=True)
def test_every_command(pretraining, tmp_path, model_type):
    pretrain(pretraining)
    assert train_state.read_description(tmp_path / "run")["model"]["model_type"] == model_type
    assert open_model(str(tmp_path / "run")).config.max_length == 32
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in losses for value in line.values())

    export(str(tmp_path / "run"), tmp_path / "exported")
    check_vectors(tmp_path / "exported")
    _, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "exported" / "masked_lm", output_loading_info=True
    )
    assert not any(info.values()), info

    collection = tmp_path / "collection"
    write_lines(collection / "corpus.jsonl", [{"_id": f"p{i}", "text": TEXTS[i % 3]} for i in range(16)])
    write_lines(collection / "queries.jsonl", [{"_id": f"q{i}", "text": TEXTS[i % 3][:20]} for i in range(16)])
    (collection / "qrels").mkdir()
    judgements = "".join(f"q{i}\tp{i}\t1\n" for i in range(16))
    (collection / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    config = msmarco.get_config("tiny")
    config.init, config.tokenizer = str(tmp_path / "exported"), ""
    config.collection, config.workdir = str(collection), str(tmp_path / "finetuned")
    config.num_steps = 3
    finetune(config)
    export(str(tmp_path / "finetuned"), tmp_path / "exported_finetuned")
    check_vectors(tmp_path / "exported_finetuned")


@pytest.mark.parametrize("model_type", ["roberta"], indirect=True)
def test_models_that_do_not_fit_are_refused(pretraining):
    pretraining.block_length = 33
    with pretraining.model.unlocked():
        pretraining.model.pad_token_id = 0
    with pytest.raises(InputError) as caught:
        pretrain(pretraining)
    assert "pads with token 1, the model with pad_token_id 0" in str(caught.value)
    with pretraining.model.unlocked():
        pretraining.model.pad_token_id = 1
    with pytest.raises(InputError, match="block_length 33 is not between 3 and the model's 32 positions"):
        pretrain(pretraining)
    pretraining.model.model_type = "robertta"
    with pytest.raises(InputError, match=r"config\.model: model_type is 'robertta'; known are 'bert', 'roberta'"):
        pretrain(pretraining)
