"""Training steps: compiled when the first batch of a shape comes, then never again; skipped when numbers go wrong."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from retromae_jax import parallel
from retromae_jax.checkpoints.train_state import TrainState
from retromae_jax.data.packing import RowMaker
from retromae_jax.models import parameters
from retromae_jax.models.bert import Computation
from retromae_jax.optimizer import adamw
from retromae_jax.training import apply_gradients, compile_for_memory, finetuning_step, initial_state
from tests.small import Step, compilations, mesh_of
from tests.texts import CLS, PAD, SEP, random_texts


@pytest.mark.parametrize("texts_a_row", [4, pytest.param(1, marks=pytest.mark.long)])
def test_each_shape_of_batch_is_compiled_once(texts_a_row):
    """Whatever texts come, in two shapes, from the host to eight devices and with the state that a step left there."""
    maker = RowMaker(64, texts_a_row, 2, batch_size=32, row_multiple=8, cls_id=CLS, sep_id=SEP, pad_id=PAD)
    batches = []
    for number in range(12):
        texts = random_texts(32, (3, 20 if number % 3 else 60), seed=number)
        layout = maker.layout(texts)
        batches.append(maker.rows(layout, texts, np.arange(32) + 32 * number, slice(0, layout.rows)))
    shapes = {batch["token_ids"].shape for batch in batches}
    assert len(shapes) == 2
    with compilations() as names:
        Step.of("masked_lm", devices=8).train(batches)
    assert names.count("jit(step)") == 2


class Regression:
    """The smallest objective that can be fine-tuned."""

    computation = Computation(jnp.dtype("float32"))

    def model(self, rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    def loss(self, model, batch, seed, axis):
        loss = jnp.mean(model(batch["x"]) ** 2)
        return loss, {"loss": loss}


def assert_skipped(after, before):
    """Nothing has changed but the number of the step, and those that the optimizer has of it, for its schedule."""

    def expected(x):
        return x + 1 if np.issubdtype(x.dtype, np.integer) else x

    counts = [x for x in jax.tree.leaves(before) if np.issubdtype(x.dtype, np.integer)]
    assert len(counts) == 3 and len(set(map(int, counts))) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), jax.tree.map(expected, before))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_mapped_step_is_skipped_everywhere_when_one_device_has_a_number_gone_wrong(wrong):
    objective, optimizer = Regression(), adamw(lambda step: 0.1, 0.01, 1.0)
    graph, shapes = parameters.structure(objective.model)
    step = finetuning_step(objective, graph, optimizer, seed=0)
    state = initial_state(objective.model, shapes, None, optimizer, 0, parallel.local_mesh())
    good = np.random.default_rng(0).normal(size=(8, 2, 4)).astype(np.float32)
    bad = good.copy()
    bad[5, 1, 2] = wrong
    state, _ = step(state, {"x": good})
    before = jax.device_get(state)
    state, metrics = step(state, {"x": bad})
    assert not np.isfinite(metrics["loss"])
    assert_skipped(state, before)
    state, metrics = step(state, {"x": good})
    assert np.isfinite(metrics["loss"]) and int(state.step) == 3
    assert all(np.any(np.asarray(x) != before.parameters[name]) for name, x in state.parameters.items())


@pytest.mark.parametrize(("loss", "element"), [(np.nan, 1.0), (1.0, np.nan), (1.0, -np.inf)])
def test_a_split_state_is_left_alone_when_loss_or_one_element_of_a_gradient_is_not_finite(loss, element):
    mesh, optimizer = mesh_of(8, 2), adamw(lambda step: 0.1, 0.01, 1.0)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    weights = jax.device_put({"w": jnp.ones((4, 6)), "v": jnp.ones(8)}, split)
    state = TrainState(jnp.int32(0), weights, jax.jit(optimizer.init)(weights))
    before = jax.device_get(state)
    gradients = jax.device_put({"w": jnp.ones((4, 6)).at[3, 5].set(element), "v": jnp.ones(8)}, split)
    step = jax.jit(functools.partial(apply_gradients, optimizer=optimizer), donate_argnums=0)
    metrics = {"loss": jnp.float32(loss), "gradient_norm": optax.tree.norm(gradients)}
    assert_skipped(step(state, gradients, metrics=metrics), before)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"),
        ("--xla_a=1", "--xla_a=1 --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"),
        ("--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT", "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT"),
        *[(f"--xla_cpu_enable_concurrency_optimized_scheduler={value}",) * 2 for value in ("true", "false")],
        ("a/file.txt", "a/file.txt"),  # XLA reads flags from there
    ],
)
def test_programs_are_compiled_for_memory_unless_the_user_says_otherwise(monkeypatch, own, expected):
    monkeypatch.delenv("XLA_FLAGS")
    if own:
        monkeypatch.setenv("XLA_FLAGS", own)
    compile_for_memory()
    assert os.environ["XLA_FLAGS"] == expected
