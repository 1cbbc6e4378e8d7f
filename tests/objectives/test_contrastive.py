import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retromae_jax import compiled, parallel
from retromae_jax.checkpoints.train_state import TrainState
from retromae_jax.data.packing import fill_shares, packed
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives import contrastive
from retromae_jax.objectives.contrastive import Contrastive, Embedded, Relevance, contrastive_loss, left_out, repeated
from retromae_jax.objectives.distillation import Distillation
from retromae_jax.training import finetuning_step

CONFIG = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
QUERIES, GROUP, LENGTH = 16, 2, 7
TIED = EncoderSettings("cls", True, LENGTH)


def test_accuracy_counts_positives_on_top():
    queries, passages = jnp.eye(3), jnp.array([[2.0, 0, 0], [0, 2, 0], [3, 0, 1]])
    loss, accuracy = contrastive_loss(queries, passages, jnp.array([0, 1, 2]), temperature=1.0)
    assert float(accuracy) == pytest.approx(2 / 3)  # the first query prefers the third passage
    scores = np.asarray(queries @ passages.T)
    expected = -np.mean(np.diag(scores) - np.log(np.exp(scores).sum(axis=1)))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_relevant_and_repeated_passages_are_left_out_but_the_positive_of_the_batch():
    relevant = jnp.array([[7, -1], [8, 9], [8, 9], [1, -1]])
    # The second query is there twice, with another positive each; the first one's is the third one's negative, too;
    # and the last one's positive is another's negative.
    passages, positives = jnp.array([7, 2, 8, 1, 9, 7, 1, 2]), jnp.array([0, 2, 4, 6])
    is_repeated = repeated(passages)
    np.testing.assert_array_equal(is_repeated, np.array([0, 0, 0, 0, 0, 1, 1, 1], bool))
    found = jax.vmap(left_out, in_axes=(0, None, None, 0))(relevant, passages, is_repeated, positives)
    expected = [
        [0, 0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 1, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 0, 1, 0, 1],
    ]
    np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4], [0, 1, 2, 0, 4], [0, 1, 2, 2, 4]])
def test_what_is_left_out_is_as_if_it_were_not_there(numbers):
    generator = np.random.default_rng(0)
    queries, passages = (jnp.asarray(generator.normal(size=(count, 4)), jnp.float32) for count in (2, 5))
    positives = jnp.array([0, 1])
    relevance = Relevance(jnp.array([[0, 3], [1, 3]]), jnp.array(numbers))

    def loss(passages, *relevance):
        return contrastive_loss(queries, passages, positives, 0.5, *relevance)[0]

    masked, gradients = jax.value_and_grad(loss)(passages, relevance)
    without, expected = jax.value_and_grad(loss)(jnp.delete(passages, 3, axis=0))
    assert float(masked) == pytest.approx(float(without), rel=1e-6)
    np.testing.assert_array_equal(gradients[3], np.zeros(4))
    np.testing.assert_allclose(jnp.delete(gradients, 3, axis=0), expected, rtol=1e-5)


def test_scores_of_a_few_queries_at_a_time_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    queries, passages = (jnp.asarray(generator.normal(size=(count, 4)), jnp.float32) for count in (5, 10))
    relevance = Relevance(jnp.array([[0, 3], [2, -1], [4, 0], [6, -1], [8, 9]]), jnp.arange(10))

    def loss(queries, passages):
        return contrastive_loss(queries, passages, jnp.arange(5) * 2, 0.5, relevance)

    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected = differentiate(queries, passages)
    monkeypatch.setattr(contrastive, "MOST_SCORES", 20)  # those of two queries
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), differentiate(queries, passages), expected)


def test_matryoshka_loss_is_the_mean_over_nested_dimensions():
    generator = np.random.default_rng(0)

    def of_length_one(embeddings):
        return jnp.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))

    queries, passages = (of_length_one(generator.normal(size=(count, 4)).astype(np.float32)) for count in (2, 4))
    positives = jnp.array([0, 2])
    expected = [
        contrastive_loss(*(of_length_one(x[:, :dimension]) for x in (queries, passages)), positives, 0.1)
        for dimension in (4, 2)
    ]
    objective = Contrastive(CONFIG, EncoderSettings("cls", True, 8), temperature=0.1, matryoshka_dims=("4", "2"))
    embedded = Embedded(queries, passages.reshape(2, 2, 4), passages, positives)
    loss, metrics = objective.nested_losses(embedded, {})
    assert float(loss) == pytest.approx(np.mean([float(loss) for loss, _ in expected]), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean([float(accuracy) for _, accuracy in expected]))


def random_batch(devices, queries=QUERIES, group=GROUP, length=LENGTH, texts_per_row=1):
    """A batch split over devices."""
    generator = np.random.default_rng(0)
    texts = queries * (1 + group)
    token_ids = generator.integers(1, 50, (texts, length)).astype(np.int32)
    lengths = generator.integers(3, length + 1, (devices, texts // devices))
    layouts = [packed(share, length * texts_per_row, texts_per_row, 1) for share in lengths]
    rows = max(layout.rows for layout in layouts)
    batch = fill_shares(layouts, rows, token_ids, {"samples": np.arange(texts, dtype=np.uint32)}, pad_id=0)
    passages = np.arange(queries * group, dtype=np.int32)
    passages[-1] = passages[1]  # the first query's first negative is the last one's last, too
    of_queries = {
        "places": batch["places"],
        "passages": passages,
        # Every second query has the positive of the one before it among its relevant passages.
        "relevant": np.stack([np.arange(queries), np.arange(queries) // 2 * 2], axis=1).astype(np.int32) * group,
        "teacher_scores": generator.normal(size=(queries, group)).astype(np.float32),
    }
    shapes = {"places": (1 + group,), "passages": (), "relevant": (2,), "teacher_scores": (group,)}
    return batch | {name: x.reshape(devices, -1, *shapes[name]) for name, x in of_queries.items()}


OPTIMIZER = optax.sgd(0.5)  # proportional to the gradients, unlike Adam


@functools.cache
def weights_of(config, settings):
    """Fresh parameters in host memory: a training step uses up what is on its devices."""
    return jax.device_get(parameters.initialize(Contrastive(config, settings).model, seed=0))


def step_of(objective, devices):
    """A step on the first devices, and the state before it."""
    graph, _ = parameters.structure(objective.model)
    weights = weights_of(objective.config, objective.settings)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (parallel.DATA,))
    state = TrainState(np.int32(0), weights, OPTIMIZER.init(weights))
    step = finetuning_step(objective, graph, OPTIMIZER, seed=0, devices=jax.devices()[:devices])
    return step, jax.device_put(state, parallel.replicated(mesh))


@functools.cache
def trained(devices, steps=3, texts_per_row=1, encoder=TIED, temperature=0.1, queries=QUERIES, group=GROUP, **settings):
    """Losses of some steps on one batch, and the parameters after them."""
    objective = Distillation(CONFIG, encoder, temperature=temperature, **settings)
    step, state = step_of(objective, devices)
    batch, losses = random_batch(devices, queries, group, texts_per_row=texts_per_row), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, {name: np.asarray(value) for name, value in state.parameters.items()}


@pytest.mark.parametrize(
    "pooling, devices, chunk, queries, group",
    [
        ("cls", 1, 5, QUERIES, GROUP),
        ("cls", 8, 1, QUERIES, GROUP),
        ("mean", 1, 0, QUERIES, GROUP),
        ("cls", 1, 8, 128, 8),
    ],
)
def test_devices_rows_and_chunks_change_nothing(pooling, devices, chunk, queries, group):
    """Passages of all devices are negatives, gradients flow back through the gathering, and dropout is the same.

    On one device there are 48 texts in about 12 rows; chunks of 5 leave them in parts of 4, the last filled up.
    """
    assert CONFIG.hidden_dropout_prob > 0 and CONFIG.attention_probs_dropout_prob > 0
    encoder = dataclasses.replace(TIED, pooling=pooling)
    batch = {"encoder": encoder, "queries": queries, "group": group}
    expected = trained(8, **batch)
    found = trained(devices, texts_per_row=4, gradient_cache_chunk=chunk, **batch)
    assert expected[0][2] < expected[0][0]
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-5, err_msg=name)


def test_untied_encoders_with_lexical_parts_begin_alike_and_learn_apart():
    """Their step, too, is the same on any number of devices and in chunks."""
    untied = EncoderSettings("cls", False, LENGTH, projection=6, lexical_top_k=5, untie_encoder=True)
    # Scores are larger than of embeddings of length 1.
    expected = trained(8, encoder=untied, temperature=2.0)
    found = trained(1, encoder=untied, temperature=2.0, texts_per_row=4, gradient_cache_chunk=5)
    assert expected[0][2] < expected[0][0]
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-5, err_msg=name)
    start = weights_of(CONFIG, untied)
    for module in ("bert.layers.0.attention.value.kernel", "projection.kernel", "head.transform.kernel", "head.bias"):
        query, passage = f"query.{module}", f"passage.{module}"
        np.testing.assert_array_equal(start[query], start[passage])
        for name in (query, passage):
            assert np.max(np.abs(expected[1][name] - start[name])) > 1e-5, name
        assert np.max(np.abs(expected[1][query] - expected[1][passage])) > 1e-5


def test_false_negatives_are_masked_by_default():
    (masked, *_), _ = trained(8)
    (original,), _ = trained(1, steps=1, mask_false_negatives=False)
    assert masked < original - 0.001  # fewer passages in the sums


def test_a_cpu_has_done_with_a_layer_before_it_goes_on_to_the_one_below(monkeypatch):
    """In the order in which programs for CPUs are compiled; see `training.compile_for_memory`."""

    def memory():
        objective = Contrastive(BertConfig(50, 64, 4, 2, 256), EncoderSettings("cls", True, 128))
        step, state = step_of(objective, 1)
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        return compiled.memory(step.lower(state, random_batch(1, 16, length=128)).compile(options)).temporaries

    in_order = memory()
    monkeypatch.setattr("retromae_jax.models.bert.in_order", lambda *arguments: arguments)
    assert in_order < 0.8 * memory()


def test_memory_grows_with_the_chunk_not_with_the_batch():
    def memory(queries, chunk):
        objective = Contrastive(
            BertConfig(50, 32, 1, 2, 128), EncoderSettings("cls", True, 32), gradient_cache_chunk=chunk
        )
        step, state = step_of(objective, 1)
        batch = random_batch(1, queries, length=32)
        return compiled.memory(step.lower(state, batch).compile()).temporaries

    small, large, large_at_once = memory(32, 16), memory(128, 16), memory(128, 0)
    assert large < 1.25 * small
    assert large_at_once > 4 * large
