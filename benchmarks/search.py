"""Searches the same embeddings here, in plain Faiss and as RetroMAE's published code does; and proves exact search of
a collection of MS MARCO's size.

    python -m benchmarks.search
    python -m benchmarks.search --full

Systems: flat and device, the exact methods of this project, which read embeddings from disk slice by slice; faiss, an
IndexFlatIP of all passages in memory; original, what the published evaluation does around one: passages loaded and
copied, queries 512 at a time, ids looked up and lines of the ranking written in loops of Python.

All begin with embeddings on disk, in a file that has just been read, and end with scores and indices; then flat,
device and original write a run. In each round every system runs in a process of its own, once to be warm and once to be
measured. Ratios are medians over rounds. Memory is the peak of what the process itself holds: pages of a memory-mapped
file, which the system takes back when it needs them, are not counted.

With --full, each of `--systems` searches 8,841,823 x 768 numbers of half precision (13.6 GB) once. What it finds is
compared with brute force by NumPy, in float64, on every eighth block of passages: those that score above a query's
last place must have been found, and no others.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from benchmarks.rounds import add_choice, keep, machine, ratios, warn_if_not_quiet
from benchmarks.worker import processor_seconds
from eval.measure import positive
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.logging import progress, say, table
from retromae_jax.retrieval.runs import make_run, write_run
from retromae_jax.retrieval.search import Method, PassageIndex
from retromae_jax.retrieval.top_k import Found

FULL = {"passages": 8_841_823, "width": 768, "queries": 100, "dtype": "float16"}
BLOCK = 2**16
# Every so many blocks are compared with brute force.
COMPARED = 8
ORIGINAL_QUERIES_AT_ONCE = 512


# Systems: from a directory and k to what was found, and to a function that writes it as a run.
Searched = tuple[Found, Callable[[], None] | None]


def ours(method: str) -> Callable[[Path, int], Searched]:
    """One of this project's methods."""

    def search(directory: Path, k: int) -> Searched:
        passages = np.load(directory / "passages.npy", mmap_mode="r")
        found = PassageIndex(passages, Method.parse(method)).search(np.load(directory / "queries.npy"), k)

        def write() -> None:
            queries, ids = ([str(number) for number in range(len(rows))] for rows in (found[0], passages))
            write_run(directory / "run.trec", make_run(queries, pa.array(ids, pa.large_string()), *found), "benchmark")

        return found, write

    return search


def plain_faiss(directory: Path, k: int) -> Searched:
    """All passages in memory."""
    index = _in_memory(np.load(directory / "passages.npy"))
    return index.search(np.load(directory / "queries.npy"), k), None


def original(directory: Path, k: int) -> Searched:
    """The published evaluation's way."""
    passages = np.array(np.load(directory / "passages.npy")).astype("float32")
    index = _in_memory(passages)
    queries = np.array(np.load(directory / "queries.npy")).astype("float32")
    parts = [
        index.search(queries[first : first + ORIGINAL_QUERIES_AT_ONCE], k)
        for first in range(0, len(queries), ORIGINAL_QUERIES_AT_ONCE)
    ]
    scores, indices = (np.concatenate(part) for part in zip(*parts, strict=True))

    def write() -> None:
        ids = [str(number) for number in range(len(passages))]
        named = np.array([[str(ids[index]) for index in row] for row in indices])
        with (directory / "ranking.tsv").open("w") as file:
            for query, (of_query, row) in enumerate(zip(scores, named, strict=True)):
                ranked = sorted(zip(of_query, row, strict=True), key=lambda pair: pair[0], reverse=True)
                for rank, (score, passage) in enumerate(ranked, 1):
                    file.write(f"{query}\t{passage}\t{rank}\t{score}\n")

    return (scores, indices), write


def _in_memory(passages: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(passages.shape[1])
    index.add(passages)
    return index


SYSTEMS = {"flat": ours("flat"), "device": ours("device"), "faiss": plain_faiss, "original": original}


# Measuring.


class PeakMemory:
    """The most memory of its own that this process has held, looked at every few milliseconds."""

    def __init__(self):
        self.megabytes, self._is_over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(0.01)
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.megabytes = max(self.megabytes, 1024 * int(line.split()[1]) / 1e6)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._is_over.set()
        self._thread.join()


def measure(system: str, directory: Path, k: int, threads: int, is_warmed: bool) -> tuple[dict, Found]:
    """Runs a system in this process, which is its own.

    Returns:
        Its `seconds` from embeddings to what was found, `run_seconds` from there to a run on disk (None if it writes
        none), `peak_megabytes` and `cores_elsewhere`; and what was found.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with PeakMemory() as peak:
        if is_warmed:
            SYSTEMS[system](directory, k)
        started, own, all_processes = time.perf_counter(), time.process_time(), processor_seconds()
        found, write = SYSTEMS[system](directory, k)
        searched = time.perf_counter()
        elsewhere = processor_seconds() - all_processes - (time.process_time() - own)
        if write is not None:
            write()
        written = time.perf_counter()
    figures = {
        "seconds": searched - started,
        "run_seconds": None if write is None else written - searched,
        "peak_megabytes": peak.megabytes,
        "cores_elsewhere": max(0.0, elsewhere / (searched - started)),
    }
    return figures, found


def in_own_process(*arguments) -> tuple[dict, Found]:
    """`measure` in a process of its own.

    Raises:
        InputError: if the process ends early, of too little memory for example.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, *arguments).result()
        except BrokenProcessPool as error:
            raise InputError(f"{arguments[0]} ended early; take fewer passages if memory ran out") from error


def make_embeddings(directory: Path, passages: int, width: int, queries: int, dtype: str, seed: int) -> None:
    """Writes `passages.npy` of this dtype and `queries.npy`, float32: numbers of 0.25 to 0.5 with random signs.

    Raises:
        InputError: if the disk has no room for them.
    """
    size, free = passages * width * np.dtype(dtype).itemsize, shutil.disk_usage(directory).free
    if 1.1 * size > free:
        raise InputError(f"{directory}: {size / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free")
    generator = np.random.default_rng(seed)

    def numbers(rows: int) -> np.ndarray:
        # The bits of float16: sign and fraction at random, exponent -2.
        bits = generator.integers(0, 2**16, (rows, width), np.uint16)
        return ((bits & 0x83FF) | 0x3400).view(np.float16)

    np.save(directory / "queries.npy", numbers(queries).astype(np.float32))
    stored = np.lib.format.open_memmap(directory / "passages.npy", "w+", dtype, (passages, width))
    for start in progress(range(0, passages, BLOCK), "make embeddings", "blocks"):
        stored[start : start + BLOCK] = numbers(min(BLOCK, passages - start))
    stored.flush()


def differences(found: Found, expected: Found) -> tuple[int, float]:
    """In how many places other passages were found, though no rounding of sums explains it; largest of differences of
    scores."""
    largest = float(np.abs(found[0] - expected[0]).max())
    # Where scores of neighbours are further apart than rounding, ranks are certain.
    scores = np.pad(expected[0], ((0, 0), (1, 1)), constant_values=np.nan)
    error = 4 * max(largest, 1e-6)
    near = (np.abs(np.diff(scores, axis=1)) <= error).astype(bool)
    is_certain = ~(near[:, 1:] | near[:, :-1])
    is_certain[:, -1] = False
    return int(((found[1] != expected[1]) & is_certain).sum()), largest


def compare_with_brute_force(directory: Path, found: Found) -> tuple[int, int]:
    """Compares what was found with all scores of a sample of passages.

    Returns:
        How many of them are above a query's last place by more than rounding; and in how many places this differs from
        what was found, or the scores do.
    """
    scores, indices = found
    passages = np.load(directory / "passages.npy", mmap_mode="r")
    queries = np.load(directory / "queries.npy").astype(np.float64)
    above = wrong = 0
    for start in progress(range(0, len(passages), COMPARED * BLOCK), "brute force", "blocks"):
        block = passages[start : start + BLOCK].astype(np.float64)
        for query, all_scores in enumerate(queries @ block.T):
            of_block = (indices[query] >= start) & (indices[query] < start + len(block))
            own = np.full(len(block), np.nan)
            own[indices[query, of_block] - start] = scores[query, of_block]
            is_above = all_scores > scores[query, -1] + 1e-4
            is_below = all_scores < scores[query, -1] - 1e-4
            above += int(is_above.sum())
            wrong += int((is_above & ~(np.abs(own - all_scores) < 1e-4)).sum() + (is_below & ~np.isnan(own)).sum())
    return above, wrong


# Commands.


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_choice(parser, "--systems", list(SYSTEMS), list(SYSTEMS))
    parser.add_argument("--full", action="store_true", help="a collection of MS MARCO's size, once")
    parser.add_argument("--passages", type=positive, default=200_000, help="(default: %(default)s)")
    parser.add_argument("--width", type=positive, default=384, help="numbers of an embedding (default: %(default)s)")
    parser.add_argument("--queries", type=positive, default=1000, help="(default: %(default)s)")
    parser.add_argument("--depth", type=positive, default=1000, help="passages to find (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="(default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=2, help="cores to use (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--directory", type=Path, default=Path("build"), help="where embeddings lie meanwhile (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/benchmark_search.json"), help="(default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if arguments.full:
        vars(arguments).update(FULL)
        arguments.systems = [system for system in arguments.systems if system in ("flat", "device")]
    else:
        arguments.dtype = "float32"
    return arguments


def summary(results: Sequence[Mapping]) -> list[dict]:
    """The table's rows: medians over rounds, and ratios to Faiss and to the published code where they took part."""
    rows = []
    for one in results:
        row = {
            "system": one["system"],
            "search s": f"{statistics.median(one['seconds']):.2f}",
            "least": f"{min(one['seconds']):.2f}",
            "most": f"{max(one['seconds']):.2f}",
            "run s": None if None in one["run_seconds"] else f"{statistics.median(one['run_seconds']):.2f}",
            "peak MB": round(one["peak_megabytes"]),
        }
        for baseline in ("faiss", "original"):
            for ratio, value in ratios(one, results, baseline).items():
                row[f"{ratio} to {baseline}"] = value
        rows.append(row)
    return rows


def measure_speed(arguments: argparse.Namespace, directory: Path) -> list[dict]:
    """Systems in turns; says in what they differ."""
    of_systems: dict[str, list[dict]] = {system: [] for system in arguments.systems}
    found: dict[str, Found] = {}
    for number in range(1, arguments.rounds + 1):
        for system, figures in of_systems.items():
            measured, found[system] = in_own_process(system, directory, arguments.depth, arguments.threads, True)
            figures.append(measured)
        shown = ", ".join(f"{system} {figures[-1]['seconds']:.2f} s" for system, figures in of_systems.items())
        say(f"round {number} of {arguments.rounds}: {shown}")
    first, *others = found
    for system in others:
        places, largest = differences(found[system], found[first])
        print(f"{system} and {first}: {places} places differ beyond rounding, scores by {largest:.1e} at most")
    return [
        {"system": system, "peak_megabytes": max(one["peak_megabytes"] for one in figures)}
        | {key: [one[key] for one in figures] for key in ("seconds", "run_seconds", "cores_elsewhere")}
        for system, figures in of_systems.items()
    ]


def prove(arguments: argparse.Namespace, directory: Path) -> list[dict]:
    """Searches a large collection with each system, and compares with brute force."""
    results = []
    for system in arguments.systems:
        measured, found = in_own_process(system, directory, arguments.depth, arguments.threads, False)
        above, wrong = compare_with_brute_force(directory, found)
        print(
            f"{system}: {measured['seconds']:.0f} s, {measured['peak_megabytes']:,.0f} MB; of the sample, {above:,} "
            f"passages are above a query's last place, and {wrong} places differ from brute force"
        )
        results.append({"system": system} | {key: [value] for key, value in measured.items()})
    return results


@exits_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the processes of the systems
    os.environ["JAX_PLATFORMS"] = "cpu"
    say(table([machine()]))
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        directory = Path(place)
        make_embeddings(
            directory, arguments.passages, arguments.width, arguments.queries, arguments.dtype, arguments.seed
        )
        if arguments.full:
            results = prove(arguments, directory)
            warn_if_not_quiet(results)
        else:
            results = measure_speed(arguments, directory)
            warn_if_not_quiet(results)
            print(table(summary(results), "search"))
    keep(arguments.output, results)


if __name__ == "__main__":
    main()
