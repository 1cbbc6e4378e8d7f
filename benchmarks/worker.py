"""A process of its own for each system, so that its peak memory is its own and nobody else's threads get in its way.

The parent holds a `Worker`; `python -m benchmarks.worker` is what runs in the process. Each request is a line of JSON
on standard input, each answer one on standard output: first a `Task`, answered when the system is warm; then
`{"train": [steps]}` or `{"collate": [steps]}`.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from retromae_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a system has to train.

    Attributes:
        SYSTEMS: name -> the class, imported by the worker of that system only.
        system: a key of `SYSTEMS`.
        texts: of all steps; step k takes `batch_size` of them from number k * batch_size on.
        batch_size: texts of an optimizer step.
        max_length: longer texts are cut there, in tokens with [CLS] and [SEP].
        threads: cores to use.
        seed: of weights, masks and dropout.
    """

    SYSTEMS: ClassVar[Mapping[str, str]]

    system: str = ""
    texts: Sequence
    batch_size: int
    max_length: int
    threads: int
    seed: int

    def batch(self, step: int) -> slice:
        """Which of the texts a step takes."""
        return slice(step * self.batch_size, (step + 1) * self.batch_size)

    @property
    def steps(self) -> int:
        return len(self.texts) // self.batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingTask(Task):
    """Pretraining from random weights.

    Attributes:
        sizes: of the model, under Hugging Face's BERT names.
        tokenizer: its directory.
        dtype: of activations, float32 or bfloat16; parameters are float32.
    """

    SYSTEMS: ClassVar = {
        "retromae_jax": "benchmarks.ours:RetroMAEJax",
        "pretense": "benchmarks.peers:Pretense",
        "masked_lm": "benchmarks.peers:MaskedLM",
    }

    sizes: Mapping[str, int]
    tokenizer: str
    dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningTask(Task):
    """Contrastive fine-tuning in float32; each of `texts` is a query, its positive, and hard negatives.

    Attributes:
        model: the directory of a sentence-transformers model to start from.
        temperature: cosines are divided by it.
        chunk: texts (here: rows of them) that are encoded at once, by gradient caching; 0 for all, without it.
        dropout: share of states and attention probabilities.
    """

    SYSTEMS: ClassVar = {
        "retromae_jax": "benchmarks.ours:FineTuning",
        "sentence_transformers": "benchmarks.peers:SentenceTransformers",
    }

    model: str
    temperature: float
    chunk: int
    dropout: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingTask(Task):
    """Encoding passages; a step is a call with `batch_size` of them, and its loss the mean score of neighbours.

    Attributes:
        model: the directory of a sentence-transformers model.
        at_once: texts that the peer computes at once.
    """

    SYSTEMS: ClassVar = {
        "retromae_jax": "benchmarks.ours:Encoding",
        "retromae_jax_bfloat16": "benchmarks.ours:RoundedEncoding",
        "sentence_transformers": "benchmarks.peers:SentenceTransformersEncoding",
    }

    model: str
    at_once: int


class System(Protocol):
    """A system under test.

    Attributes:
        tokenized_seconds: processor time that went into tokenizing all texts before the first step, 0 if `collate`
            tokenizes.
    """

    tokenized_seconds: float

    def collate(self, step: int) -> tuple[Any, int]:
        """The batch of a step, and how many of its tokens are not padding."""

    def train(self, batch: Any) -> Any:
        """One optimizer step; returns the loss, which `float` reads (and waits for)."""

    def warm_up_steps(self) -> list[int]:
        """The steps to train on before time is taken."""

    def restart(self) -> None:
        """Goes back to the weights before the first step."""


class Worker:
    """The parent's side: starts the process and waits until its system is warm; a context that ends it.

    Raises:
        InputError: if the process ends early; it has said why on standard error.
    """

    def __init__(self, task: Task):
        self.system = task.system
        root = str(Path(__file__).parents[1])
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": str(task.threads),
            "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            self.warm = self.ask({"kind": type(task).__name__, "task": dataclasses.asdict(task)})
        except BaseException:
            self.process.kill()
            raise

    def ask(self, request: Mapping) -> dict:
        """Sends a request and waits for the answer."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise InputError(f"{self.system} ended with status {self.process.wait()}; what it said is above")
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is not None:
            self.process.kill()
        self.process.communicate()


def train(system: System, steps: Sequence[int]) -> dict[str, Any]:
    """Trains some steps, host work included.

    Returns:
        `seconds`, and `processor_seconds` of all its threads; `tokens` that are not padding; `losses` of the steps; the
        process's `peak_megabytes` so far; and the `cores_elsewhere` that other processes took on average.
    """
    started, own, all_processes = time.perf_counter(), time.process_time(), processor_seconds()
    tokens, losses = 0, []
    for step in steps:
        batch, count = system.collate(step)
        losses.append(system.train(batch))
        tokens += count
    losses = list(map(float, losses))
    seconds, of_processor = time.perf_counter() - started, time.process_time() - own
    elsewhere = processor_seconds() - all_processes - of_processor
    return {
        "seconds": seconds,
        "processor_seconds": of_processor,
        "tokens": tokens,
        "losses": losses,
        "peak_megabytes": peak_bytes() / 1e6,
        "cores_elsewhere": max(0.0, elsewhere / seconds),
    }


def processor_seconds() -> float:
    """What all processes of the machine have used; on other systems than Linux only this one's."""
    if not Path("/proc/stat").exists():
        return time.process_time()
    user, nice, system, _, _, *interrupts_and_stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return sum((user, nice, system, *interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not what the system counts as the process's own, which begins with what its parent held.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def collate(system: System, steps: Sequence[int], batch_size: int) -> dict[str, float]:
    """Makes batches for a second of processor time.

    Returns:
        `texts_per_core_second`: texts in a second of one core's time.
    """
    texts, started = 0, time.process_time()
    while time.process_time() - started < 1:
        for step in steps:
            system.collate(step)
        texts += len(steps) * batch_size
    return {"texts_per_core_second": texts / (time.process_time() - started)}


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: Mapping) -> None:
        print(json.dumps(content), file=answers, flush=True)

    request = json.loads(sys.stdin.readline())
    task = {one.__name__: one for one in (PretrainingTask, FinetuningTask, EncodingTask)}[request["kind"]](
        **request["task"]
    )
    # XLA starts as many threads as there are cores it may use. Set before anything is imported that counts them.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    module, _, name = task.SYSTEMS[task.system].partition(":")
    system = getattr(importlib.import_module(module), name)(task)
    warm = train(system, system.warm_up_steps())
    system.restart()
    answer(warm | {"tokenized_seconds": system.tokenized_seconds})
    for line in sys.stdin:
        request = json.loads(line)
        if "train" in request:
            answer(train(system, request["train"]))
        else:
            answer(collate(system, request["collate"], task.batch_size))


if __name__ == "__main__":
    main()
