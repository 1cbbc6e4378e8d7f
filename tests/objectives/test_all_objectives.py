"""What holds of every objective, with masks, corruption and dropout as in training.

The rows that texts stand in, the parts that a batch is computed in and the devices that it is split over change
neither losses nor gradients; devices exchange nothing but gradients and sentence embeddings.
"""

import collections
import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax import parallel
from retromae_jax.attention import cached
from retromae_jax.data.packing import one_text_a_row, packed
from retromae_jax.models import parameters
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.objectives.prediction import IGNORED
from retromae_jax.objectives.retromae import RetroMAE
from retromae_jax.rows import Rows
from retromae_jax.training import evaluation_step
from tests.small import Step, assert_same, equations, objective_of, weights_of
from tests.texts import FIRST_CONTINUATION, filled, random_texts, token_counts

TEXTS, ROWS, LENGTH = 64, 32, 64
# These two contain what the others compute; the others take the slow tests too, in `make test-long`.
WIDEST = ("dupmae", "cocondenser")
NAMES = [pytest.param(name, marks=() if name in WIDEST else pytest.mark.long) for name in OBJECTIVES]
# Ways to divide a batch and the parameters: objective, devices, parts, devices that parameters are split over.
SHORT = {("dupmae", 8, 2, 4), ("cocondenser", 8, 2, 4), ("cocondenser", 8, 2, 1)}
DIVIDED = [
    pytest.param(*ways, marks=() if ways in SHORT else pytest.mark.long)
    for name in OBJECTIVES
    for ways in [(name, 8, parts, fsdp) for parts in (1, 2, 4) for fsdp in (1, 4)] + [(name, 1, 2, 1), (name, 1, 4, 1)]
]


def texts_of(step):
    """Texts of 3 to 48 tokens, and their numbers in the run."""
    return random_texts(TEXTS, (3, 48), seed=step), np.arange(TEXTS) + step * TEXTS


def layout_of(texts):
    """Where texts stand in rows that hold up to four of them each."""
    return packed(token_counts(texts), LENGTH, texts=4, row_multiple=ROWS)


def shared_rows(texts, samples=None):
    """Rows that hold up to four texts each."""
    batch = filled(layout_of(texts), texts, samples)
    assert batch["lengths"].shape == (ROWS, 4)
    return batch


def own_rows(texts, samples=None):
    """Rows that hold one text each and are shorter than the shared ones."""
    batch = filled(one_text_a_row(token_counts(texts), LENGTH, row_multiple=1, buckets=4), texts, samples)
    assert batch["token_ids"].shape == (TEXTS, 48)
    return batch


@functools.cache
def compiled(name, rows, devices=1, parts=1, fsdp=1):
    """The training step, compiled once for all tests."""
    return Step.of(name, devices, parts, fsdp=fsdp).compiled(rows(*texts_of(0)))


def assert_trains_as_in_shared_rows(step, name, rows):
    """A few steps have the metrics and gradients that they have on one device, in one part, with shared rows."""
    batches = [texts_of(number) for number in range(3)]
    expected, expected_moves = compiled(name, shared_rows).train([shared_rows(*batch) for batch in batches])
    found, moves = step.train([rows(*batch) for batch in batches])
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, tolerance=1e-5)
    assert_same(moves, expected_moves, tolerance=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_texts_train_the_same_in_rows_of_their_own_and_in_shared_rows(name):
    row_N = layout_of(texts_of(0)[0]).row_N
    assert np.mean(row_N[0::2] != row_N[1::2]) > 0.8  # a document's spans seldom share a row
    assert_trains_as_in_shared_rows(compiled(name, own_rows), name, own_rows)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_of_attention_train_as_whole_rows(name, monkeypatch):
    monkeypatch.setattr(cached, "TILE", 8)
    tiles = mock.Mock(wraps=cached.Tiles.of)
    monkeypatch.setattr(cached.Tiles, "of", tiles)
    step = Step.of(name, attention="cached").compiled(shared_rows(*texts_of(0)))
    assert tiles.called
    assert_trains_as_in_shared_rows(step, name, shared_rows)


@pytest.mark.parametrize("name, devices, parts, fsdp", DIVIDED)
def test_a_batch_in_parts_over_devices_trains_as_in_one(name, devices, parts, fsdp, monkeypatch):
    """Means are over the whole batch's labels, and contrastive losses over its spans, however it is split."""
    monkeypatch.setattr(parallel, "SMALLEST_SPLIT", 64)  # every matrix but one
    step = compiled(name, shared_rows, devices, parts, fsdp)
    assert_trains_as_in_shared_rows(step, name, shared_rows)
    # A device needs memory for its share of one part, beside that for gradients and copies of the parameters.
    whole, share = (
        a_step.function.memory_analysis().temp_size_in_bytes for a_step in (compiled(name, shared_rows), step)
    )
    copies = 4 * sum(value.nbytes for value in step.weights.values())
    assert share - copies < 1.1 * whole / (devices * parts)
    assert_only_parameters_gradients_and_sentences_are_exchanged(step)


def assert_only_parameters_gradients_and_sentences_are_exchanged(step):
    """No row changes devices, and nothing that is gathered or summed is as large as a number for each token.

    Of a parameter that is split, no device has the whole gradient that is summed over all.
    """
    program = step.function.as_text()
    assert "rng" not in program  # random bits come from hashes: XLA's generator makes them for the whole batch
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    exchanges = re.findall(rf"= (.*) ({kinds})(?:-start)?\(", program)
    assert (len(exchanges) > 0) == (step.mesh.size > 1)
    # No device's loop waits for those of others to end.
    assert not any("pred" in results for results, kind in exchanges if kind == "all-reduce")
    exchanged = [
        (kind, tuple(map(int, shape.split(","))))
        for results, kind in exchanges
        for shape in re.findall(r"\[([\d,]+)\]", results)
    ]
    assert max(value.size for value in step.weights.values()) < ROWS * LENGTH  # or gradients would be too large
    assert all(math.prod(shape) < ROWS * LENGTH for _, shape in exchanged)
    counts = collections.Counter(kind for kind, _ in exchanged)
    assert counts.keys() <= {"all-reduce", "all-gather", "reduce-scatter"}
    split = {
        name: sharding.shard_shape(step.weights[name].shape)
        for name, sharding in parallel.state_sharding(step.mesh, step.weights).items()
        if not sharding.is_fully_replicated
    }
    assert counts["reduce-scatter"] >= len(split) and (counts["reduce-scatter"] > 0) == (len(split) > 0)
    summed = {shape for kind, shape in exchanged if kind == "all-reduce"} - set(split.values())
    assert not summed & {step.weights[name].shape for name in split}


@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", NAMES)
def test_held_out_metrics_are_the_same_in_shared_rows_over_devices(name, fsdp, monkeypatch):
    """Reconstruction gain included, which swaps sentence embeddings between neighbours."""
    monkeypatch.setattr(parallel, "SMALLEST_SPLIT", 64)
    texts, samples = texts_of(0)
    layout = layout_of(texts)
    order = np.lexsort((layout.slot_N, layout.row_N))
    objective, weights = objective_of(name), weights_of(name)
    evaluate = evaluation_step(objective, parameters.structure(objective.model)[0], seed=0)
    expected = evaluate(weights, own_rows([texts[i] for i in order], samples[order]))
    mesh = parallel.training_mesh(fsdp)
    with jax.set_mesh(mesh):
        batch = jax.device_put(shared_rows(texts, samples), parallel.over_batch(mesh))
        found = evaluate(jax.device_put(weights, parallel.state_sharding(mesh, weights)), batch)
    assert ("reconstruction_gain" in expected) == isinstance(objective, RetroMAE)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_for_states_and_products_only(name):
    """Softmax, LayerNorm and losses lose nothing to it, and parameters and their gradients stay float32."""
    batch = shared_rows(*texts_of(0))
    [expected], expected_moves = compiled(name, shared_rows).train([batch])
    step = Step.of(name, dtype=jnp.bfloat16)
    [found], moves = step.train([batch])
    for key, value in expected.items():
        assert found[key].dtype == jnp.float32
        if key.endswith("loss"):
            assert found[key] == pytest.approx(value, rel=0.01), key
    whole = np.linalg.norm(np.concatenate([move.ravel() for move in expected_moves.values()]))
    for key, move in moves.items():
        assert move.dtype == jnp.float32
        error, size = np.linalg.norm(move - expected_moves[key]), np.linalg.norm(expected_moves[key])
        assert error < 0.1 * size + 0.001 * whole, key

    products = []
    for equation in equations(jax.make_jaxpr(step.function)(step.state(), batch)):
        dtypes = {variable.aval.dtype for variable in equation.invars if hasattr(variable, "aval")}
        if equation.primitive.name == "dot_general":
            products.append(dtypes)
        # Gradients of what many tokens share, too, are sums in float32: of texts' embeddings, for example.
        of_texts = equation.primitive.name == "scatter-add" and equation.outvars[0].aval.shape[:2] == (ROWS, 4)
        if of_texts or equation.primitive.name in ("exp", "log", "rsqrt", "reduce_max", "reduce_sum"):
            assert jnp.bfloat16 not in dtypes, equation
    # Scores of spans, and their gradient by either of the factors; the gradients of texts' words at their tokens.
    assert products.count({jnp.dtype(jnp.float32)}) == {"cocondenser": 3, "dupmae": 1}.get(name, 0)
    assert len(products) > 30


# Texts without a token, with one, with one word that is too long to mask, and as long as a row.
EMPTY, SHORTEST, GIANT_WORD = np.array([], int), np.array([7]), np.full(40, FIRST_CONTINUATION)
LONGEST = np.arange(LENGTH - 2) % 36 + 4


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "texts",
    [[EMPTY, EMPTY], [EMPTY, SHORTEST, GIANT_WORD, LONGEST], [SHORTEST] * TEXTS],
    ids=["empty", "mixed", "many"],
)
def test_odd_texts_give_finite_losses_and_gradients(name, texts):
    """Beside them are rows without any text."""
    measured, moves = compiled(name, shared_rows).train([shared_rows(texts)])
    assert all(np.isfinite(value).all() for value in [*measured[0].values(), *moves.values()])
    if texts[-1] is not EMPTY:
        assert measured[0]["encoder_loss"] > 1 and measured[0]["gradient_norm"] > 0


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.5])
def test_of_every_text_something_is_masked_if_a_word_is_short_enough(probability):
    texts = [EMPTY, SHORTEST, GIANT_WORD, LONGEST, *texts_of(0)[0]]
    layout = packed(token_counts(texts), LENGTH, texts=4, row_multiple=1)
    objective, rows = objective_of("masked_lm", encoder_mask_probability=probability), Rows.of(filled(layout, texts), 0)
    masked = np.asarray(jax.jit(objective.mask_encoder)(rows).labels_RxL) != IGNORED
    assert np.max(np.sum(masked, axis=1)) <= objective.limit(rows)
    for text, row, start, tokens in zip(texts, layout.row_N, layout.start_N, layout.tokens_N, strict=True):
        starts = np.flatnonzero(np.append((text < FIRST_CONTINUATION) | (np.arange(len(text)) == 0), True))
        shortest_word = min(np.diff(starts), default=np.inf)
        budget = max(1, round(probability * tokens))
        count = np.sum(masked[row, start : start + tokens])
        assert count <= budget and (count > 0) == (shortest_word <= budget)


def test_without_late_masked_lm_the_head_predicts_the_same_alone():
    weights, rows = weights_of("condenser"), Rows.of(shared_rows(*texts_of(0)), 0)
    found = {}
    for late in (True, False):
        objective = objective_of("condenser", late_masked_lm=late)
        graph, _ = parameters.structure(objective.model)
        found[late] = jax.jit(lambda w, o=objective, g=graph: o.loss(parameters.bind(g, w), rows))(weights)
    (_, both), (loss, alone) = found[True], found[False]
    assert alone.keys() == {"loss", "head_loss", "head_accuracy"} < both.keys()
    assert float(alone["head_loss"]) == pytest.approx(float(both["head_loss"]), rel=1e-6)
    assert float(loss) == float(alone["loss"]) == pytest.approx(float(alone["head_loss"]), rel=1e-6)
