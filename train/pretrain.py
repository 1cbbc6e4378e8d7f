"""Pretrains an encoder on token blocks.

    python -m train.pretrain --config configs/wiki.py

The same command runs on a TPU pod, on GPUs and on a CPU. Started again with the same --config.workdir, it goes on
from the newest checkpoint there.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import hosts, parallel
from retromae_jax.checkpoints.loading import Source, open_model
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.data.batches import BatchOrder, number_of_steps, text_numbers
from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.data.packing import SPECIAL_TOKENS, RowMaker, room_for_texts
from retromae_jax.data.spans import SpanPairs
from retromae_jax.errors import exits_on_input_error
from retromae_jax.flops import device_flops_per_second
from retromae_jax.logging import say
from retromae_jax.masking import Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import Computation
from retromae_jax.models.decoder import DECODER_QUERIES
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.optimizer import adamw, learning_rate_schedule
from retromae_jax.training import compile_for_memory, evaluation_step, initial_state, pretraining_step
from train import checks, loop
from train.command_line import parse_training
from train.export import export_run
from train.probe import NAME, Probe
from train.summary import summary

# Held-out texts have sample numbers, and so masks, that no training text has. It is even, as the first number of a
# pair of spans must be.
FIRST_HELD_OUT_SAMPLE = 2**31


def pretrain(config: ConfigDict, profile: bool = False) -> None:
    """Trains as `config` (see `configs.defaults`) says; `profile` traces a few steps.

    Raises:
        InputError: if config, data, tokenizer and model do not fit together.
    """
    # Settings, data and model, checked against each other before any work.
    data, no_data = checks.attempt(_open_data, config)
    start, no_start = checks.attempt(checks.start, config, _open_source)
    problems = [
        no_data,
        no_start,
        checks.whole_numbers(config, batch_size=1, shape_buckets=1, log_every=1, evaluate_every=1, checkpoint_every=1),
        checks.whole_numbers(
            config, fsdp=1, accumulation_parts=1, validation_blocks=0, num_steps=0, checkpoints_to_keep=1, seed=0
        ),
        checks.above_zero(config, "learning_rate", "num_epochs", "clip_norm"),
        checks.shares(config, "encoder_mask_probability", "decoder_mask_probability", "warmup_fraction"),
        checks.known("objective", config.objective, OBJECTIVES),
        checks.known("decoder_query", config.decoder_query, DECODER_QUERIES),
        checks.known("compute_dtype", config.compute_dtype, checks.DTYPES),
        checks.watching(config),
        checks.probe(config),
        checks.saving(config),
        checks.batch(config, config.accumulation_parts),
        checks.maskable(config),
    ]
    if start:
        problems += [
            checks.one_encoder(config, start.source),
            checks.split(config, start.bert),
            checks.vocabulary(start.tokenizer, start.bert),
            checks.positions("block_length", config.block_length, start.bert),
            checks.attention(config, start.bert),
            checks.room(config, start.bert),
        ]
    if data:
        problems.append(checks.enough_items(config, len(data.items), data.items.unit))
    if data and start:
        problems.append(checks.same_vocabulary(config.data, data.blocks, start.tokenizer))
    checks.fit(*problems)
    assert data and start, "else fit has raised"
    (blocks, items), (source, bert, tokenizer) = data, start
    vocabulary = Vocabulary.of(tokenizer)
    cut = np.maximum(blocks.lengths + SPECIAL_TOKENS - config.block_length, 0).sum() / blocks.lengths.sum()
    if cut:
        say(f"{config.data}: {cut:.1%} of the tokens are beyond block_length {config.block_length} and not read")
    mesh = parallel.training_mesh(config.fsdp)
    settings = EncoderSettings("cls", False, config.block_length)
    # Of longer passages, a probe would take longer than it is worth.
    short = dataclasses.replace(
        settings, max_length=min(128, config.block_length), query_max_length=min(32, config.block_length)
    )
    probe = Probe(config, tokenizer, bert, short, mesh) if config.probe_collection else None
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, config.remat, config.attention)
    objective = OBJECTIVES[config.objective].from_config(config, bert, vocabulary, computation)
    graph, shapes = parameters.structure(objective.model)

    # Some items are held out; the others are trained on in an order that follows from the seed.
    shuffled = np.random.default_rng(config.seed).permutation(len(items))
    held_out, trained_on = np.split(shuffled, [config.validation_blocks])
    order = BatchOrder(len(trained_on), config.batch_size, config.seed)
    num_steps = number_of_steps(config.num_steps, config.num_epochs, len(trained_on), config.batch_size)

    maker = RowMaker(
        config.block_length,
        room_for_texts(blocks.lengths, config.block_length) if config.pack_rows else 1,
        config.shape_buckets,
        config.batch_size * items.texts_per_item,
        mesh.size * config.accumulation_parts,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
    )

    def batch_of(indices: np.ndarray, epochs: np.ndarray, numbers: np.ndarray, first_sample: int = 0) -> loop.Batch:
        texts = items.draw(indices, epochs)
        samples = first_sample + text_numbers(numbers, items.texts_per_item)
        layout = maker.layout(texts)
        # Each process reads its own share of the rows only.
        arrays = maker.rows(layout, texts, samples, parallel.local_rows(layout.rows))
        tokens = layout.tokens_N
        return loop.Batch(parallel.place_batch(mesh, arrays), int(tokens.sum()), objective.flops(tokens), indices)

    def training_batch(step: int) -> loop.Batch:
        return batch_of(trained_on[order.indices(step)], order.epochs(step), order.samples(step))

    # The state: from a checkpoint of this run, from `init`, or fresh.
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_fraction, num_steps)
    optimizer = adamw(schedule, config.weight_decay, config.clip_norm)
    run = Run(config.workdir, config.checkpoints_to_keep)
    sizes = {"blocks": len(blocks), items.unit: len(items), "tokens": int(blocks.lengths.sum(dtype=np.int64))}
    run.begin("pretrain", bert, settings, config.to_dict(), sizes, tokenizer)
    state = initial_state(objective.model, shapes, source, optimizer, config.seed, mesh)
    state = run.restore(state)
    flops_per_second = mesh.size * device_flops_per_second(jax.local_devices()[0], computation.dtype)
    flops = training_batch(int(state.step)).flops
    facts = {"objective": config.objective, "data": f"{len(trained_on):,} {items.unit}"}
    if probe:
        facts["probe"] = probe.cost(config.probe_every, flops)
    batch = {f"texts of up to {config.block_length} tokens": config.batch_size * items.texts_per_item}
    say(summary(mesh, state, num_steps, batch, facts, flops, flops_per_second))

    evaluate = evaluation_step(objective, graph, config.seed)

    def measure(state: TrainState) -> dict[str, float]:
        measured, sizes = [], []
        # Held-out batches fit where the parts of a training batch do.
        size = config.batch_size // config.accumulation_parts
        for start in range(0, len(held_out), size):
            numbers = np.arange(start, min(start + size, len(held_out)))
            batch = batch_of(held_out[numbers], np.zeros_like(numbers), numbers, FIRST_HELD_OUT_SAMPLE)
            measured.append(evaluate(state.parameters, batch.arrays))
            sizes.append(len(numbers))
        return {name: float(np.average([metrics[name] for metrics in measured], weights=sizes)) for name in measured[0]}

    measurements = [loop.Measurement("held_out", config.evaluate_every, measure)] if len(held_out) else []
    if probe:
        measurements.append(loop.Measurement(NAME, config.probe_every, probe))
    with jax.set_mesh(mesh):
        loop.train(
            config,
            run,
            state,
            num_steps,
            pretraining_step(objective, graph, optimizer, config.seed, config.accumulation_parts),
            training_batch,
            "tokens",
            schedule,
            measurements,
            flops_per_second,
            profile,
        )


class Data(NamedTuple):
    """What is trained on.

    Attributes:
        blocks: all token blocks.
        items: what the order is made of and batches are counted in: the blocks, or documents with two spans each.
    """

    blocks: TokenBlocks
    items: TokenBlocks | SpanPairs


def _open_data(config: ConfigDict) -> Data:
    blocks = TokenBlocks(config.data)
    # An unknown objective is a problem of its own.
    is_of_pairs = config.objective in OBJECTIVES and OBJECTIVES[config.objective].PAIRS_OF_SPANS
    return Data(blocks, SpanPairs(blocks, config.seed) if is_of_pairs else blocks)


def _open_source(name_or_directory: str) -> Source:
    """The model to start from; of an export of ours the part that holds the head and the decoder too."""
    source = open_model(name_or_directory)
    masked_lm = source.directory / "masked_lm"
    return open_model(str(masked_lm)) if masked_lm.is_dir() else source


@exits_on_input_error
def main() -> None:
    config, flags = parse_training(__doc__, defaults.PRETRAINING)
    compile_for_memory()
    hosts.start(flags)
    pretrain(config, flags.profile)
    export_run(config.workdir)


if __name__ == "__main__":
    main()
