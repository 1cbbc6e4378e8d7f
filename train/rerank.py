"""Trains a cross-encoder: of each query's group of passages, the relevant one is to score highest.

    python -m train.rerank --config configs/rerank.py --config.init runs/wiki

It starts from any encoder, with a fresh classifier, or from a cross-encoder. The same command runs on a TPU pod, on
GPUs and on a CPU. Started again with the same --config.workdir, it goes on from the newest checkpoint there.
"""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import hosts, parallel
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.batches import BatchOrder, number_of_steps, padded_length
from retromae_jax.data.groups import TrainingGroups
from retromae_jax.data.retrieval import load_collection, read_negatives
from retromae_jax.data.tokenization import encode_pairs, load_tokenizer
from retromae_jax.errors import exits_on_input_error
from retromae_jax.flops import device_flops_per_second
from retromae_jax.logging import say
from retromae_jax.models import parameters
from retromae_jax.models.bert import Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.reranking import Reranking
from retromae_jax.optimizer import adamw, learning_rate_schedule
from retromae_jax.training import finetuning_step, initial_state
from train import checks, loop
from train.command_line import parse_training
from train.summary import summary


def rerank(config: ConfigDict, profile: bool = False) -> None:
    """Trains as `config` (see `configs.defaults`) says; `profile` traces a few steps.

    Raises:
        InputError: if config, data, tokenizer and model do not fit together.
    """
    # Settings, model and data, checked against each other before any work.
    source = open_model(config.init) if config.init else None
    bert = checks.model_sizes(config, source)
    tokenizer = load_tokenizer(checks.tokenizer_of(config, source))
    checks.fit(
        checks.whole_numbers(config, batch_size=1, group_size=2, length_buckets=1, log_every=1, checkpoint_every=1),
        checks.whole_numbers(config, negatives_depth=1, num_steps=0, checkpoints_to_keep=1, seed=0),
        checks.shares(config, "warmup_fraction"),
        checks.saving(config),
        checks.watching(config),
        checks.batch(config),
        checks.known("compute_dtype", config.compute_dtype, checks.DTYPES),
        checks.vocabulary(tokenizer, bert),
        checks.positions("max_length", config.max_length, bert, shortest=8),
        checks.room(config, bert),
    )
    mesh = parallel.data_mesh()
    collection = load_collection(config.collection, config.split)
    relevant = dict(zip(collection.queries, collection.relevant_passages(), strict=True))
    positives = {query: passages for query, passages in relevant.items() if len(passages)}
    checks.fit(checks.positives(config, len(positives), len(relevant)))
    queries = [collection.queries[query] for query in positives]
    passages = collection.passages.texts(config.titles)
    groups = TrainingGroups(
        list(positives.values()),
        read_negatives(config.negatives, list(positives), collection.passages, config.negatives_depth),
        len(passages),
        config.group_size,
        config.seed,
    )
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, attention=config.attention)
    objective = Reranking(bert, computation)
    graph, shapes = parameters.structure(objective.model)

    order = BatchOrder(len(queries), config.batch_size, config.seed)
    num_steps = number_of_steps(config.num_steps, config.num_epochs, len(queries), config.batch_size)

    # Each process reads its own share of the batch only; the devices find out the longest pair of all, a batch ahead
    # (see train.finetune).
    own = parallel.local_rows(config.batch_size)
    longest_of_all = jax.jit(lambda longest: longest.max(), out_shardings=parallel.replicated(mesh))

    @functools.lru_cache(maxsize=2)
    def share_of_step(step: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], jax.Array]:
        indices = order.indices(step)[own]
        drawn = [groups.group(*pair) for pair in zip(indices, order.epochs(step)[own], strict=True)]
        of_query = [queries[i] for i in indices for _ in range(config.group_size)]
        pairs = encode_pairs(
            tokenizer, of_query, [passages[int(i)] for group in drawn for i in group], config.max_length
        )
        longest = np.full(jax.local_device_count(), pairs[0].shape[1])
        return pairs, longest_of_all(parallel.place_batch(mesh, {"longest": longest})["longest"])

    def batch_of_step(step: int) -> loop.Batch:
        ((token_ids, lengths, first_lengths), longest), _ = share_of_step(step), share_of_step(step + 1)
        length = padded_length(int(longest), config.max_length, config.length_buckets)
        padding = ((0, 0), (0, length - token_ids.shape[1]))
        arrays = {
            "token_ids": np.pad(token_ids, padding, constant_values=tokenizer.pad_token_id),
            "lengths": lengths,
            "first_lengths": first_lengths,
            "samples": order.samples(step)[own].astype(np.uint32),
        }
        split = {name: x.reshape(jax.local_device_count(), -1, *x.shape[1:]) for name, x in arrays.items()}
        # The other processes' pairs are about as long.
        return loop.Batch(split, config.batch_size, jax.process_count() * objective.flops(lengths), order.indices(step))

    # The state: from a checkpoint of this run, from `init`, or fresh.
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_fraction, num_steps)
    optimizer = adamw(schedule, config.weight_decay, config.clip_norm)
    run = Run(config.workdir, config.checkpoints_to_keep)
    data = {"queries": len(queries), "passages": len(passages)}
    settings = EncoderSettings("cls", False, config.max_length)
    run.begin("rerank", bert, settings, config.to_dict(), data, tokenizer)
    # `jax.pmap` takes a state that is each process's own.
    state = initial_state(objective.model, shapes, source, optimizer, config.seed, parallel.local_mesh())
    state = run.restore(state)
    batch = {"queries": config.batch_size, "pairs": config.batch_size * config.group_size}
    facts = {"data": f"{len(queries):,} queries, {len(passages):,} passages"}
    flops_per_second = mesh.size * device_flops_per_second(jax.local_devices()[0], computation.dtype)
    say(summary(mesh, state, num_steps, batch, facts, batch_of_step(int(state.step)).flops, flops_per_second))
    step = finetuning_step(objective, graph, optimizer, config.seed)
    loop.train(
        config,
        run,
        state,
        num_steps,
        step,
        batch_of_step,
        "queries",
        schedule,
        flops_per_second=flops_per_second,
        profile=profile,
    )


@exits_on_input_error
def main() -> None:
    config, flags = parse_training(__doc__, defaults.RERANKING)
    hosts.start(flags)
    rerank(config, flags.profile)


if __name__ == "__main__":
    main()
