import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings, pool
from retromae_jax.objectives import contrastive
from retromae_jax.objectives.contrastive import Contrastive, contrastive_loss
from retromae_jax.training import finetuning_step, initial_state
from tests.golden import GoldenCase
from tests.texts import rows

CONFIG = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


@pytest.mark.parametrize("name, normalize", [("biencoder_cls_dot", False), ("biencoder_mean_cos", True)])
def test_golden_vectors_and_losses(golden_directory, name, normalize):
    case = GoldenCase(golden_directory)
    expected = case.expected[name]
    assert expected["normalized"] == normalize
    graph, weights = case.load(lambda rngs: contrastive.Model(case.config, Computation(), rngs))
    model = parameters.bind(graph, weights)
    batch, vectors = case.arrays("biencoder_batch.npz"), case.arrays(f"{name}_reps.npz")

    def embed(kind):
        texts = rows(batch[f"{kind}_ids"], batch[f"{kind}_mask"].sum(axis=1))
        return pool(model.bert(texts), texts.is_token_RxL, expected["pooling"], normalize)

    queries, passages = embed("query"), embed("passage")
    np.testing.assert_allclose(queries, vectors["q_reps"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(passages, vectors["p_reps"], rtol=1e-4, atol=1e-5)
    group = len(passages) // len(queries)
    loss, _ = contrastive_loss(queries, passages, jnp.arange(len(queries)) * group, expected["temperature"])
    assert float(loss) == pytest.approx(expected["contrastive_loss"], rel=1e-4)


def test_accuracy_counts_positives_on_top():
    queries, passages = jnp.eye(3), jnp.array([[2.0, 0, 0], [0, 2, 0], [3, 0, 1]])
    loss, accuracy = contrastive_loss(queries, passages, jnp.array([0, 1, 2]), temperature=1.0)
    assert float(accuracy) == pytest.approx(2 / 3)  # the first query prefers the third passage
    scores = np.asarray(queries @ passages.T)
    expected = -np.mean(np.diag(scores) - np.log(np.exp(scores).sum(axis=1)))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_eight_devices_train_as_one():
    """Passages of all devices are negatives, and gradients flow back through the gathering."""
    queries, group, length = 16, 2, 7
    generator = np.random.default_rng(0)
    batch = {
        "query_ids": generator.integers(1, 50, (queries, 5)).astype(np.int32),
        "query_lengths": generator.integers(3, 6, queries).astype(np.int32),
        "passage_ids": generator.integers(1, 50, (queries * group, length)).astype(np.int32),
        "passage_lengths": generator.integers(3, length + 1, queries * group).astype(np.int32),
        "samples": np.arange(queries, dtype=np.uint32),
    }
    objective = Contrastive(CONFIG, EncoderSettings("cls", True, length), 0.1, Computation())
    graph, shapes = parameters.structure(objective.model)
    optimizer = optax.sgd(0.5)  # proportional to the gradients, unlike Adam
    results = {}
    for devices in (1, 8):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        state = initial_state(objective.model, shapes, None, optimizer, 0, mesh)
        step = finetuning_step(objective, graph, optimizer, seed=0, devices=jax.devices()[:devices])
        split = {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}
        losses = []
        for _ in range(3):
            state, metrics = step(state, split)
            losses.append(float(metrics["loss"]))
        results[devices] = losses, {name: np.asarray(value) for name, value in state.parameters.items()}
    np.testing.assert_allclose(results[1][0], results[8][0], rtol=1e-5)
    assert results[1][0][2] < results[1][0][0]
    for name, value in results[1][1].items():
        np.testing.assert_allclose(value, results[8][1][name], atol=1e-5, err_msg=name)
