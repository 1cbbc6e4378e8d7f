"""What a training's losses look like: spikes, and steps whose numbers went wrong."""

import math
import statistics
from collections import deque

from retromae_jax.logging import say

# A loss is a spike if it is this many standard deviations above the mean of so many losses before it, and said to be
# one only when there are enough to tell.
DEVIATIONS, RECENT, ENOUGH = 6, 100, 20


class LossWatch:
    """Looks at the loss of every step, and says what is unusual.

    Args:
        name: what the run is called.

    Attributes:
        skipped_in_a_row: steps up to the last that changed nothing, because loss or gradient were not finite.
    """

    def __init__(self, name: str):
        self.name, self.skipped_in_a_row = name, 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def see(self, step: int, loss: float, gradient_norm: float) -> None:
        """Takes note of the loss and the gradient's norm of step `step`."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.skipped_in_a_row += 1
            say(
                f"{self.name}: step {step:,} is skipped, the {self.skipped_in_a_row}. in a row: loss {loss}, gradient "
                f"norm {gradient_norm}"
            )
            return
        self.skipped_in_a_row = 0
        if len(self._recent) >= ENOUGH:
            mean, deviation = statistics.fmean(self._recent), statistics.pstdev(self._recent)
            if loss > mean + DEVIATIONS * deviation > mean:
                say(
                    f"{self.name}: step {step:,}: the loss jumps to {loss:.3f}, {(loss - mean) / deviation:.0f} "
                    f"standard deviations above the mean {mean:.3f} of the {len(self._recent)} steps before"
                )
        self._recent.append(loss)
