import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from retromae_jax import logging
from retromae_jax.logging import MetricsLog, Progress, delayed, duration, log_file, progress, say, table
from tests.disks import fill


def test_durations_in_the_unit_one_would_say():
    assert [duration(s) for s in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]


def test_a_table_is_aligned():
    rows = [
        {"system": "BM25", "nDCG@10": 0.5},
        {"system": "RetroMAE", "nDCG@10": 0.75},
        {"system": "", "nDCG@10": None},
    ]
    expected = "scores\nsystem    nDCG@10\n--------  -------\nBM25       0.5000\nRetroMAE   0.7500\n                -"
    assert table(rows, "scores") == expected


def test_progress_off_a_terminal_prints_lines_with_rate_and_time_left(capsys, monkeypatch):
    """Of which the first step, that something was compiled for, tells nothing."""
    monkeypatch.setattr(logging, "SECONDS_BETWEEN_LINES", 0.0)
    clock = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: clock[0])
    with Progress("work", 100, "steps", initial=10) as shown:
        for seconds, note in ((60.0, "loss 2.5"), (61.0, ""), (70.0, "")):
            clock[0] = seconds
            shown.update(1, note)
    assert capsys.readouterr().err.splitlines() == [
        "work: 11 of 100 steps, loss 2.5",
        "work: 12 of 100 steps, 1.0 steps/s, 1 min 28 s left, loss 2.5",
        "work: 13 of 100 steps, 5 s each, 7 min 15 s left, loss 2.5",
        "work: 3 steps in 1 min 10 s",
    ]


def test_quick_tasks_of_a_call_show_no_progress(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: clock[0])
    for seconds in (2.9, 3.0):
        with delayed(), Progress("work", 1, "steps") as shown:
            clock[0] += seconds
            shown.update()
    with delayed(math.inf), Progress("work", 1, "steps") as shown:
        clock[0] += 100.0
        shown.update()
    with Progress("work", 1, "steps") as shown:
        shown.update()
    assert capsys.readouterr().err.splitlines() == ["work: 1 steps in 3 s", "work: 1 steps in 0 s"]


def test_progress_of_an_iterable_yields_its_items(capsys):
    assert list(progress([3, 1, 2], "count", "things")) == [3, 1, 2]
    assert "count: 3 things in 0 s" in capsys.readouterr().err


def test_a_resumed_log_reads_as_if_the_run_had_never_stopped(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (2, 4, 6):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    log = MetricsLog(tmp_path, resumed_step=4)
    log.write(6, {"loss": 0.5})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 2.0}, {"step": 4, "loss": 4.0}, {"step": 6, "loss": 0.5}]


def test_a_new_run_starts_its_log_anew(tmp_path):
    for loss in (1.0, 2.0):
        log = MetricsLog(tmp_path)
        log.write(0, {"loss": loss})
        log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "loss": 2.0}


def test_metrics_wait_for_room_on_a_full_disk(small_disk, capsys):
    log = MetricsLog(small_disk)
    log.write(1, {"loss": 1.0})
    with fill(small_disk):
        for step in range(2, 300):
            log.write(step, {"loss": float(step)})
    assert capsys.readouterr().err.count("metrics cannot be written: No space left on device") == 1
    log.write(300, {"loss": 300.0})
    log.close()
    lines = [json.loads(line) for line in (small_disk / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": float(step)} for step in range(1, 301)]


def test_what_is_said_is_kept_with_its_time_in_files_of_limited_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging, "LOG_BYTES", 1000)
    path = tmp_path / "log.txt"
    path.write_text("of an earlier start\n")
    with log_file(path):
        for number in range(200):
            say(f"event {number}")
    say("afterwards")
    assert len(capsys.readouterr().err.splitlines()) == 201
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.txt", *(f"log.txt.{n}" for n in range(1, 6))]
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    *_, last = path.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}  event 199", last)


def test_the_log_says_how_it_ended(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("of an earlier start\n")
    with pytest.raises(RuntimeError), log_file(path):
        raise RuntimeError("no more")
    first, last = path.read_text().splitlines()
    assert first == "of an earlier start" and last.endswith("  ended by RuntimeError: no more")


def test_a_full_disk_does_not_end_what_is_logged(small_disk, capsys):
    with log_file(small_disk / "log.txt"), fill(small_disk):
        say("no room")
    assert capsys.readouterr().err == "no room\n"


TERMINAL = """
from retromae_jax.logging import Progress, say
with Progress("work", 30, "steps") as outer:
    outer.update(10, "loss 2.5")
    with Progress("inner", 3, "things") as inner:
        inner.update(3)
    say("an event")
"""


@pytest.mark.parametrize("columns", [80, 0])
def test_a_terminal_has_a_bar_if_it_knows_its_width(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    subprocess.run([sys.executable, "-c", TERMINAL], stderr=theirs, check=True)
    shown = os.read(ours, 100_000).decode()
    os.close(ours), os.close(theirs)
    # A task within another has no bar, and no line unless it takes long.
    assert "an event" in shown and "inner" not in shown
    assert ("| 10/30 [" in shown and "loss 2.5" in shown) == (columns > 0)
    assert ("work: 10 steps in 0 s" in shown) == (columns == 0)
