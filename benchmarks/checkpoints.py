"""Measures how long checkpoints take, how large they are, and what they cost a training.

    python -m benchmarks.checkpoints --directory /a/directory/on/the/disk --step-seconds 0.4

A model of BERT-base's size with RetroMAE's decoder and AdamW's state, all of random numbers, which cannot be
compressed, is saved and restored a few times. `held up` is how long a training stands still for a save; the rest is
written beside it. Files that were just written are read from memory, so that a restore from a cold disk takes longer.

Last comes the share of a training's time that saving costs at the default `checkpoint_every`, in the slowest round but
the first: what the training is held up, and at most, if it could compute nothing beside the writing, the whole save.
`--step-seconds` is how long a step takes: its tokens divided by `tokens_per_second` in metrics.jsonl.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.pretrain import MODELS
from configs import defaults
from eval.measure import positive
from retromae_jax import parallel
from retromae_jax.checkpoints.digests import digests
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import say, table
from retromae_jax.masking import WORD_START, Vocabulary
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.optimizer import adamw


def random_state(model: str) -> TrainState:
    """A state of one of `MODELS`' sizes, as in the middle of a training."""
    config, bert = defaults.pretraining(), BertConfig(**MODELS[model])
    vocabulary = Vocabulary(np.full(bert.vocab_size, WORD_START, np.int8), mask_id=103)
    computation = Computation(jnp.dtype(jnp.float32))
    objective = OBJECTIVES[config.objective].from_config(config, bert, vocabulary, computation)
    _, shapes = parameters.structure(objective.model)
    optimizer = adamw(optax.constant_schedule(1e-4), config.weight_decay, config.clip_norm)
    generator = np.random.default_rng(0)

    def random(x: jax.ShapeDtypeStruct) -> np.ndarray:
        return generator.normal(size=x.shape).astype(x.dtype)

    return TrainState(
        jnp.int32(0),
        jax.tree.map(random, shapes),
        jax.tree.map(random, jax.eval_shape(optimizer.init, shapes)),
    )


def measure(directory: Path, model: str, rounds: int) -> list[dict[str, object]]:
    """Seconds of each round's save and restore."""
    mesh = parallel.data_mesh()
    state = random_state(model)
    state = jax.block_until_ready(jax.device_put(state, parallel.state_sharding(mesh, state)))
    rows = []
    for number in range(1, rounds + 1):
        run = Run(directory, checkpoints_to_keep=1)
        started = time.perf_counter()
        jax.block_until_ready(digests((state.parameters, state.optimizer)))
        digested = time.perf_counter() - started
        started = time.perf_counter()
        run.save(state._replace(step=jnp.int32(number)))
        held_up = time.perf_counter() - started
        run.close()
        saved = time.perf_counter() - started
        if run.checkpoints.failure:
            raise InputError(f"{directory}: {run.checkpoints.failure}")
        started = time.perf_counter()
        jax.block_until_ready(Run(directory).restore(state))
        restored = time.perf_counter() - started
        size = sum(file.stat().st_size for file in (directory / "checkpoints").rglob("*") if file.is_file())
        rows.append(
            {
                "round": number,
                "GB": f"{size / 1e9:.2f}",
                "saved in s": saved,
                "held up s": held_up,
                "of it digests s": digested,
                "restored in s": restored,
            }
        )
        say(f"round {number} of {rounds} is done")
    return rows


def cost(rows: list[dict[str, object]], step_seconds: float, every: int) -> str:
    """The share of a training's time that saving costs, in words.

    Args:
        rows: of `measure`.
        step_seconds: how long a step takes.
        every: steps between checkpoints.
    """
    training = every * step_seconds
    rows = rows[1:] or rows
    held_up, saved = (max(row[column] for row in rows) for column in ("held up s", "saved in s"))
    return (
        f"every {every:,} steps of {step_seconds:g} s, saving costs {held_up / (training + held_up):.2%} of the time, "
        f"and {saved / (training + saved):.2%} at most"
    )


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--directory", type=Path, required=True, metavar="DIR", help="on the disk to measure")
    parser.add_argument("--model", choices=MODELS, default="base", help="size of the model (default: base)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: 3; the first one compiles")
    parser.add_argument(
        "--step-seconds", type=float, required=True, metavar="S", help="how long a step of the training takes"
    )
    arguments = parser.parse_args()
    if not arguments.step_seconds > 0:
        parser.error(f"--step-seconds {arguments.step_seconds} is not above 0")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        rows = measure(place, arguments.model, arguments.rounds)
        print(table(rows))
        print(cost(rows, arguments.step_seconds, defaults.pretraining().checkpoint_every))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
