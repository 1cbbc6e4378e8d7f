import dataclasses

import jax
import numpy as np
import optax
import pytest

from retromae_jax.data.packing import fill_shares, packed
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives.reranking import Reranking, listwise_loss
from retromae_jax.training import finetuning_step, initial_state

CONFIG = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def test_the_loss_is_the_cross_entropy_of_the_first_passage():
    scores = np.array([[1.0, 0.0, 2.0], [3.0, -1.0, 0.5]], np.float32)
    loss, accuracy = listwise_loss(scores)
    expected = -np.mean(scores[:, 0] - np.log(np.exp(scores).sum(axis=1)))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(accuracy) == 0.5


def test_eight_devices_train_as_one():
    queries, group, length = 16, 3, 9
    generator = np.random.default_rng(0)
    lengths = generator.integers(6, length + 1, queries * group).astype(np.int32)
    token_ids = generator.integers(1, 50, (queries * group, length)).astype(np.int32)
    of_pairs = {
        "first_lengths": generator.integers(3, 6, queries * group).astype(np.int32),
        "samples": np.arange(queries * group, dtype=np.uint32),
    }
    objective = Reranking(dataclasses.replace(CONFIG, num_hidden_layers=1), Computation())
    graph, shapes = parameters.structure(objective.model)
    optimizer = optax.sgd(0.5)  # proportional to the gradients, unlike Adam
    results = {}
    for devices in (1, 8):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
        state = initial_state(objective.model, shapes, None, optimizer, 0, mesh)
        start = {name: np.asarray(value) for name, value in state.parameters.items()}
        step = finetuning_step(objective, graph, optimizer, seed=0, devices=jax.devices()[:devices])
        # Of other rows, too.
        layouts = [packed(share, 3 * length, 3, 1) for share in lengths.reshape(devices, -1)]
        batch = fill_shares(layouts, max(layout.rows for layout in layouts), token_ids, of_pairs, pad_id=0)
        batch["places"] = batch["places"].reshape(devices, -1, group)
        losses = []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        results[devices] = losses, {name: np.asarray(value) for name, value in state.parameters.items()}
    np.testing.assert_allclose(results[1][0], results[8][0], rtol=1e-5)
    assert results[1][0][2] < results[1][0][0]
    for name, value in results[1][1].items():
        np.testing.assert_allclose(value, results[8][1][name], atol=1e-5, err_msg=name)
    # Both token types learn.
    types = "bert.embeddings.token_type_embeddings.embedding"
    assert (np.abs(results[1][1][types] - start[types]).max(axis=1) > 0).all()


def test_flops_count_the_last_layer_at_cls_only():
    width, wide, tokens = CONFIG.hidden_size, CONFIG.intermediate_size, 10.0
    full = 8 * tokens * width**2 + 4 * tokens * tokens * width + 4 * tokens * width * wide
    last = 4 * width**2 + 4 * tokens * width**2 + 4 * tokens * width + 4 * width * wide
    head = 2 * width**2 + 2 * width
    expected = 3 * (full + last + head)
    assert Reranking(CONFIG, Computation()).flops(np.array([10, 10])) == pytest.approx(2 * expected)
