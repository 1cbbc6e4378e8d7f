"""The loop that the training commands share: steps, metrics, checkpoints; and what it does when numbers go wrong."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from retromae_jax import hosts, parallel
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.errors import InputError
from retromae_jax.logging import LOG, MetricsLog, Progress, duration, log_file, say
from retromae_jax.tracking import Trackers
from train.heartbeat import Heartbeat, command_line
from train.losses import LossWatch
from train.profiling import Profile


class Batch(NamedTuple):
    """A batch and what it is worth.

    Attributes:
        arrays: on the devices.
        units: what the speed is counted in: tokens, or queries.
        flops: model FLOPs of the step, if they are known.
        items: numbers of its items (blocks, documents, queries) in the data, over all processes, if they are known.
    """

    arrays: dict
    units: int
    flops: float = 0.0
    items: np.ndarray | None = None


class Measurement(NamedTuple):
    """Something that is measured on the way, before the first step too.

    Attributes:
        name: what its metrics' names begin with.
        every: steps between two times; the last step counts, too.
        measure: from a state, which it leaves as it is, to metrics.
    """

    name: str
    every: int
    measure: Callable[[TrainState], dict[str, float]]


def train(
    config: ConfigDict,
    run: Run,
    state: TrainState,
    num_steps: int,
    step_function: Callable[[TrainState, dict], tuple[TrainState, dict]],
    batch_of_step: Callable[[int], Batch],
    unit: str,
    learning_rate: Callable[[int], Any],
    measurements: Sequence[Measurement] = (),
    flops_per_second: float = 0.0,
    profile: bool = False,
) -> None:
    """Runs the steps from the state's to `num_steps`, logging and saving on the way.

    Args:
        config: with `log_every`, `checkpoint_every`, `skipped_steps_allowed`, `stall_minutes`, `debug_nans` and
            `trackers`.
        run: the run's directory.
        state: where to start; used up.
        num_steps: finished steps at the end.
        step_function: one optimizer step; `loss` and `gradient_norm` are among its metrics, and where they are not
            finite, it has changed numbers of steps only.
        batch_of_step: the batch of a step.
        unit: what the speed is counted in, say, tokens.
        learning_rate: schedule, for the log.
        measurements: what is measured on the way.
        flops_per_second: what all devices can do at most; the log then has `model_flops_utilization`, the share of
            it that the batches' model FLOPs made.
        profile: whether to trace a few steps.

    Raises:
        InputError: if there are too few steps to trace, too many were skipped in a row, or the last checkpoint cannot
            be saved.
        SystemExit: when SIGTERM or Ctrl-C stopped the run.
    """
    name, first_step, stopped = run.command, int(state.step), False
    profiled = Profile(run.directory, first_step, num_steps) if profile else None

    def write(finished: int, metrics: dict[str, float]) -> None:
        log.write(finished, metrics)
        trackers.write(finished, metrics)

    def measure(finished: int, due: Sequence[Measurement]) -> float:
        """Logs what is measured after a step; returns the seconds that it took."""
        started = time.monotonic()
        for one in due:
            began = time.monotonic()
            found = one.measure(state)
            write(finished, {f"{one.name}/{key}": value for key, value in found.items()})
            took = duration(time.monotonic() - began)
            say(f"{name}: step {finished:,}: {one.name.replace('_', ' ')}: {_shown(found)} ({took})")
        return time.monotonic() - started

    watch = LossWatch(name)

    def look_at(unread: list[tuple[int, dict]]) -> float:
        """Reads the losses that were not read yet; returns the last."""
        loss = np.nan
        for step, metrics in unread:
            loss, norm = map(float, jax.device_get((metrics["loss"], metrics["gradient_norm"])))
            watch.see(step + 1, loss, norm)
            if watch.skipped_in_a_row > config.skipped_steps_allowed:
                _give_up(run, step, batch_of_step(step), watch.skipped_in_a_row)
        unread.clear()
        return loss

    with (
        log_file(run.directory / LOG),
        hosts.StopSignals() as stop_signals,
        Progress(name, num_steps, "steps", first_step) as progress,
        Heartbeat(run, num_steps, unit, config.stall_minutes) as heartbeat,
        contextlib.closing(run),
        contextlib.closing(MetricsLog(run.directory, first_step)) as log,
        Trackers(config.trackers if hosts.is_first() else (), run.directory, config.to_dict()) as trackers,
        jax.debug_nans(config.debug_nans),
    ):
        heartbeat.beat(first_step)
        if first_step == 0:
            measure(0, measurements)
        unlogged: list[dict] = []
        unread: list[tuple[int, dict]] = []
        units, flops, since = 0, 0.0, time.monotonic()
        for step in range(first_step, num_steps):
            if profiled:
                profiled.before(step)
            batch = batch_of_step(step)
            with jax.profiler.StepTraceAnnotation(name, step_num=step):
                state, metrics = step_function(state, batch.arrays)
            if profiled:
                profiled.after(step, state)
            finished = step + 1
            last = finished == num_steps
            stopped = not last and stop_signals.are_given(finished)
            is_logged = last or stopped or finished % config.log_every == 0
            # The step before this one is surely done: reading its loss does not hold up the device.
            loss = look_at(unread)
            unread.append((step, metrics))
            progress.update(1, f"loss {loss:.3f}" if np.isfinite(loss) else "")
            heartbeat.beat(finished, loss, batch.units)
            unlogged.append(metrics)
            units += batch.units
            flops += batch.flops
            if is_logged:
                heartbeat.beat(finished, look_at(unread))
                means = _means(unlogged)
                means["learning_rate"] = float(learning_rate(step))
                elapsed = time.monotonic() - since
                means[f"{unit}_per_second"] = units / elapsed
                if flops_per_second:
                    means["model_flops_utilization"] = flops / elapsed / flops_per_second
                write(finished, means)
                say(f"{name}: step {finished:,}: {_shown(means)}")
                run.check()
                unlogged, units, flops, since = [], 0, 0.0, time.monotonic()
            # Measuring is not training.
            since += measure(finished, [one for one in measurements if last or finished % one.every == 0])
            if last or stopped:
                run.save_last(state)
            elif finished % config.checkpoint_every == 0:
                run.save(state)
            if stopped:
                heartbeat.state = "stopped"
                break
        if stopped:
            again = command_line(name, sys.argv[1:])
            say(f"{name}: stopped by a signal after step {finished:,}; the same command goes on from there: {again}")
        else:
            say(f"{name}: finished, {run.directory}")
    if stopped:
        raise SystemExit(128 + signal.SIGTERM)


def _means(metrics: list[dict]) -> dict[str, float]:
    """Means over those steps that were not skipped, and how many were."""
    rows = jax.device_get(metrics)
    good = [one for one in rows if np.isfinite(one["loss"]) and np.isfinite(one["gradient_norm"])]
    means = {key: float(np.mean([one[key] for one in good])) for key in rows[0]} if good else {}
    return means | {"skipped_steps": len(rows) - len(good)}


def _give_up(run: Run, step: int, batch: Batch, skipped: int) -> NoReturn:
    """Ends a run whose numbers stay wrong, and leaves what is needed to find out why."""
    process = f"_of_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = run.directory / f"batch_of_step_{step + 1}{process}.npz"
    arrays: dict[str, Any] = {name: parallel.own_part(x) for name, x in batch.arrays.items()}
    shown = "unknown"
    if batch.items is not None:
        arrays["items"] = batch.items
        shown = ", ".join(map(str, batch.items[:8])) + (", ..." if len(batch.items) > 8 else "")
    where = f"the last batch is in {path}"
    try:
        np.savez(path, **arrays)
    except OSError as error:
        where = f"the last batch could not be written to {path} ({error.strerror})"
    raise InputError(
        f"{run.command}: loss or gradient were not finite in {skipped} steps in a row, up to step {step + 1:,}; these "
        f"steps changed nothing; {where}; its items in the data are {shown}. Started again with "
        "--config.debug_nans=True, the run goes on from its newest checkpoint and stops at the operation that makes "
        "the first NaN; a lower learning_rate needs another --config.workdir (docs/runs.md)"
    )


def _shown(metrics: dict[str, float]) -> str:
    """Metrics in one line, the loss first, large numbers without decimals and small ones with significant digits."""

    def number(value: float) -> str:
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"

    def shown(key: str, value: float) -> str:
        if key.endswith("_per_second"):
            rate = f"{value:,.0f}" if value >= 10 else number(value)
            return f"{rate} {key.removesuffix('_per_second')}/s"
        if key == "model_flops_utilization":
            return f"{value:.1%} MFU"
        return f"{key.replace('_', ' ')} {value if isinstance(value, int) else number(value)}"

    ordered = sorted(metrics, key=lambda key: key != "loss")
    return ", ".join(shown(key, metrics[key]) for key in ordered if metrics[key] or key != "skipped_steps")
