"""Files that are whole or not there, however a process ends."""

import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Writes a file of text; until all of it is written, an older one stays as it was.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.incomplete")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
