"""Pretrains an encoder on token blocks.

    python -m train.pretrain --config configs/wiki.py

The same command runs on a TPU pod, on GPUs and on a CPU. Started again with the same --config.workdir, it goes on
from the newest checkpoint there.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import parallel
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.batches import BatchOrder, number_of_steps, padded_length
from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import MetricsLog, Progress, say, table
from retromae_jax.masking import Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.optimizer import adamw, learning_rate_schedule
from retromae_jax.training import evaluation_step, initial_state, pretraining_step
from train.command_line import parse_config

# A resumed run may change these; everything else decides what the run computes.
MAY_CHANGE = ("workdir", "sources", "text_field", "workers", "log_every", "checkpoint_every", "checkpoints_to_keep")
# Held-out texts have sample numbers, and so masks, that no training text has.
FIRST_HELD_OUT_SAMPLE = 2**31


def pretrain(config: ConfigDict) -> None:
    """Trains as `config` (see `configs.defaults`) says.

    Raises:
        InputError: if config, data, tokenizer and model do not fit together.
    """
    # Data and model, checked against each other before any work.
    blocks = TokenBlocks(config.data)
    source = open_model(config.init) if config.init else None
    bert = source.config if source else BertConfig(**config.model)
    tokenizer = load_tokenizer(config.tokenizer or (str(source.tokenizer) if source else ""))
    vocabulary = Vocabulary.of(tokenizer)
    mesh = parallel.data_mesh(config.batch_size)
    _check(config, bert, vocabulary, blocks)

    objective = OBJECTIVES[config.objective].from_config(config, bert, vocabulary, jnp.dtype(config.compute_dtype))
    graph, shapes = parameters.structure(objective.model)

    # Some blocks are held out; the others are trained on in an order that follows from the seed.
    held_out_batches = -(-config.validation_blocks // config.batch_size)
    shuffled = np.random.default_rng(config.seed).permutation(len(blocks))
    held_out, trained_on = np.split(shuffled, [held_out_batches * config.batch_size])
    order = BatchOrder(len(trained_on), config.batch_size, config.seed)
    num_steps = number_of_steps(config.num_steps, config.num_epochs, len(trained_on), config.batch_size)

    def batch_of(indices: np.ndarray, samples: np.ndarray) -> dict[str, jax.Array]:
        longest = min(int(blocks.lengths[indices].max()) + 2, config.block_length)
        length = padded_length(longest, config.block_length, config.length_buckets)
        token_ids, lengths = blocks.batch(
            indices, length, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        )
        arrays = {"token_ids": token_ids, "lengths": lengths, "samples": samples.astype(np.uint32)}
        return jax.device_put(arrays, parallel.over_batch(mesh))

    def training_batch(step: int) -> dict[str, jax.Array]:
        return batch_of(trained_on[order.indices(step)], order.samples(step))

    def held_out_batch(number: int) -> dict[str, jax.Array]:
        rows = np.arange(number * config.batch_size, (number + 1) * config.batch_size)
        return batch_of(held_out[rows], rows + FIRST_HELD_OUT_SAMPLE)

    # The state: from a checkpoint of this run, from `init`, or fresh.
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_fraction, num_steps)
    optimizer = adamw(schedule, config.weight_decay, config.clip_norm)
    run = Run(config.workdir, config.checkpoints_to_keep)
    run.describe(
        {
            "command": "train.pretrain",
            "model": dataclasses.asdict(bert),
            "encoder": {"pooling": "cls", "normalize": False, "max_length": config.block_length},
            "config": config.to_dict(),
        },
        MAY_CHANGE,
    )
    tokenizer.save_pretrained(run.directory / "tokenizer")
    state = initial_state(objective.model, shapes, source, optimizer, config.seed, parallel.replicated(mesh))
    state = run.restore(state)
    first_step = int(state.step)

    say(
        table(
            [
                {
                    "devices": f"{mesh.size} x {jax.devices()[0].device_kind}",
                    "objective": config.objective,
                    "parameters": f"{sum(value.size for value in shapes.values()):,}",
                    "blocks": f"{len(trained_on):,}",
                    "batch": config.batch_size,
                    "length": config.block_length,
                    "steps": f"{num_steps:,}",
                    "from step": first_step,
                }
            ]
        )
    )

    # Training.
    train_step = pretraining_step(objective, graph, optimizer, config.seed)
    evaluate = evaluation_step(objective, graph, config.seed)
    log = MetricsLog(run.directory, first_step)

    def measure_held_out(step: int) -> None:
        if held_out_batches:
            measured = [evaluate(state.parameters, held_out_batch(number)) for number in range(held_out_batches)]
            means = {name: float(np.mean([metrics[name] for metrics in measured])) for name in measured[0]}
            log.write(step, {f"held_out/{name}": value for name, value in means.items()})
            say(
                f"step {step:,}: held out: "
                + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items())
            )

    with jax.set_mesh(mesh), Progress("pretrain", num_steps, "steps", first_step) as progress:
        if first_step == 0:
            measure_held_out(0)
        unlogged, tokens, since = [], 0, time.monotonic()
        for step in range(first_step, num_steps):
            batch = training_batch(step)
            state, metrics = train_step(state, batch)
            # The step before this one is surely done: reading its loss does not hold up the device.
            progress.update(1, f"loss {float(unlogged[-1]['loss']):.3f}" if unlogged else "")
            unlogged.append(metrics)
            tokens += int(np.minimum(blocks.lengths[trained_on[order.indices(step)]] + 2, config.block_length).sum())
            finished = step + 1
            if finished % config.log_every == 0 or finished == num_steps:
                means = {name: float(np.mean([m[name] for m in unlogged])) for name in metrics}
                seconds = time.monotonic() - since
                log.write(
                    finished,
                    means | {"learning_rate": float(schedule(step)), "tokens_per_second": tokens / seconds},
                )
                unlogged, tokens, since = [], 0, time.monotonic()
            if finished % config.evaluate_every == 0 or finished == num_steps:
                measure_held_out(finished)
                since = time.monotonic()
            if finished % config.checkpoint_every == 0 or finished == num_steps:
                run.save(state)
    log.close()
    run.close()
    say(f"finished {num_steps:,} steps: {run.directory}")


def _check(config: ConfigDict, bert: BertConfig, vocabulary: Vocabulary, blocks: TokenBlocks) -> None:
    """Reports all that does not fit together at once."""
    problems = []
    if config.objective not in OBJECTIVES:
        problems.append(f"objective {config.objective!r} is unknown; known are {', '.join(OBJECTIVES)}")
    if len(vocabulary.kinds) > bert.vocab_size:
        problems.append(f"the tokenizer has {len(vocabulary.kinds)} words, the model's table {bert.vocab_size}")
    if config.block_length > bert.max_position_embeddings:
        problems.append(
            f"block_length {config.block_length} is beyond the model's {bert.max_position_embeddings} positions"
        )
    held_out = -(-config.validation_blocks // config.batch_size) * config.batch_size
    if len(blocks) < held_out + config.batch_size:
        problems.append(
            f"{config.data} has {len(blocks)} blocks; batch_size {config.batch_size} and {held_out} held-out blocks "
            f"need {held_out + config.batch_size}"
        )
    if config.compute_dtype not in ("bfloat16", "float32"):
        problems.append(f"compute_dtype {config.compute_dtype!r} is unknown; known are bfloat16, float32")
    if problems:
        raise InputError("; ".join(problems))


@exits_on_input_error
def main() -> None:
    pretrain(parse_config(__doc__, defaults.PRETRAINING))


if __name__ == "__main__":
    main()
