"""Compiles a recipe's training step for TPUs that this machine does not have, and says what the step needs there.

    pip install 'libtpu==0.0.42.*'
    python -m train.compile_check --config configs/wiki.py --topology v5e:16x16 --texts-per-chip 32

It compiles the step that training runs, with the recipe's options, shardings and dtypes, for rows without padding. No
data are read and nothing is downloaded: the recipe's `init` is known by its published sizes, is a directory, or is
given by --init. Memory, exchanges and XLA's FLOPs are the compiler's account; the times are estimates:

- arithmetic: the step's model FLOPs at the chip's bfloat16 rate, which no program can beat;
- estimated: the cycles that the compiler expects of its instructions, attention's kernels at a half of the chip's rate
  (heads of 64 fill a half of its matrix unit), and the gradients' exchange at the chip's interconnect bandwidth. Of the
  loops, those of the cross-entropy and of a batch's parts count as often as they run; others, DupMAE's over the
  vocabulary among them, once.
"""

import argparse
import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPU compiler's library would look for TPUs

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from configs import defaults
from retromae_jax import compiled, parallel
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import TrainState
from retromae_jax.chips import chip_of, topology
from retromae_jax.cross_entropy import number_of_chunks
from retromae_jax.data.packing import packed_shares
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import table
from retromae_jax.masking import WORD_START, Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives import OBJECTIVES, finetuning_objective
from retromae_jax.objectives.reranking import Reranking
from retromae_jax.optimizer import adamw
from retromae_jax.training import finetuning_step, pretraining_step
from train import checks
from train.command_line import load_recipe, parse_config, split_recipe

_ROBERTA = BertConfig(
    model_type="roberta",
    vocab_size=50265,
    max_position_embeddings=514,
    type_vocab_size=1,
    pad_token_id=1,
    layer_norm_eps=1e-5,
)
_XLM_ROBERTA = dataclasses.replace(_ROBERTA, model_type="xlm-roberta", vocab_size=250002)


def _large(base: BertConfig) -> BertConfig:
    return dataclasses.replace(
        base, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )


# Sizes of models by their names on the Hugging Face Hub.
PUBLISHED = {
    "google-bert/bert-base-uncased": BertConfig(),
    "google-bert/bert-large-uncased": _large(BertConfig()),
    "FacebookAI/roberta-base": _ROBERTA,
    "FacebookAI/roberta-large": _large(_ROBERTA),
    "FacebookAI/xlm-roberta-base": _XLM_ROBERTA,
    "FacebookAI/xlm-roberta-large": _large(_XLM_ROBERTA),
    "Shitao/RetroMAE": BertConfig(),
    "Shitao/RetroMAE_MSMARCO": BertConfig(),
}


# Texts that a packed row has room for, if its data are not known: mostly full blocks, some shorter ones.
TEXTS_PER_ROW = 2
# What is left free for the runtime and for fragmentation.
RESERVE = 0.05


class Step(NamedTuple):
    """A training step to compile, and what it is worth.

    Attributes:
        mesh: the chips.
        function: the jitted or mapped step.
        arguments: shapes of state and batch.
        model_flops: of all chips together.
        attention_flops: those of them that scores and mixing have.
        tokens: of all chips together.
        loss_chunks: how often the loop of the cross-entropy runs.
    """

    mesh: jax.sharding.Mesh
    function: jax.stages.Wrapped
    arguments: tuple
    model_flops: float
    attention_flops: float
    tokens: int
    loss_chunks: int


def check(config: ConfigDict, bert: BertConfig, devices: np.ndarray, texts_per_row: int = TEXTS_PER_ROW) -> dict:
    """Compiles the step of a recipe for devices, and tells what it needs.

    Args:
        config: of pretraining or fine-tuning; its batch is that of all devices.
        bert: sizes of the model.
        devices: to compile for, of a kind in `retromae_jax.chips`.
        texts_per_row: pretraining: texts that a row has room for.

    Returns:
        What the report holds. `fits` says whether it fits into a chip's memory; if the compiler found no way, most is
        missing.

    Raises:
        InputError: if the recipe does not fit the devices or the model.
    """
    chip, count = chip_of(devices.flat[0]), devices.size
    step = (
        _finetuning(config, bert, devices)
        if is_finetuning(config)
        else _pretraining(config, bert, devices, texts_per_row)
    )
    report = {
        "chips": count,
        "chip": devices.flat[0].device_kind,
        "parameters": sum(x.size for x in step.arguments[0].parameters.values()),
        "tokens_per_chip": step.tokens // count,
        "memory_of_chip": int(chip.memory),
        "model_flops_per_chip": step.model_flops / count,
    }
    started = time.monotonic()
    with jax.set_mesh(step.mesh):
        lowered = step.function.lower(*step.arguments)
        try:
            with warnings.catch_warnings():
                # For devices that are not there, programs go into JAX's cache, but do not come out of it.
                warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
                program = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = compiled.wanted_memory(str(error), _size(step.arguments[0]))
            if needed is None:
                raise
            return report | {"fits": False, "peak_memory": needed}
    report["compile_seconds"] = time.monotonic() - started
    text, memory = program.as_text(), compiled.memory(program)
    exchanges = compiled.exchanges(text)
    arithmetic = step.model_flops / count / chip.bfloat16_flops
    # A ring sends each byte of a sum twice, and of what is gathered or scattered once.
    sent = sum(exchange.bytes * (2 if kind == "all-reduce" else 1) for kind, exchange in exchanges.items())
    exchange_seconds = sent * (count - 1) / count / chip.link_bandwidth
    accumulated = 1 if is_finetuning(config) else config.accumulation_parts
    # The loop over an accumulated batch's parts is the step's own.
    trips = {"cross_entropy": step.loss_chunks, 'op_name="jit(step)/while"': accumulated}
    cycles = compiled.estimated_cycles(text, trips)
    parts = {part: number / chip.clock for part, number in cycles.items()} if chip.clock else {}
    if "tpu_custom_call" in text:
        parts["attention"] = parts.get("attention", 0.0) + 2 * step.attention_flops / count / chip.bfloat16_flops
    estimated = sum(parts.values()) + exchange_seconds if parts else None
    size, shape = compiled.largest_array(text)
    return report | {
        "fits": memory.peak <= (1 - RESERVE) * chip.memory,
        "peak_memory": memory.peak,
        "arguments": memory.arguments,
        "temporaries": memory.temporaries,
        "largest_array": shape,
        "largest_array_bytes": size,
        "xla_flops_per_chip": compiled.flops(program),
        "exchanges": {kind: dataclasses.asdict(exchange) for kind, exchange in exchanges.items()},
        "arithmetic_seconds": arithmetic,
        "exchange_seconds": exchange_seconds,
        "seconds_of_parts": parts,
        "estimated_seconds": estimated,
        "tokens_per_second": step.tokens / estimated if estimated else None,
    }


def _pretraining(config, bert, devices, texts_per_row):
    mesh = parallel.training_mesh(config.fsdp, devices)
    objective_class = OBJECTIVES[config.objective]
    rows = config.batch_size * (2 if objective_class.PAIRS_OF_SPANS else 1)
    _divides(rows, devices.size * config.accumulation_parts)
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, config.remat, config.attention)
    # Which words continue others decides nothing that is compiled.
    kinds = np.full(bert.vocab_size, WORD_START, np.int8)
    objective = objective_class.from_config(config, bert, Vocabulary(kinds, mask_id=103), computation)
    graph, shapes = parameters.structure(objective.model)
    optimizer = adamw(optax.constant_schedule(config.learning_rate), config.weight_decay, config.clip_norm)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(optimizer.init, shapes))
    placed = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        parallel.state_sharding(mesh, state),
    )
    texts = texts_per_row if config.pack_rows else 1
    sizes = {
        "token_ids": (config.block_length, jnp.int32),
        "lengths": (texts, jnp.int32),
        "samples": (texts, jnp.uint32),
    }
    batch = {
        name: jax.ShapeDtypeStruct((rows, width), dtype, sharding=parallel.over_batch(mesh))
        for name, (width, dtype) in sizes.items()
    }
    lengths = np.full(rows, config.block_length)
    predictions = int(objective.predictions(lengths).sum()) // devices.size // config.accumulation_parts
    return Step(
        mesh,
        pretraining_step(objective, graph, optimizer, config.seed, config.accumulation_parts),
        (placed, batch),
        objective.flops(lengths),
        _attention_flops(bert, lengths),
        rows * config.block_length,
        number_of_chunks(predictions, bert.vocab_size, bert.hidden_size),
    )


def _finetuning(config, bert, devices):
    mesh = jax.sharding.Mesh(devices, (parallel.DATA,))
    _divides(config.batch_size, devices.size)
    computation = Computation.on(parallel.platform(mesh), bert, config.compute_dtype, attention=config.attention)
    queries = config.batch_size // devices.size
    passages = queries * config.group_size
    if is_reranking(config):
        objective = Reranking(bert, computation)
        lengths = np.full(passages, config.max_length)
        sizes = {"places": (queries, config.group_size)}
    else:
        objective = finetuning_objective(config).from_config(config, bert, computation)
        lengths = np.array([config.query_max_length] * queries + [config.passage_max_length] * passages)
        sizes = {"places": (queries, 1 + config.group_size)}
        if config.mask_false_negatives:
            # Of MS MARCO's queries, most have one relevant passage.
            sizes |= {"passages": (passages,), "relevant": (queries, 1)}
    length = int(lengths.max())
    layout = packed_shares(lengths[None], length, config.shape_buckets)[0]
    rows, room = layout.rows, layout.texts
    sizes |= {"token_ids": (rows, length), "lengths": (rows, room)}
    if is_reranking(config):
        sizes["first_lengths"] = (rows, room)
    graph, shapes = parameters.structure(objective.model)
    optimizer = adamw(optax.constant_schedule(config.learning_rate), config.weight_decay, config.clip_norm)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(optimizer.init, shapes))
    batch = {name: jax.ShapeDtypeStruct((devices.size, *size), jnp.int32) for name, size in sizes.items()}
    batch["samples"] = jax.ShapeDtypeStruct((devices.size, rows, room), jnp.uint32)
    if not is_reranking(config) and config.teacher_scores:
        batch["teacher_scores"] = jax.ShapeDtypeStruct((devices.size, queries, config.group_size), jnp.float32)
    function = finetuning_step(objective, graph, optimizer, config.seed, list(devices.flat))
    flops_of_step = devices.size * objective.flops(lengths)
    attention = devices.size * _attention_flops(bert, np.full(rows, length))
    return Step(mesh, function, (state, batch), flops_of_step, attention, devices.size * int(lengths.sum()), 1)


def _size(state):
    """Bytes that a chip holds of a state, which may be split over chips."""
    shapes = [(x.sharding.shard_shape(x.shape) if x.sharding else x.shape, x.dtype) for x in jax.tree.leaves(state)]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)


def _attention_flops(bert, lengths):
    """FLOPs of scores and mixing: twice each forward, and five products of their size backward."""
    return float(np.sum(14.0 * lengths**2) * bert.hidden_size * bert.num_hidden_layers)


def _divides(rows, devices):
    if rows % devices:
        raise InputError(f"{rows} rows do not divide over {devices} devices or parts of them; set --texts-per-chip")


def is_finetuning(config: ConfigDict) -> bool:
    """Whether a recipe's config is one of fine-tuning, be it of an encoder or a cross-encoder."""
    return "collection" in config


def is_reranking(config: ConfigDict) -> bool:
    """Whether a recipe's config is one of a cross-encoder."""
    return "max_length" in config


def keys_of(config: ConfigDict) -> dict[str, tuple[object, str]]:
    """The keys that a recipe's command knows."""
    if is_reranking(config):
        return defaults.RERANKING
    return defaults.FINETUNING if is_finetuning(config) else defaults.PRETRAINING


def sizes_of(config: ConfigDict, init: str) -> BertConfig:
    """Sizes of the model that a recipe starts from, without a download.

    Args:
        config: of the recipe.
        init: a name in `PUBLISHED` or a directory to take instead of the config's; may be empty.

    Raises:
        InputError: if they are not known.
    """
    init = init or config.init
    if init in PUBLISHED:
        return PUBLISHED[init]
    if not init or Path(init).is_dir():
        return checks.model_sizes(config, open_model(init, weights=False) if init else None)
    raise InputError(f"the sizes of {init!r} are not known here; give --init a directory or {', '.join(PUBLISHED)}")


def remedy(report: dict, config: ConfigDict) -> str:
    """What would make a step fit that does not, in one line."""
    limit, needed = report["memory_of_chip"] * (1 - RESERVE), report["peak_memory"]
    chip = _gigabytes(report["memory_of_chip"])
    line = f"the step needs {_gigabytes(needed)} of {chip}, {_gigabytes(needed - limit)} too much: "
    # Parameters, their gradients, and AdamW's two moments, in float32.
    state = 16 * report["parameters"]
    if is_finetuning(config):
        chunk = "--config.gradient_cache_chunk=32, " if not config.gradient_cache_chunk else ""
        return line + f"take {chunk}fewer texts a chip (--texts-per-chip) or more chips"
    options = []
    if state > limit / 2:
        options.append(f"--config.fsdp={min(8, report['chips'])} (the state alone is {_gigabytes(state)})")
    if not config.remat:
        options.append("--config.remat=true")
    parts = 2 ** math.ceil(math.log2(max(2.0, (needed - state) / max(limit - state, limit / 8))))
    options.append(f"--config.accumulation_parts={config.accumulation_parts * parts}, or fewer texts a chip")
    return line + "; or ".join(options)


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def shown(report: dict) -> str:
    """The report as a table of names and values."""
    seconds = {"arithmetic_seconds": "arithmetic alone", "exchange_seconds": "exchange alone"}
    rows = [
        ("chips", f"{report['chips']} x {report['chip']}, {_gigabytes(report['memory_of_chip'])} each"),
        ("parameters", f"{report['parameters']:,}"),
        ("tokens a chip", f"{report['tokens_per_chip']:,}"),
        ("peak memory", f"{_gigabytes(report['peak_memory'])}{'' if report['fits'] else ', DOES NOT FIT'}"),
    ]
    if "arguments" in report:
        counted = report["xla_flops_per_chip"]
        rows += [
            ("state and batch", _gigabytes(report["arguments"])),
            ("temporaries", _gigabytes(report["temporaries"])),
            ("largest array", f"{report['largest_array']}, {_gigabytes(report['largest_array_bytes'])}"),
            ("model GFLOP a chip", f"{report['model_flops_per_chip'] / 1e9:,.0f}"),
            ("XLA's GFLOP, loops once", f"{counted / 1e9:,.0f}" if counted else "-"),
        ]
        rows += [
            (kind, f"{exchange['count']} of {exchange['bytes'] / 1e6:,.1f} MB together")
            for kind, exchange in report["exchanges"].items()
        ]
        rows += [(name, f"{report[key] * 1e3:,.1f} ms") for key, name in seconds.items()]
        if report["estimated_seconds"]:
            by_time = sorted(report["seconds_of_parts"].items(), key=lambda part: -part[1])
            rows += [(f"estimated: {part}", f"{seconds * 1e3:,.1f} ms") for part, seconds in by_time]
            share = report["arithmetic_seconds"] / report["estimated_seconds"]
            rows += [
                ("estimated step", f"{report['estimated_seconds'] * 1e3:,.1f} ms, utilization {share:.0%}"),
                ("estimated tokens/s", f"{report['tokens_per_second']:,.0f}"),
            ]
        rows.append(("compiled in", f"{report['compile_seconds']:.0f} s"))
    return table([{"": name, "value": value} for name, value in rows])


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="", usage=argparse.SUPPRESS, add_help=False, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument(
        "--topology", help="needed: slice of TPUs, v5e:16x16, v4:2x2x1, v5p:8x8x8, v6e:2x2, ...; or h100:8"
    )
    parser.add_argument("--texts-per-chip", type=int, help="batch of each chip (default: the recipe's, over all chips)")
    parser.add_argument(
        "--texts-per-row",
        type=int,
        default=TEXTS_PER_ROW,
        help="texts that a packed row has room for (default: %(default)s)",
    )
    parser.add_argument("--init", default="", help="model whose sizes to take (default: the recipe's)")
    parser.add_argument("--output", help="file for the report, as JSON (default: none)")
    try:
        flags, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error).removeprefix("argument ")) from error
    recipe, _ = split_recipe(rest)
    keys = keys_of(load_recipe(recipe)) if recipe else defaults.PRETRAINING
    config = parse_config(__doc__, keys, rest, parser.format_help())
    if not flags.topology:
        raise InputError("--topology is missing, for example --topology v5e:16x16")
    devices = topology(flags.topology)
    if flags.texts_per_chip:
        config.batch_size = flags.texts_per_chip * devices.size
    report = {"recipe": recipe, "topology": flags.topology, "texts_per_chip": config.batch_size // devices.size}
    report |= check(config, sizes_of(config, flags.init), devices, flags.texts_per_row)
    print(shown(report))
    if flags.output:
        Path(flags.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not report["fits"]:
        raise InputError(remedy(report, config))


if __name__ == "__main__":
    main()
