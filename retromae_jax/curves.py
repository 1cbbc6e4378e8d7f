"""What trainings' metrics.jsonl say: their curves, and the reconstruction gain."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

GAIN = "held_out/reconstruction_gain"
# What a line of metrics.jsonl holds.
Row = Mapping[str, float]


def plot_curves(curves: Mapping[str, Sequence[Row]], file: Path | BinaryIO) -> bool:
    """Writes a PNG with one row of panels per run: training losses, and what was measured on the way.

    Args:
        curves: name -> lines of `metrics.jsonl`.
        file: to write to.

    Returns:
        Whether there was anything to draw; without, nothing is written.
    """
    from matplotlib.figure import Figure  # takes a while

    panels = []
    for name, rows in curves.items():
        for prefix, kind in (("", "training"), ("held_out/", "held out")):
            keys = sorted({key for row in rows for key in row if key == f"{prefix}loss" or key.endswith("_loss")})
            keys = [key for key in keys if key.startswith("held_out/") == bool(prefix)]
            panels.append((f"{name}: {kind} loss, nats", rows, keys))
        panels.append((f"{name}: reconstruction gain, nats per token", rows, [GAIN]))
        probed = sorted({key for row in rows for key in row if key.startswith("probe/")})
        panels.append((f"{name}: retrieval probe", rows, probed))
    panels = [panel for panel in panels if any(key in row for row in panel[1] for key in panel[2])]
    if not panels:
        return False
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
    figure.savefig(file, dpi=120, format="png")
    return True
