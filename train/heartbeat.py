"""Signs of life of a training: a file that says how far it is, and its stacks when it stands still."""

import contextlib
import faulthandler
import json
import math
import os
import shlex
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import jax

from retromae_jax import files, hosts
from retromae_jax.checkpoints.train_state import Run

FILE = "heartbeat.json"
SECONDS_BETWEEN_BEATS = 1.0
# Speeds are over so many beats.
BEATS = 60


def command_line(command: str, arguments: Sequence[str]) -> str:
    """What a run was started by, for a shell."""
    return shlex.join(["python", "-m", f"train.{command}", *arguments])


class Heartbeat:
    """Writes `heartbeat.json` in a run's directory, at most once a second, and watches for steps that never end.

    When no step ends for `stall_minutes`, the stacks of all Python threads of this process are written to
    `stacks_of_process_I.txt` there, once; by the C library's thread, because Python may be what hangs.

    Args:
        run: the run.
        num_steps: finished steps at the end.
        unit: what the speed is counted in.
        stall_minutes: see above.

    Attributes:
        state: what the file says of the run: `running`, `stopped`, `finished` or `failed`.
    """

    def __init__(self, run: Run, num_steps: int, unit: str, stall_minutes: float):
        self.state = "running"
        self._run, self._stall_minutes = run, stall_minutes
        self._stacks_path = run.directory / f"stacks_of_process_{jax.process_index()}.txt"
        self._values = {
            "command": run.command,
            "arguments": sys.argv[1:],
            "directory": os.getcwd(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "processes": jax.process_count(),
            "num_steps": num_steps,
            "unit": unit,
            "stall_minutes": stall_minutes,
            "devices": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
            "loss": None,
        }
        # What the run took before it was resumed counts.
        self._seconds_before, self._started = _seconds_of(run.directory / FILE), time.monotonic()
        self._units = 0
        self._beats: deque[tuple[float, int, int]] = deque(maxlen=BEATS)

    def beat(self, step: int, loss: float = math.nan, units: int = 0) -> None:
        """Tells that a step is finished; the first call, before the first step, has no loss."""
        self._units += units
        now = time.monotonic()
        self._values["step"] = step
        if math.isfinite(loss):
            self._values["loss"] = loss
        if not self._beats or now - self._beats[-1][0] >= SECONDS_BETWEEN_BEATS:
            self._beats.append((now, step, self._units))
            faulthandler.dump_traceback_later(60 * self._stall_minutes, file=self._stacks)
            self._write()

    def _write(self) -> None:
        if not hosts.is_first():
            return
        (before, first_step, first_units), (now, step, units) = self._beats[0], self._beats[-1]
        elapsed = max(now - before, 1e-9)
        saved = self._run.checkpoints.saved
        values = self._values | {
            "state": self.state,
            "time": time.time(),
            "seconds": self._seconds_before + time.monotonic() - self._started,
            "steps_per_second": (step - first_step) / elapsed,
            "units_per_second": (units - first_units) / elapsed,
            "saved_step": saved,
            "saved_at": _time_of(self._run.checkpoints.path / str(saved)),
            "save_failure": self._run.checkpoints.failure,
        }
        path, text = self._run.directory / FILE, json.dumps(values, indent=2) + "\n"
        try:
            files.replace(path, text)
        except OSError:
            # On a full disk there is room at least where the older one is. No reason to end; the checkpoints say so.
            with contextlib.suppress(OSError), path.open("r+") as file:
                file.write(text)
                file.truncate()

    def __enter__(self) -> "Heartbeat":
        self._stacks = self._stacks_path.open("a")
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        with contextlib.suppress(OSError):
            if self._stacks_path.stat().st_size == 0:
                self._stacks_path.unlink()
        if self.state == "running":
            self.state = "finished" if kind is None else "failed"
        self._write()


def _seconds_of(path: Path) -> float:
    """How long a run had taken when it wrote its heartbeat; 0 if it has written none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads(path.read_text())["seconds"])
    return 0.0


def _time_of(path: Path) -> float | None:
    """When a checkpoint was saved, in seconds since 1970; None if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
