import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.decoder import EnhancedDecoder
from retromae_jax.objectives.retromae import RetroMAE
from retromae_jax.rows import Rows
from retromae_jax.training import evaluation_step
from tests.texts import VOCABULARY, rows

CONFIG = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
OBJECTIVE = RetroMAE(CONFIG, VOCABULARY)


def random_batch(batch_size=8, length=14):
    generator = np.random.default_rng(0)
    token_ids = generator.integers(4, 60, (batch_size, length)).astype(np.int32)
    lengths = generator.integers(4, length + 1, batch_size).astype(np.int32)
    for row, n in zip(token_ids, lengths, strict=True):
        row[0], row[n - 1], row[n:] = 1, 2, 0
    return {"token_ids": token_ids, "lengths": lengths, "samples": np.arange(batch_size, dtype=np.uint32)}


def test_only_the_sentence_embedding_tells_the_decoder_of_masked_tokens():
    """With an untrained model the gain is the effect of swapping embeddings; with equal embeddings it is 0."""
    graph, _ = parameters.structure(OBJECTIVE.model)
    weights = parameters.initialize(OBJECTIVE.model, 0)
    evaluate = evaluation_step(OBJECTIVE, graph, seed=0)
    metrics = evaluate(weights, random_batch())
    assert metrics["loss"] == pytest.approx(float(metrics["encoder_loss"] + metrics["decoder_loss"]), rel=1e-5)
    assert metrics["encoder_loss"] == pytest.approx(np.log(60), abs=0.2)
    assert abs(float(metrics["reconstruction_gain"])) > 1e-5
    same = random_batch()
    same = {name: np.repeat(value[:1], 8, axis=0) for name, value in same.items()}
    assert abs(float(evaluate(weights, same)["reconstruction_gain"])) < 1e-5


def test_masked_inputs_and_labels():
    batch = random_batch()
    texts = Rows.of(batch, seed=0)
    inputs = jax.tree.map(np.asarray, OBJECTIVE.mask(texts))
    positions = np.arange(batch["token_ids"].shape[1])
    inner = (positions > 0) & (positions < batch["lengths"][:, None] - 1)
    masked = inputs.encoder_labels_RxL != -100
    assert masked.any() and not np.any(masked & ~inner)
    assert masked.sum(axis=1).max() <= OBJECTIVE.limit(texts)
    np.testing.assert_array_equal(inputs.encoder_labels_RxL[masked], batch["token_ids"][masked])
    np.testing.assert_array_equal(inputs.corrupted.token_ids_RxL[~masked], batch["token_ids"][~masked])
    np.testing.assert_array_equal(inputs.texts.token_ids_RxL, batch["token_ids"])
    np.testing.assert_array_equal(inputs.decoder_labels_RxL, np.where(inner, batch["token_ids"], -100))


def test_decoder_rows_do_not_see_their_own_token():
    """Changing a token changes what other rows see of it, never its own row."""
    config = BertConfig(60, 16, 1, 2, 32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = RetroMAE(config, VOCABULARY).model(nnx.Rngs(0))
    token_ids = np.arange(4, 14)[None]
    visible = ~jnp.eye(10, dtype=bool)[None]
    sentence = jnp.ones((1, 1, 16))

    def decode(position, token):
        changed = token_ids.copy()
        changed[0, position] = token
        return model.decoder(sentence, rows(changed), visible, model.bert.embeddings, None)

    before = decode(5, token_ids[0, 5])
    changed = np.any(np.asarray(before != decode(5, 30)), axis=-1)[0]
    assert changed.tolist() == [True] * 5 + [False] + [True] * 4
    # Position 0 of keys and values holds the sentence embedding, not [CLS].
    np.testing.assert_array_equal(before, decode(0, 30))


def test_embedded_queries_pass_through_the_embedding_block():
    objective = RetroMAE(CONFIG, VOCABULARY, decoder_query="embedded")
    model = objective.model(nnx.Rngs(0))
    sentence, texts, visible = jnp.ones((1, 1, 16)), rows(np.arange(4, 14)[None]), ~jnp.eye(10, dtype=bool)[None]
    embedded = model.decoder(sentence, texts, visible, model.bert.embeddings, None)
    model.decoder.query = "position"
    raw = model.decoder(sentence, texts, visible, model.bert.embeddings, None)
    assert np.max(np.abs(embedded - raw)) > 0.1
    with pytest.raises(ValueError, match="decoder_query 'other' is unknown"):
        EnhancedDecoder(CONFIG, "other", Computation(), nnx.Rngs(0))
