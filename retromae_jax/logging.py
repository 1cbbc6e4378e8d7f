"""What a run tells its user: progress on the terminal, metrics in files.

On a terminal, progress is a live bar. Elsewhere (a log file, CI) it is a plain line every few seconds, so that
logs stay readable. Either way it shows the rate and the time left.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from logging import Formatter, LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0
# Files in a run's directory.
METRICS, LOG = "metrics.jsonl", "log.txt"
LOG_BYTES = 10_000_000
LOGS_KEPT = 5

# Of several processes of one run, only the first prints and logs.
_silent = False
# Seconds that a task takes before its progress is shown.
_delay = 0.0


def silence() -> None:
    """Makes this process print and log nothing more."""
    global _silent
    _silent = True


@contextlib.contextmanager
def delayed(seconds: float = 3.0) -> Iterator[None]:
    """While it is entered, progress is shown only of tasks that take longer than so many seconds."""
    global _delay
    before, _delay = _delay, seconds
    try:
        yield
    finally:
        _delay = before


class _LogFile(RotatingFileHandler):
    def handleError(self, record: LogRecord) -> None:
        """Does nothing: a traceback for each line that cannot be written would bury what else is said."""


# Where what is said is kept, too.
_log: _LogFile | None = None


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """While it is entered, what is said is kept in a file, too, each line with its time; and how it ended.

    A file of 10 MB gets the suffix `.1`, that which had it `.2`, and so on to `.5`; the oldest is removed. What cannot
    be written, say to a full disk, is lost.

    Args:
        path: the file, in a directory that exists; more is written behind what it holds.
    """
    global _log
    if _silent:
        yield
        return
    _log = _LogFile(path, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8", delay=True)
    _log.setFormatter(Formatter("%(asctime)s  %(message)s"))
    try:
        yield
    except BaseException as error:
        _keep(f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        _log.close()
        _log = None


def _keep(message: str) -> None:
    if _log is not None:
        _log.emit(makeLogRecord({"msg": message}))


def say(message: str) -> None:
    """Prints one line about an event that matters, above a progress bar if there is one."""
    if _silent:
        return
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()
    _keep(message)


def duration(seconds: float) -> str:
    """Formats seconds as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _is_terminal() -> bool:
    """Whether a bar can be shown: on terminals that do not know their width, as in some containers, it cannot."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


class Progress:
    """Progress of a task of `total` units (None when unknown): a bar on a terminal, plain lines elsewhere.

    A task within another is shown only where it takes long: by plain lines.
    """

    _open = 0

    def __init__(self, task: str, total: int | None, unit: str, initial: int = 0):
        self.task, self.total, self.unit = task, total, unit
        self.is_within, self.delay = Progress._open > 0, _delay
        self.done = self.initial = initial
        self.started = self.last_line = time.monotonic()
        # When the first units were done, and how many: they often take longest, as something is compiled for them.
        self.first: tuple[float, int] | None = None
        self.note = ""
        self.bar = None
        if _is_terminal() and not _silent and not self.is_within:
            self.bar = tqdm(
                desc=task,
                total=total,
                unit=f" {unit}",
                initial=initial,
                dynamic_ncols=True,
                smoothing=0.1,
                delay=self.delay,
            )

    def update(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units as done; `note` (say, the loss) is shown beside the rate."""
        self.done += count
        self.note = note or self.note
        if self.first is None:
            self.first = time.monotonic(), self.done
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= max(self.delay, SECONDS_BETWEEN_LINES):
            self.last_line = time.monotonic()
            say(self._line(*self.first))

    def _line(self, first: float, done: int) -> str:
        """The state in words; the rate is of the units after the first `done`, which were there at the time `first`."""
        line = f"{self.task}: {self.done:,}"
        if self.total is not None:
            line += f" of {self.total:,}"
        line += f" {self.unit}"
        if self.done > done:
            seconds = (time.monotonic() - first) / (self.done - done)
            line += f", {1 / seconds:,.1f} {self.unit}/s" if seconds < 2 else f", {duration(seconds)} each"
            if self.total is not None:
                line += f", {duration((self.total - self.done) * seconds)} left"
        return f"{line}, {self.note}" if self.note else line

    def __enter__(self) -> "Progress":
        Progress._open += 1
        return self

    def __exit__(self, *exception) -> None:
        Progress._open -= 1
        if self.bar is not None:
            self.bar.close()
        if exception[0] is None:
            elapsed = time.monotonic() - self.started
            is_shown = self.bar is None and not self.is_within and elapsed >= self.delay
            if is_shown or elapsed > max(self.delay, SECONDS_BETWEEN_LINES):
                say(f"{self.task}: {self.done - self.initial:,} {self.unit} in {duration(elapsed)}")


def progress(items: Iterable[Item], task: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items` and shows how far their consumer has come."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(task, total, unit) as shown:
        for item in items:
            yield item
            shown.update()


def table(rows: Sequence[Mapping[str, object]], title: str = "") -> str:
    """Formats rows of equal keys as an aligned plain-text table; floats get four decimals, None is a dash."""

    def text(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    columns = list(rows[0])
    cells = [columns] + [[text(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(isinstance(row[column], int | float | None) for row in rows) for column in columns]

    def line(values: list[str]) -> str:
        return "  ".join(
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ).rstrip()

    ruler = "  ".join("-" * width for width in widths)
    return "\n".join([*([title] if title else []), line(cells[0]), ruler, *map(line, cells[1:])])


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """What a run has logged, a dictionary for each line; the last line of a killed run may be cut short and is none."""
    path, rows = directory / METRICS, []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


class MetricsLog:
    """Writes the metrics of a run to `metrics.jsonl` and TensorBoard files in its directory.

    A full disk does not end a run: what cannot be written waits in memory.

    Args:
        directory: the run's directory; created if missing.
        resumed_step: the step that a resumed run goes on from; what an earlier `metrics.jsonl` says of later steps
            is dropped, so that the file reads like that of a run which never stopped.
    """

    def __init__(self, directory: Path, resumed_step: int = 0):
        # Not its SummaryWriter: that writes in a thread which a full disk ends, and then whoever logs waits forever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.file = None
        if _silent:
            return
        (directory / "tensorboard").mkdir(parents=True, exist_ok=True)
        self.path = directory / METRICS
        kept = [row for row in read_metrics(directory) if row["step"] <= resumed_step] if resumed_step else []
        rewritten = self.path.with_suffix(".incomplete")
        rewritten.write_text("".join(json.dumps(row) + "\n" for row in kept))
        rewritten.rename(self.path)
        # Its buffer is what waits in memory.
        self.file = self.path.open("ab", buffering=2**20)
        self.is_written = True
        self.board = EventsWriter(str(directory / "tensorboard" / "events"))
        self.board.write_event(
            Event(step=resumed_step + 1, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of optimizer step `step` (the number of finished steps)."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        if self.file is None:
            return
        try:
            self.file.write(json.dumps({"step": step, **metrics}).encode() + b"\n")
            self.file.flush()
            for name, value in metrics.items():
                self.board.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
            self.board.flush()
            self.is_written = True
        except OSError as error:
            if self.is_written:
                say(f"{self.path}: metrics cannot be written: {error.strerror}; they wait in memory until they can be")
            self.is_written = False

    def close(self) -> None:
        """Writes what is left."""
        if self.file is None:
            return
        for file in (self.file, self.board):
            try:
                file.close()
            except OSError as error:
                say(f"{self.path}: the last metrics cannot be written: {error.strerror}")
