"""Disks that are full."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def fill(directory: Path) -> Iterator[None]:
    """Leaves no room in a file system."""
    filling = directory / "filling"
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while file.write(bytes(2**12)):
            pass
    yield
    filling.unlink()
