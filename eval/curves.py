"""What training runs' metrics.jsonl say, for `eval.compare`: their curves, and the reconstruction gain."""

import json
from collections.abc import Mapping
from pathlib import Path

from retromae_jax.errors import InputError

GAIN = "held_out/reconstruction_gain"
# What a line of metrics.jsonl holds.
Row = dict[str, float]


def read_curves(directory: Path) -> list[Row]:
    """The lines of a training run's metrics.jsonl.

    Raises:
        InputError: if there is none, or a line is broken.
    """
    path = directory / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; is it the directory of a training run?") from error


def reconstruction_gains(curves: Mapping[str, list[Row]]) -> dict[str, list[tuple[float, float]]]:
    """Steps and reconstruction gains of the runs that measured it, by the run's name."""
    gains = {name: [(row["step"], row[GAIN]) for row in rows if GAIN in row] for name, rows in curves.items()}
    return {name: measured for name, measured in gains.items() if measured}


def plot_curves(curves: Mapping[str, list[Row]], path: Path) -> None:
    """One row of panels per run: training losses, and what was measured on held-out data."""
    from matplotlib.figure import Figure  # takes a while

    panels = []
    for name, rows in curves.items():
        for prefix, kind in (("", "training"), ("held_out/", "held out")):
            keys = sorted({key for row in rows for key in row if key == f"{prefix}loss" or key.endswith("_loss")})
            keys = [key for key in keys if key.startswith("held_out/") == bool(prefix)]
            if keys:
                panels.append((f"{name}: {kind} loss, nats", rows, keys))
        if any(GAIN in row for row in rows):
            panels.append((f"{name}: reconstruction gain, nats per token", rows, [GAIN]))
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)
    for axis, (title, rows, keys) in zip(axes[:, 0], panels, strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), marker=".", label=key.rsplit("/", 1)[-1].replace("_", " "))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
