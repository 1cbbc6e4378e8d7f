"""Training steps: functions from one state and a batch to the next state."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from retromae_jax import parallel
from retromae_jax.checkpoints.loading import Source
from retromae_jax.checkpoints.train_state import TrainState
from retromae_jax.logging import say
from retromae_jax.models import parameters
from retromae_jax.objectives.masked_lm import MaskedLM
from retromae_jax.rows import Rows

# Fine-tuning is mapped over the axis that the state's sharding names, or the first step would be compiled twice.
DEVICES = parallel.DATA


def compile_for_memory() -> None:
    """Makes programs for CPUs take less memory; call it before anything else of JAX.

    By default, they are in the order in which most can be done at once, which takes a fine-tuning step more than twice
    the memory, and time for it: the system clears the pages for each step. What the user's XLA_FLAGS say of the order
    stays; and where they are the name of a file with flags, none can be added.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = flags and not flags.startswith("-")
    of_order = ("xla_cpu_scheduler_type", "xla_cpu_enable_concurrency_optimized_scheduler")
    if not is_file and not any(flag in flags for flag in of_order):
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED".strip()


def initial_state(
    build: Callable[[nnx.Rngs], nnx.Module],
    shapes: parameters.Parameters,
    source: Source | None,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """The state before the first step: parameters from `source` as far as it has them, the rest fresh.

    Args:
        build: makes the model.
        shapes: of the model's parameters.
        source: a model to start from; None starts at random.
        optimizer: the optimizer.
        seed: of fresh parameters.
        mesh: devices that the state lives on, as `parallel.state_sharding` says.
    """
    shardings = parallel.state_sharding(mesh, shapes)
    values = parameters.initialize(build, seed, shardings)
    if source is not None:
        loaded, report = source.parameters(shapes)
        say(f"{source.directory}: {report}")
        # From host memory, because each process has read the whole model onto a device of its own.
        values |= jax.device_put(jax.device_get(loaded), {name: shardings[name] for name in loaded})
    optimizer_shardings = parallel.state_sharding(mesh, jax.eval_shape(optimizer.init, shapes))
    optimizer_state = jax.jit(optimizer.init, out_shardings=optimizer_shardings)(values)
    return TrainState(jax.device_put(np.int32(0), parallel.replicated(mesh)), values, optimizer_state)


def pretraining_step(
    objective: MaskedLM, graph: nnx.GraphDef, optimizer: optax.GradientTransformation, seed: int, parts: int = 1
) -> Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """One optimizer step of a pretraining objective, compiled.

    Shardings follow from those of its arguments: a state as of `initial_state` and a batch split over the mesh.
    The state given to it is used up.

    Args:
        objective: of `retromae_jax.objectives`.
        graph: structure of the objective's model.
        optimizer: the optimizer.
        seed: the run's seed.
        parts: parts of the batch that are computed one after the other, with the gradients of the whole batch. Each
            device's rows of a batch must divide by it.

    Returns:
        A function from state and batch (see `Rows.of`) to the next state and metrics.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        rows = Rows.of(batch, seed)

        def loss(values: parameters.Parameters, *arguments) -> tuple[jax.Array, dict[str, jax.Array]]:
            return objective.loss(parameters.bind(graph, values), *arguments)

        gradient = jax.grad(loss, has_aux=True)
        with parallel.full_precision(objective.computation.dtype):
            if parts == 1:
                gradients, metrics = gradient(state.parameters, rows)
            else:
                # Every parts-th row: each device has its share of each part, and no row changes devices.
                split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), rows)
                whole = objective.whole_batch(parameters.bind(graph, state.parameters), split)

                def add_part(sums, part):
                    return jax.tree.map(jnp.add, sums, gradient(state.parameters, *part)), None

                first = jax.tree.map(lambda x: x[0], (split, whole))
                zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, state.parameters, *first))
                (gradients, metrics), _ = jax.lax.scan(add_part, zeros, (split, whole))
        metrics |= {"gradient_norm": optax.tree.norm(gradients)}
        return apply_gradients(state, gradients, optimizer, metrics), metrics

    return jax.jit(step, donate_argnums=0)


def evaluation_step(
    objective: MaskedLM, graph: nnx.GraphDef, seed: int
) -> Callable[[parameters.Parameters, dict], dict[str, jax.Array]]:
    """Metrics of a held-out batch, compiled; arguments as for `pretraining_step`."""

    def evaluate(values: parameters.Parameters, batch: dict) -> dict[str, jax.Array]:
        with parallel.full_precision(objective.computation.dtype):
            return objective.evaluate(parameters.bind(graph, values), Rows.of(batch, seed))

    return jax.jit(evaluate)


@jax.named_scope("optimizer")
def apply_gradients(
    state: TrainState,
    gradients: parameters.Parameters,
    optimizer: optax.GradientTransformation,
    metrics: dict[str, jax.Array],
) -> TrainState:
    """The state after one optimizer step; where loss or gradients are not finite, only numbers of steps change.

    Args:
        state: before the step.
        gradients: of the loss.
        optimizer: the optimizer.
        metrics: with `loss` and `gradient_norm`.
    """
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
    after = TrainState(state.step + 1, optax.apply_updates(state.parameters, updates), optimizer_state)
    # One element that is not finite makes the norm so.
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])

    def taken(new: jax.Array, old: jax.Array) -> jax.Array:
        # Whole numbers count steps: the learning rate is that of the step, however many were skipped before.
        return new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(is_finite, new, old)

    return jax.tree.map(taken, after, state)


def finetuning_step(
    objective: Any,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    seed: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """One optimizer step of a contrastive objective, mapped over devices.

    The arrays of the batch have a leading axis of local devices; state and metrics have none. The state given to it
    is used up. Arguments as for `pretraining_step`; `devices` None takes all.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss(values: parameters.Parameters) -> tuple[jax.Array, dict[str, jax.Array]]:
            return objective.loss(parameters.bind(graph, values), batch, seed, DEVICES)

        with parallel.full_precision(objective.computation.dtype):
            gradients, metrics = jax.grad(loss, has_aux=True)(state.parameters)
        gradients, metrics = jax.lax.pmean((gradients, metrics), DEVICES)
        metrics |= {"gradient_norm": optax.tree.norm(gradients)}
        return apply_gradients(state, gradients, optimizer, metrics), metrics

    return jax.pmap(step, axis_name=DEVICES, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices)
