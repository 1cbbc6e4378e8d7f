"""Cross-encoders beside the packages that people use: pairs, scores, exported directories."""

import json
import logging

import jax
import numpy as np
import pytest
import torch
import transformers

from retromae_jax.checkpoints import huggingface
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.cross_encoder import CrossEncoder
from retromae_jax.data.tokenization import encode_pairs, load_tokenizer
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.reranking import Model

every_model_type = pytest.mark.parametrize("model_type", huggingface.FAMILIES, indirect=True)

QUERIES = [
    "compact encoder",
    "what do dogs do",
    "what do dogs do",
    "one query that is rather longer than its passage, yes",
]
PASSAGES = [
    "A compact encoder reads the whole text, sentence by sentence, and then it reads the next one.",
    "Dogs bark and cats sleep; the encoder reads that, too.",
    "naïve cafés",
    "Retrieval-oriented pre-training!",
]


@pytest.fixture(scope="module")
def tokenizer(model_type_tokenizer):
    return load_tokenizer(str(model_type_tokenizer))


@pytest.fixture(scope="module")
def model(model_type, tokenizer):
    """Config and parameters of a small random cross-encoder."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"type_vocab_size": 2 if model_type == "bert" else 1}
    config = BertConfig.from_huggingface({"model_type": model_type, "vocab_size": len(tokenizer)} | sizes, "test")
    weights = parameters.initialize(lambda rngs: Model(config, Computation(), rngs), seed=1)
    generator = np.random.default_rng(0)
    noise = {name: generator.standard_normal(value.shape, np.float32) for name, value in sorted(weights.items())}
    return config, {name: np.asarray(value) + 0.1 * noise[name] for name, value in weights.items()}


@pytest.fixture
def exported(tmp_path, model, tokenizer):
    config, weights = model
    huggingface.save_cross_encoder(tmp_path / "exported", config, weights, tokenizer, EncoderSettings("cls", False, 20))
    return tmp_path / "exported"


@every_model_type
def test_pairs_are_those_of_transformers(tokenizer, model_type_tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(model_type_tokenizer)
    cut = set()
    for max_length in (*range(8, 30), 100):
        token_ids, lengths, first_lengths = encode_pairs(tokenizer, QUERIES, PASSAGES, max_length)
        assert token_ids.shape[1] == lengths.max()
        for row, (query, passage) in enumerate(zip(QUERIES, PASSAGES, strict=True)):
            expected = theirs(query, passage, truncation=True, max_length=max_length, return_token_type_ids=True)
            assert token_ids[row, : lengths[row]].tolist() == expected["input_ids"]
            assert (np.arange(lengths[row]) >= first_lengths[row]).tolist() == expected["token_type_ids"]
            assert (token_ids[row, lengths[row] :] == tokenizer.pad_token_id).all()
            cut.add(lengths[row] == max_length)
    assert cut == {True, False}


@every_model_type
def test_exported_directories_open_everywhere_with_equal_scores(exported, model, caplog):
    import sentence_transformers

    ours = CrossEncoder.from_pretrained(str(exported))
    assert ours.max_length == 20
    # 20 tokens cut some of the pairs.
    scores = ours.scores(QUERIES, PASSAGES, batch_size=8)
    assert np.ptp(scores) > 0.01

    with caplog.at_level(logging.WARNING):
        theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            exported, output_loading_info=True
        )
        assert not any(info.values()), info
        cross_encoder = sentence_transformers.CrossEncoder(str(exported), device="cpu")
        predicted = cross_encoder.predict(list(zip(QUERIES, PASSAGES, strict=True)))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    np.testing.assert_allclose(predicted, scores, atol=1e-5)
    reloaded = transformers.AutoTokenizer.from_pretrained(exported)
    with torch.no_grad():
        inputs = reloaded(QUERIES, PASSAGES, padding=True, truncation=True, return_tensors="pt")
        logits = theirs.eval()(**inputs).logits
    np.testing.assert_allclose(logits[:, 0].numpy(), scores, atol=1e-5)

    # Training goes on with all of it.
    config, weights = model
    loaded, report = open_model(str(exported)).parameters(weights)
    assert open_model(str(exported)).config == config
    assert str(report) == f"loaded {len(weights)} tensors"
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_a_cross_encoder_of_the_packages_is_read(tmp_path, model, tokenizer):
    """What sentence-transformers saved has files of its own. Scores are logits, whatever it puts them through."""
    import sentence_transformers

    config, weights = model
    huggingface.save_cross_encoder(tmp_path / "one", config, weights, tokenizer, EncoderSettings("cls", False, 16))
    sigmoid, logit = torch.nn.Sigmoid(), torch.nn.Identity()
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "one"), device="cpu", activation_fn=sigmoid)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = CrossEncoder.from_pretrained(str(tmp_path / "theirs"))
    assert ours.max_length == 16
    pairs = list(zip(QUERIES, PASSAGES, strict=True))
    expected = theirs.predict(pairs, activation_fn=logit)
    np.testing.assert_allclose(ours.scores(QUERIES, PASSAGES, 8), expected, atol=1e-5)


def test_how_passages_become_texts_is_kept_and_can_be_changed(tmp_path, model, tokenizer):
    config, weights = model
    settings = EncoderSettings("cls", False, 20, titles=False, title_separator=" : ")
    huggingface.save_cross_encoder(tmp_path / "one", config, weights, tokenizer, settings)
    kept = CrossEncoder.from_pretrained(str(tmp_path / "one"), titles=None).settings
    assert (kept.max_length, kept.titles, kept.title_separator) == (20, False, " : ")
    changed = CrossEncoder.from_pretrained(str(tmp_path / "one"), max_length=9, titles=True).settings
    assert (changed.max_length, changed.titles, changed.title_separator) == (9, True, " : ")


def test_what_cannot_be_scored_is_refused(exported):
    for max_length in (7, 513):
        with pytest.raises(
            InputError, match=f"the maximum length {max_length} of a pair is not between 8 and the model's 512"
        ):
            CrossEncoder.from_pretrained(str(exported), max_length=max_length)
    ours = CrossEncoder.from_pretrained(str(exported))
    ours.weights = jax.tree.map(lambda x: x * np.nan, ours.weights)
    with pytest.raises(InputError, match=r"the score of the passage .* for the query .* is not finite"):
        ours.scores(QUERIES, PASSAGES)


def test_scores_depend_on_the_pair_alone(exported):
    ours = CrossEncoder.from_pretrained(str(exported))
    assert jax.device_count() == 8
    together = ours.scores(QUERIES * 5, PASSAGES * 5, batch_size=9)
    alone = [ours.scores([query], [passage], 1)[0] for query, passage in zip(QUERIES, PASSAGES, strict=True)]
    np.testing.assert_allclose(together.reshape(5, 4), np.tile(alone, (5, 1)), atol=1e-5)
    assert ours.scores([], [], 8).shape == (0,)


def test_ranking_is_by_the_scores(exported):
    ours = CrossEncoder.from_pretrained(str(exported), device=jax.devices()[:1])
    scores = ours.scores([QUERIES[0]] * 4, PASSAGES, batch_size=4)
    ranked = ours.rank(QUERIES[0], PASSAGES, batch_size=4)
    assert [hit.index for hit in ranked] == np.argsort(-scores).tolist()
    assert [hit.text for hit in ranked] == [PASSAGES[hit.index] for hit in ranked]
    np.testing.assert_allclose([hit.score for hit in ranked], np.sort(scores)[::-1], atol=1e-6)


def test_an_encoder_is_no_cross_encoder(minilm_directory):
    with pytest.raises(InputError, match=r"no cross-encoder, it lacks classifier\.output"):
        CrossEncoder.from_pretrained(str(minilm_directory))


def test_the_config_says_what_it_is(exported):
    content = json.loads((exported / "config.json").read_text())
    assert content["architectures"] == ["BertForSequenceClassification"]
    assert content["id2label"] == {"0": "LABEL_0"}
