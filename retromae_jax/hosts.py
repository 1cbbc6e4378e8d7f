"""Several processes, mostly on several hosts, that run one command together: how they find each other, and end.

TPU pods, SLURM and MPI jobs are known to JAX. Elsewhere, each process is told where the first one is, how many there
are, and which of them it is, by flags or in the environment:

    --coordinator HOST:PORT         --processes N        --process I
    JAX_COORDINATOR_ADDRESS=...     JAX_NUM_PROCESSES=N  JAX_PROCESS_ID=I

They watch each other. When one is lost (killed, crashed, cut off), JAX ends all others within `--lost-after` seconds,
from C++ and with SIGABRT, so that nothing of Python runs any more; its message calls process I "task I", and process 0
the leader. To go on, start the same command on all hosts again: a training resumes from its newest checkpoint.

SIGTERM (or Ctrl-C) to one process stops a training on all of them, after a step and with a checkpoint. SIGTERM is also
how TPU VMs and SLURM give notice of preemption.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from retromae_jax import logging
from retromae_jax.errors import InputError
from retromae_jax.files import locked, replace

FLAGS = ("--coordinator", "--processes", "--process")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# JAX's own time.
LOST_AFTER = 100


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `start` reads."""
    group = parser.add_argument_group("several hosts", "needless on TPU pods and in SLURM and MPI jobs")
    group.add_argument(FLAGS[0], metavar="HOST:PORT", help="address of the first process, at any free port")
    group.add_argument(FLAGS[1], metavar="N", help="how many processes there are")
    group.add_argument(FLAGS[2], metavar="I", help="which this one is, from 0")
    group.add_argument(
        "--lost-after",
        type=_seconds,
        default=LOST_AFTER,
        metavar="SECONDS",
        help=f"when a process has not been heard of for so long, the others end (default: {LOST_AFTER})",
    )


def start(flags: argparse.Namespace) -> None:
    """Joins this process with the others, if there are any; call it before anything else of JAX.

    Args:
        flags: of `add_flags`.

    Raises:
        InputError: if only some of the flags, or of the variables in the environment, are set, or make no sense.
    """
    given = _given(FLAGS, (flags.coordinator, flags.processes, flags.process))
    given = given or _given(VARIABLES, map(os.environ.get, VARIABLES))
    # A process that ends early waits for the others as long as they wait to hear from it.
    patience = {"heartbeat_timeout_seconds": flags.lost_after, "shutdown_timeout_seconds": flags.lost_after}
    try:
        jax.distributed.initialize(*given, **patience)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
        return  # no cluster: this process is alone
    if not is_first():
        logging.silence()
    if jax.process_count() > 1:
        logging.say(
            f"{jax.process_count()} processes; when one is lost, the others end within {flags.lost_after} s and name "
            "it: start the same command on all hosts again"
        )


def is_first() -> bool:
    """Whether this process prints and writes what is written once."""
    return jax.process_index() == 0


def share(count: int) -> range:
    """Successive numbers, of `count` items of all processes, that this process works on."""
    processes, process = jax.process_count(), jax.process_index()
    return range(count * process // processes, count * (process + 1) // processes)


def files(directory: Path, name: str) -> list[Path]:
    """A file for each process's share of something, in the order of the shares.

    Args:
        directory: seen by all processes.
        name: of the whole, as in `scores.npy`.
    """
    stem, _, suffix = name.rpartition(".")
    processes = jax.process_count()
    return [directory / f"{stem}-{number:05d}-of-{processes:05d}.{suffix}" for number in range(processes)]


def exchange(directory: Path, name: str, own: np.ndarray) -> Iterator[np.ndarray]:
    """What every process has of something, in their order, after all have come here.

    Args:
        directory: seen by all processes; the parts stay in files in it.
        name: of the whole.
        own: this process's part.
    """
    part_files = files(directory, f"{name}.npy")
    np.save(part_files[jax.process_index()], own)
    wait_for_all(name)
    return map(np.load, part_files)


def wait_for_all(reason: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def all_hold(is_so: bool) -> bool:
    """Whether something is so on every process; to be asked by all of them."""
    return bool(np.all(multihost_utils.process_allgather(np.array(is_so))))


def of_first(values: np.ndarray) -> np.ndarray:
    """The array that the first process has, on all of them."""
    return values if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(values))


class StopSignals:
    """While it is entered, SIGTERM and Ctrl-C end no process, but ask all to stop together after a step.

    A second Ctrl-C ends the process at once.
    """

    def __enter__(self) -> "StopSignals":
        self._is_asked = False
        # In a cluster, even of one process, JAX takes SIGTERM itself, in C++, and tells the other processes.
        numbers = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._take_note) for number in numbers}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)
            # Not by `say`, in the middle of which the signal may have come.
            os.write(
                2, b"\nCtrl-C: the run stops after this step, with a checkpoint; once more, and it stops at once\n"
            )

    def are_given(self, step: int) -> bool:
        """Whether this is the step that all stop at; to be asked by all after every step."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_asked


def part() -> None:
    """Lets each process end when it likes: from here on, none waits for another or hears of its loss."""
    wait_for_all("parting")
    jax.distributed.shutdown()


def check_same(description: str) -> None:
    """Checks that all processes were started alike, because those that were not would wait for each other forever.

    Args:
        description: of settings and data.

    Raises:
        InputError: on all processes, if the descriptions differ.
    """
    digest = np.frombuffer(hashlib.sha256(description.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest).reshape(jax.process_count(), -1)
    _refuse((digests == digests[0]).all(axis=1), "other settings or data than process 0; start the same command on all")


@contextlib.contextmanager
def alone(lock: Path, directory: Path, setting: str) -> Iterator[None]:
    """Keeps other commands out of a directory: of two, each would remove what the other is about to save or read.

    Args:
        lock: file that the first process locks.
        directory: what the message names.
        setting: which names the directory, or the one that it lies in.

    Raises:
        InputError: on all processes, if another command works in the directory.
        OSError: if the file cannot be written.
    """
    with contextlib.ExitStack() as held:
        if not all_hold(not is_first() or held.enter_context(locked(lock))):
            raise InputError(
                f"{directory}: another process works there; wait for it, stop it or choose another {setting} (if there "
                f"is none, remove {lock})"
            )
        yield


@contextlib.contextmanager
def scratch(directory: Path, setting: str, content: str) -> Iterator[Path]:
    """A directory in which processes leave files for each other; the first one removes it when all is done.

    What a run leaves there that fails or is killed is found by the next one, if `content` says what it is.

    Args:
        directory: where.
        setting: which names the directory that it lies in.
        content: what the files are of; those that are of something else are removed first. Empty if nothing is to be
            found by another run.

    Raises:
        InputError: if it cannot be written, another command works in it, or not all processes see it.
    """
    description, lock = directory / "content", directory.with_name(f"{directory.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(lock, directory, setting))
            if is_first():
                held.callback(lock.unlink, missing_ok=True)
                if not (description.is_file() and description.read_bytes() == content.encode()):
                    shutil.rmtree(directory, ignore_errors=True)
            wait_for_all("scratch")
            directory.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
            if is_first():
                replace(description, content)
        except OSError as error:
            raise InputError(
                f"{directory}: cannot be written to: {error.strerror}; choose another {setting}"
            ) from error
        check_shared(directory, setting)
        if is_first() and not content:
            held.callback(shutil.rmtree, directory, ignore_errors=True)
        yield directory
        if is_first():
            shutil.rmtree(directory, ignore_errors=True)


def check_shared(directory: Path, setting: str) -> None:
    """Checks that all processes see one directory, so that a local disk shows before hours of work.

    Args:
        directory: that exists everywhere.
        setting: which names it.

    Raises:
        InputError: on all processes, if some see another directory than the first one does.
    """
    if jax.process_count() == 1:
        return
    # A name that nobody has asked for before: network file systems remember for a while what was missing.
    number = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(4), np.uint32))
    path = directory / f".shared-{int(number[0])}"
    if is_first():
        path.touch()
    wait_for_all("shared directory")
    is_seen = multihost_utils.process_allgather(np.array(path.exists()))
    if is_first():
        path.unlink()
    _refuse(is_seen, f"another {directory} than process 0; let {setting} name a directory that all hosts share")


def _refuse(is_right: np.ndarray, message: str) -> None:
    """Raises an InputError on all processes, if it is not right on all; the message goes on after `process I has`."""
    if not is_right.all():
        raise InputError(f"process {', '.join(map(str, np.flatnonzero(~is_right)))} has {message}")


def _given(names: tuple[str, ...], values) -> tuple[str, int, int] | tuple[()]:
    """Address, number and index of processes; empty if none is given."""
    values = tuple(values)
    if not any(values):
        return ()
    if not all(values):
        raise InputError(
            f"{', '.join(names)} must be set together; {names[list(map(bool, values)).index(False)]} is not"
        )
    address, *numbers = values
    _, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        raise InputError(f"{names[0]} {address} is not HOST:PORT")
    for name, number in zip(names[1:], numbers, strict=True):
        if not number.isdecimal():
            raise InputError(f"{name} {number} is not a whole number")
    processes, process = map(int, numbers)
    if process >= processes:
        raise InputError(f"{names[2]} {process} is not less than {names[1]} {processes}; the first process is 0")
    return address, processes, process


def _seconds(argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument} is not 1 or more")
    return int(argument)
