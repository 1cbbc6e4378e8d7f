"""The loop that the training commands share: steps, metrics, checkpoints."""

import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from retromae_jax import hosts
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.logging import MetricsLog, Progress, say
from train.profiling import Profile


class Batch(NamedTuple):
    """A batch and what it is worth.

    Attributes:
        arrays: on the devices.
        units: what the speed is counted in: tokens, or queries.
        flops: model FLOPs of the step, if they are known.
    """

    arrays: dict
    units: int
    flops: float = 0.0


def train(
    config: ConfigDict,
    run: Run,
    state: TrainState,
    num_steps: int,
    step_function: Callable[[TrainState, dict], tuple[TrainState, dict]],
    batch_of_step: Callable[[int], Batch],
    unit: str,
    learning_rate: Callable[[int], Any],
    measure: Callable[[TrainState], dict[str, float]] | None = None,
    flops_per_second: float = 0.0,
    profile: bool = False,
) -> None:
    """Runs the steps from the state's to `num_steps`, logging and saving on the way.

    Args:
        config: with `log_every`, `checkpoint_every` and, where there is `measure`, `evaluate_every`.
        run: the run's directory.
        state: where to start; used up.
        num_steps: finished steps at the end.
        step_function: one optimizer step.
        batch_of_step: the batch of a step.
        unit: what the speed is counted in, say, tokens.
        learning_rate: schedule, for the log.
        measure: measurements on held-out data.
        flops_per_second: what all devices can do at most; the log then has `model_flops_utilization`, the share of
            it that the batches' model FLOPs made.
        profile: whether to trace a few steps.

    Raises:
        InputError: if there are too few steps to trace.
        SystemExit: when SIGTERM stopped the run.
    """
    name, first_step, stopped = run.command, int(state.step), False
    profiled = Profile(run.directory, first_step, num_steps) if profile else None
    log = MetricsLog(run.directory, first_step)

    def log_measurements(finished: int) -> None:
        means = measure(state)
        log.write(finished, {f"held_out/{key}": value for key, value in means.items()})
        say(f"{name}: step {finished:,}: held out: {_shown(means)}")

    with Progress(name, num_steps, "steps", first_step) as progress:
        if measure and first_step == 0:
            log_measurements(0)
        unlogged, units, flops, since = [], 0, 0.0, time.monotonic()
        for step in range(first_step, num_steps):
            if profiled:
                profiled.before(step)
            batch = batch_of_step(step)
            with jax.profiler.StepTraceAnnotation(name, step_num=step):
                state, metrics = step_function(state, batch.arrays)
            if profiled:
                profiled.after(step, state)
            # The step before this one is surely done: reading its loss does not hold up the device.
            note = f"loss {float(unlogged[-1]['loss']):.3f}" if unlogged else ""
            progress.update(1, note)
            unlogged.append(metrics)
            units += batch.units
            flops += batch.flops
            finished = step + 1
            last = finished == num_steps
            stopped = not last and hosts.stop_is_asked(finished)
            if last or stopped or finished % config.log_every == 0:
                means = {key: float(np.mean([one[key] for one in unlogged])) for key in metrics}
                means["learning_rate"] = float(learning_rate(step))
                elapsed = time.monotonic() - since
                means[f"{unit}_per_second"] = units / elapsed
                if flops_per_second:
                    means["model_flops_utilization"] = flops / elapsed / flops_per_second
                log.write(finished, means)
                say(f"{name}: step {finished:,}: {_shown(means)}")
                unlogged, units, flops, since = [], 0, 0.0, time.monotonic()
            if measure and (last or finished % config.evaluate_every == 0):
                started = time.monotonic()
                log_measurements(finished)
                since += time.monotonic() - started  # measuring is not training
            if last or stopped or finished % config.checkpoint_every == 0:
                run.save(state)
            if stopped:
                break
    log.close()
    run.close()
    if stopped:
        say(f"{name}: stopped by SIGTERM after step {finished:,}; the same command goes on from there")
        raise SystemExit(128 + signal.SIGTERM)
    say(f"{name}: finished, {run.directory}")


def _shown(metrics: dict[str, float]) -> str:
    """Metrics in one line, large numbers without decimals and small ones with significant digits."""

    def number(value: float) -> str:
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"

    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in metrics.items())
