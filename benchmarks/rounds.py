"""What comparisons share: systems that train in turns, their ratios, arguments, and what they were measured on."""

import argparse
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
from eval.measure import positive
from retromae_jax.errors import InputError
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
        For each system its name, `system`; of each round `seconds`, `processor_seconds`, `tokens_per_second`, mean
        `loss` and `cores_elsewhere`, those that other processes took; of each step its loss, `losses`;
        `peak_megabytes`; and how many texts a second of one core's time makes batches of, `collated_per_core_second`,
        and tokenizes beforehand, `tokenized_per_core_second` (None if batches include it).

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
                    "processor_seconds": [one["processor_seconds"] for one in of_system],
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


def speeds(one: Mapping, count: int, unit: str) -> dict[str, object]:
    """Cells of a table: how fast a system was, its median over rounds, its slowest and its fastest; and its memory.

    Args:
        one: of `compare`'s results.
        count: what there is of the unit in a round.
        unit: what the speed is counted in.
    """
    of_rounds = [count / seconds for seconds in one["seconds"]]
    return {
        "system": one["system"],
        f"{unit}/s": f"{statistics.median(of_rounds):.2f}",
        "least": f"{min(of_rounds):.2f}",
        "most": f"{max(of_rounds):.2f}",
        "tokens/s": round(statistics.median(one["tokens_per_second"])),
        "peak MB": round(one["peak_megabytes"]),
    }


def ratios(one: Mapping, results: Sequence[Mapping], baseline: str) -> dict[str, float]:
    """How many times as fast a system is as the baseline, the median over rounds, and in how much of its memory.

    Args:
        one: of `compare`'s results.
        results: all of them; without the baseline there are no ratios.
        baseline: its name.
    """
    other = next((other for other in results if other["system"] == baseline), None)
    if other is None:
        return {}
    speeds = (theirs / own for own, theirs in zip(one["seconds"], other["seconds"], strict=True))
    return {
        "speed ratio": statistics.median(speeds),
        "memory ratio": one["peak_megabytes"] / other["peak_megabytes"],
    }


def argument_parser(command: str, documentation: str, data: str, output: str) -> argparse.ArgumentParser:
    """A parser of the arguments that all comparisons have.

    Args:
        command: the module.
        documentation: its docstring.
        data: what the data directory holds.
        output: default file of the figures.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}", description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help=f"directory that holds {data}")
    parser.add_argument("--output", type=Path, default=Path(output), help="(default: %(default)s)")
    parser.add_argument("--max-length", type=positive, default=512, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="(default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=2, help="cores to use (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser


def add_choice(parser: argparse.ArgumentParser, option: str, known: Sequence[str], default: Sequence[str]) -> None:
    """Adds an option that takes some of the known names."""
    shown = " ".join(default)
    parser.add_argument(
        option, nargs="+", choices=known, default=default, help=f"of {', '.join(known)} (default: {shown})"
    )


def check(arguments: argparse.Namespace, package: str, install: str) -> None:
    """Raises an InputError if the peer's package is asked for and not installed, or there are fewer cores."""
    if package in arguments.systems and not importlib.util.find_spec(package):
        raise InputError(f"the package {package} is not installed; {install}, or leave it out with --systems")
    available = os.cpu_count()
    if arguments.threads > available:
        raise InputError(f"--threads {arguments.threads}: this machine has {available} cores")


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
