"""A trace of a few steps: what host and devices do when, operation by operation."""

from pathlib import Path

import jax

from retromae_jax.errors import InputError
from retromae_jax.logging import say

# The first steps compile, and fill the queue of the devices.
SKIPPED, TRACED = 3, 3


class Profile:
    """Traces some of a run's steps, on every process into a directory of its own.

    Args:
        directory: of the run; the traces are in `profile/` there.
        first_step: the run's first step from here on.
        num_steps: finished steps at its end.

    Raises:
        InputError: if there are too few steps.
    """

    def __init__(self, directory: Path, first_step: int, num_steps: int):
        if num_steps - first_step < SKIPPED + TRACED:
            raise InputError(
                f"--profile needs {SKIPPED + TRACED} steps, and {directory} has {num_steps - first_step} to go; set "
                "another --config.workdir or more --config.num_steps"
            )
        self.directory = directory / "profile"
        self.first_step = first_step + SKIPPED

    def before(self, step: int) -> None:
        """Starts the trace, if it starts at this step."""
        if step == self.first_step:
            # Processes that share a host would write to the same file.
            jax.profiler.start_trace(self.directory / f"process_{jax.process_index()}")

    def after(self, step: int, result: object) -> None:
        """Writes the trace, if this step, which computes `result`, is its last."""
        if step == self.first_step + TRACED - 1:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            say(
                f"profile: steps {self.first_step + 1:,} to {step + 1:,} are in {self.directory}; to look at it: "
                f"`pip install xprof`, `xprof --logdir {self.directory}`, or open a .trace.json.gz there in "
                "https://ui.perfetto.dev"
            )
