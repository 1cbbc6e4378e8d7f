"""Tells what a training run is doing, or how it ended.

    python -m train.status --workdir runs/wiki

It reads files of the run's directory only, so it runs on any machine that sees them.
"""

import argparse
import datetime
import shlex
import socket
import time
from pathlib import Path

from retromae_jax.checkpoints.train_state import is_run, read_description
from retromae_jax.errors import InputError, exits_on_input_error
from retromae_jax.files import read_json
from retromae_jax.logging import LOG, duration
from train.heartbeat import FILE, command_line

# Seconds without a sign of life from which on a process that cannot be found counts as killed.
SILENT = 60


def status(workdir: Path) -> str:
    """Lines of a name and a value each.

    Raises:
        InputError: if the directory is no run's.
    """
    if not is_run(workdir):
        raise InputError(f"{workdir} is not the directory of a training run: it has no run.json")
    lines = {"run": f"{read_description(workdir)['command']}, {workdir}"}
    beat = _heartbeat(workdir / FILE)
    if beat is None:
        lines["state"] = f"no step yet: it starts, or ended before it began (there is no {FILE})"
    else:
        verdict, is_over = _verdict(workdir, beat)
        lines["state"] = verdict
        lines |= _progress(beat, is_over)
    lines["checkpoint"] = _checkpoint(workdir / "checkpoints")
    if beat is not None:
        if beat["save_failure"]:
            lines["not saved"] = f"the latest checkpoint failed: {beat['save_failure']}"
        if beat["state"] != "finished":
            command = command_line(beat["command"], beat["arguments"])
            where = f" on all {beat['processes']} hosts" if beat["processes"] > 1 else ""
            lines["resume"] = f"cd {shlex.quote(beat['directory'])} && {command}{where}"
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines.items())


def _heartbeat(path: Path) -> dict | None:
    return read_json(path, dict, "remove it, a run writes it anew") if path.exists() else None


def _verdict(workdir: Path, beat: dict) -> tuple[str, bool]:
    """What a run is doing in words, and whether it is over."""
    age = max(time.time() - beat["time"], 0)
    where = f"process {beat['process']} on {beat['host']}"
    if beat["state"] == "finished":
        return f"finished {duration(age)} ago", True
    if beat["state"] == "stopped":
        return f"stopped by a signal {duration(age)} ago, with a checkpoint", True
    if beat["state"] == "failed":
        return f"ended by an error {duration(age)} ago; {workdir / LOG} says which", True
    # Of a process that lives in another container, under the same name of the host, there is nothing in /proc either.
    is_gone = Path("/proc/self").exists() and not Path(f"/proc/{beat['process']}").exists()
    if beat["host"] == socket.gethostname() and is_gone and age > SILENT:
        return f"killed: {where} is gone, last heard of {duration(age)} ago", True
    if age > 60 * beat["stall_minutes"]:
        stacks = [str(path) for path in sorted(workdir.glob("stacks_of_process_*.txt")) if path.stat().st_size]
        hint = f"; where it hangs: {', '.join(stacks)}" if stacks else ""
        return f"stalled, or killed: no sign of {where} for {duration(age)}{hint}", True
    return f"running, {where}, last heard of {duration(age)} ago", False


def _progress(beat: dict, is_over: bool) -> dict[str, str]:
    step, last = beat["step"], beat["num_steps"]
    lines = {"step": f"{step:,} of {last:,}, {step / max(last, 1):.0%}"}
    if beat["loss"] is not None:
        lines["loss"] = f"{beat['loss']:.4f}"
    if beat["steps_per_second"] > 0:
        lines["speed"] = f"{beat['units_per_second']:,.0f} {beat['unit']}/s, {beat['steps_per_second']:.3g} steps/s" + (
            " at last" if is_over else ""
        )
        if step < last:
            lines["time left"] = duration((last - step) / beat["steps_per_second"])
    return lines


def _checkpoint(directory: Path) -> str:
    steps = (
        {int(path.name): path for path in directory.iterdir() if path.name.isdecimal()} if directory.is_dir() else {}
    )
    if not steps:
        return "none yet"
    newest = steps[max(steps)]
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    saved = datetime.datetime.fromtimestamp(newest.stat().st_mtime)
    ago = duration(max(time.time() - newest.stat().st_mtime, 0))
    damaged = sorted(path.name for path in directory.iterdir() if path.name.endswith(".damaged"))
    return f"step {max(steps):,}, {size / 1e6:,.1f} MB, {saved:%Y-%m-%d %H:%M:%S}, {ago} ago; {len(steps)} kept" + (
        f"; set aside: {', '.join(damaged)}" if damaged else ""
    )


@exits_on_input_error
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="directory of a training run")
    print(status(parser.parse_args().workdir.expanduser()))


if __name__ == "__main__":
    main()
