"""What `train.finetune` and `train.rerank` share: batches that hosts make a share of each, and a mapped training."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from retromae_jax import parallel
from retromae_jax.checkpoints.loading import Source
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.batches import BatchOrder, number_of_steps, padded_length
from retromae_jax.flops import device_flops_per_second
from retromae_jax.logging import say
from retromae_jax.models import parameters
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.optimizer import adamw, learning_rate_schedule
from retromae_jax.training import finetuning_step, initial_state
from train import loop
from train.summary import summary


class Share(NamedTuple):
    """A process's share of a batch.

    Attributes:
        tokens: of each kind of text, its token ids, int32 [N, L], and their lengths, [N]; in the batch they are called
            `KIND_ids` and `KIND_lengths`.
        arrays: what else the batch has.
    """

    tokens: dict[str, tuple[np.ndarray, np.ndarray]]
    arrays: dict[str, np.ndarray]


def train(
    command: str,
    config: ConfigDict,
    source: Source | None,
    tokenizer: Any,
    mesh: jax.sharding.Mesh,
    objective: Any,
    settings: EncoderSettings,
    max_lengths: Mapping[str, int],
    share: Callable[[np.ndarray, np.ndarray], Share],
    queries: int,
    passages: int,
    texts: str,
    profile: bool,
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
        max_lengths: of each kind of text, tokens.
        share: of numbers of queries, and the pass that each is in, what the batch has of them.
        queries: to train on.
        passages: of the collection.
        texts: what a query and its group are: `passages`, or `pairs`.
        profile: whether to trace a few steps.
    """
    order = BatchOrder(queries, config.batch_size, config.seed)
    num_steps = number_of_steps(config.num_steps, config.num_epochs, queries, config.batch_size)

    # Each process reads its own share of the batch only, but all must pad to the same length: that of the longest text
    # of the whole batch, which none of them knows. The devices find it out, asked for one batch ahead: the answer is
    # there when it is needed, and neither hosts nor devices wait for each other.
    own = parallel.local_rows(config.batch_size)
    longest_of_all = jax.jit(lambda longest: longest.max(axis=0), out_shardings=parallel.replicated(mesh))

    @functools.lru_cache(maxsize=2)
    def share_of_step(step: int) -> tuple[Share, jax.Array]:
        made = share(order.indices(step)[own], order.epochs(step)[own])
        longest = np.array([[made.tokens[kind][0].shape[1] for kind in max_lengths]] * jax.local_device_count())
        return made, longest_of_all(parallel.place_batch(mesh, {"longest": longest})["longest"])

    def batch_of_step(step: int) -> loop.Batch:
        (made, longest), _ = share_of_step(step), share_of_step(step + 1)
        arrays = made.arrays | {"samples": order.samples(step)[own].astype(np.uint32)}
        for (kind, limit), most in zip(max_lengths.items(), np.asarray(longest), strict=True):
            token_ids, lengths = made.tokens[kind]
            padding = padded_length(int(most), limit, config.length_buckets) - token_ids.shape[1]
            arrays[f"{kind}_ids"] = np.pad(token_ids, ((0, 0), (0, padding)), constant_values=tokenizer.pad_token_id)
            arrays[f"{kind}_lengths"] = lengths
        split = {name: x.reshape(jax.local_device_count(), -1, *x.shape[1:]) for name, x in arrays.items()}
        # The other processes' texts are about as long.
        flops = jax.process_count() * sum(objective.flops(lengths) for _, lengths in made.tokens.values())
        return loop.Batch(split, config.batch_size, flops, order.indices(step))

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
    facts = {"data": f"{queries:,} queries, {passages:,} passages"}
    say(summary(mesh, state, num_steps, batch, facts, batch_of_step(int(state.step)).flops, flops_per_second))
    loop.train(
        config,
        run,
        state,
        num_steps,
        finetuning_step(objective, graph, optimizer, config.seed),
        batch_of_step,
        "queries",
        schedule,
        flops_per_second=flops_per_second,
        profile=profile,
    )
