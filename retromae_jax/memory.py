"""A process's memory on a CPU, of which a step of fine-tuning takes gigabytes that the next one takes again."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# From mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed() -> None:
    """Lets the process keep what it frees, where it fine-tunes on a CPU; call it before anything else of JAX.

    glibc gives large pieces back to the system as soon as they are free, and the system clears each page anew when the
    next step touches it, which is a good part of the step. To be kept, they must come from the one arena that grows
    without end. Hosts of accelerators, whose steps take no memory of theirs, and other C libraries are left alone.
    """
    if not (sys.platform == "linux" and _has_cpu_alone()):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _has_cpu_alone() -> bool:
    """Whether JAX will find no accelerator, as far as can be told before it looks."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and not importlib.util.find_spec("libtpu")
