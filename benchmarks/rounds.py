"""Systems that train in turns, and what they were measured on."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.worker import Task, Worker
from retromae_jax.logging import say

# With more cores than this in use by others, figures mean little.
QUIET = 0.1


def compare(task: Task, systems: Sequence[str], rounds: int) -> list[dict]:
    """Trains systems in turns.

    Args:
        task: for each of them.
        systems: keys of the task's `SYSTEMS`.
        rounds: the task's steps are divided into so many equal rounds.

    Returns:
        For each system its name, `system`; of each round `seconds`, `tokens_per_second`, mean `loss` and
        `cores_elsewhere`, those that other processes took; of each step its loss, `losses`; `peak_megabytes`; and how
        many texts a second of one core's time makes batches of, `collated_per_core_second`, and tokenizes beforehand,
        `tokenized_per_core_second` (None if batches include it).

    Raises:
        InputError: if a system's process fails.
        RuntimeError: if systems did not see the same number of tokens.
    """
    steps = task.steps // rounds
    with ExitStack() as stack:
        workers = []
        for system in systems:
            workers.append(stack.enter_context(Worker(replace(task, system=system))))
            say(f"{system}: warm after {workers[-1].warm['seconds']:.1f} s")
        measured = {system: [] for system in systems}
        for number in range(rounds):
            for worker in workers:
                of_round = list(range(number * steps, (number + 1) * steps))
                measured[worker.system].append(worker.ask({"train": of_round}))
            if len({of[-1]["tokens"] for of in measured.values()}) > 1:
                raise RuntimeError(f"systems differ in tokens: { {name: of[-1] for name, of in measured.items()} }")
            speeds = ", ".join(f"{name} {of[-1]['tokens'] / of[-1]['seconds']:,.0f}" for name, of in measured.items())
            say(f"round {number + 1} of {rounds}, tokens/s: {speeds}")
        results = []
        for worker in workers:
            of_system, tokenized = measured[worker.system], worker.warm["tokenized_seconds"]
            collated = worker.ask({"collate": list(range(steps))})
            results.append(
                {
                    "system": worker.system,
                    "seconds": [one["seconds"] for one in of_system],
                    "tokens_per_second": [one["tokens"] / one["seconds"] for one in of_system],
                    "loss": [statistics.fmean(one["losses"]) for one in of_system],
                    "losses": [loss for one in of_system for loss in one["losses"]],
                    "cores_elsewhere": [one["cores_elsewhere"] for one in of_system],
                    "peak_megabytes": of_system[-1]["peak_megabytes"],
                    "collated_per_core_second": collated["texts_per_core_second"],
                    "tokenized_per_core_second": len(task.texts) / tokenized if tokenized else None,
                }
            )
    return results


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    row = {
        "processor": (names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    for package in ("jax", "flax", "torch", "transformers", "pretense", "sentence-transformers"):
        if importlib.util.find_spec(package.replace("-", "_")):
            row[package] = importlib.metadata.version(package)
    return row


def warn_if_not_quiet(results: Sequence[Mapping]) -> None:
    """Says so if other processes were at work while systems were measured."""
    if any(statistics.median(one["cores_elsewhere"]) > QUIET for one in results):
        say("warning: other processes were at work; the figures below say little (see cores_elsewhere in the output)")


def keep(output: Path, results: Sequence[Mapping]) -> None:
    """Writes every round's figures to a file."""
    kept = {"machine": machine(), "command": sys.argv[1:], "results": results}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    say(f"written: {output}")
