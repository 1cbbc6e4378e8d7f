"""What `train.finetune` and `train.rerank` share: batches that hosts make a share of each, and a mapped training."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from retromae_jax import parallel
from retromae_jax.checkpoints.loading import Source
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.batches import BatchOrder, number_of_steps, text_numbers
from retromae_jax.data.packing import Layout, fill_shares, packed_shares
from retromae_jax.flops import device_flops_per_second
from retromae_jax.logging import say
from retromae_jax.models import parameters
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.optimizer import adamw, learning_rate_schedule
from retromae_jax.training import finetuning_step, initial_state
from train import loop
from train.probe import NAME, Probe
from train.summary import summary


class Share(NamedTuple):
    """A process's share of a batch: Q queries, each of which has K texts behind each other.

    Attributes:
        token_ids: of the texts, int32 [Q * K, longest], special tokens included, padded.
        lengths: their tokens, [Q * K].
        of_texts: arrays [Q * K] that go where the texts go; see `Rows.of`.
        of_queries: what else the batch has, in the order of the queries.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    of_texts: dict[str, np.ndarray]
    of_queries: dict[str, np.ndarray]


def train(
    command: str,
    config: ConfigDict,
    source: Source | None,
    tokenizer: Any,
    mesh: jax.sharding.Mesh,
    objective: Any,
    settings: EncoderSettings,
    row_length: int,
    share: Callable[[np.ndarray, np.ndarray], Share],
    queries: int,
    passages: int,
    texts: str,
    profile: bool,
    probe: Probe | None = None,
) -> None:
    """Trains an objective of queries, each with a group of passages, on all devices of all hosts.

    Args:
        command: what the run does, for its description.
        config: of `configs.defaults`.
        source: the model to start from; None starts at random.
        tokenizer: the model's.
        mesh: of all devices.
        objective: of `retromae_jax.objectives`, with a loss of one device's share of the batch.
        settings: of the model that the run makes.
        row_length: tokens of a row: of the longest text that there may be.
        share: of numbers of queries, and the pass that each is in, what the batch has of them.
        queries: to train on.
        passages: of the collection.
        texts: what a query and its group are: `passages`, or `pairs`.
        profile: whether to trace a few steps.
        probe: what is measured on the way; its mesh is `parallel.local_mesh()`.
    """
    order = BatchOrder(queries, config.batch_size, config.seed)
    num_steps = number_of_steps(config.num_steps, config.num_epochs, queries, config.batch_size)

    # Each device has the texts of its queries in rows of its own, but all must have as many rows: as many as the one
    # that needs most, which no process knows. The devices find it out, asked for one batch ahead: the answer is there
    # when it is needed, and neither hosts nor devices wait for each other.
    own, devices = parallel.local_rows(config.batch_size), jax.local_device_count()
    most_of_all = jax.jit(jnp.max, out_shardings=parallel.replicated(mesh))

    @functools.lru_cache(maxsize=2)
    def share_of_step(step: int) -> tuple[Share, list[Layout], jax.Array]:
        made = share(order.indices(step)[own], order.epochs(step)[own])
        layouts = packed_shares(made.lengths.reshape(devices, -1), row_length, config.shape_buckets)
        rows = {"rows": np.array([layout.rows for layout in layouts])}
        return made, layouts, most_of_all(parallel.place_batch(mesh, rows)["rows"])

    def batch_of_step(step: int) -> loop.Batch:
        (made, layouts, most), _ = share_of_step(step), share_of_step(step + 1)
        texts = len(made.lengths) // len(order.samples(step)[own])
        of_texts = {"samples": text_numbers(order.samples(step)[own], texts).astype(np.uint32), **made.of_texts}
        arrays = fill_shares(layouts, int(most), made.token_ids, of_texts, tokenizer.pad_token_id)
        arrays["places"] = arrays["places"].reshape(devices, -1, texts)
        arrays |= {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in made.of_queries.items()}
        # The other processes' texts are about as long.
        flops = jax.process_count() * objective.flops(made.lengths)
        return loop.Batch(arrays, config.batch_size, flops, order.indices(step))

    # The state: from a checkpoint of this run, from `init`, or fresh.
    graph, shapes = parameters.structure(objective.model)
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_fraction, num_steps)
    optimizer = adamw(schedule, config.weight_decay, config.clip_norm)
    run = Run(config.workdir, config.checkpoints_to_keep)
    sizes = {"queries": queries, "passages": passages}
    run.begin(command, objective.config, settings, config.to_dict(), sizes, tokenizer)
    # `jax.pmap` takes a state that is each process's own.
    state = initial_state(objective.model, shapes, source, optimizer, config.seed, parallel.local_mesh())
    state = run.restore(state)
    flops_per_second = mesh.size * device_flops_per_second(jax.local_devices()[0], objective.computation.dtype)
    batch = {"queries": config.batch_size, texts: config.batch_size * config.group_size}
    facts, flops = {"data": f"{queries:,} queries, {passages:,} passages"}, batch_of_step(int(state.step)).flops
    measurements = []
    if probe:
        facts["probe"] = probe.cost(config.probe_every, flops)
        measurements.append(loop.Measurement(NAME, config.probe_every, probe))
    say(summary(mesh, state, num_steps, batch, facts, flops, flops_per_second))
    loop.train(
        config,
        run,
        state,
        num_steps,
        finetuning_step(objective, graph, optimizer, config.seed),
        batch_of_step,
        "queries",
        schedule,
        measurements,
        flops_per_second,
        profile,
    )
