"""Files, written whole or not at all, however a process ends, and read with what is wrong with them; locks."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retromae_jax.errors import InputError, one_line


def replace(path: Path, text: str) -> None:
    """Writes a file of text; until all of it is written, an older one stays as it was.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.incomplete")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes a `.npy` file, which has its name when all of it is on disk.

    Raises:
        InputError: if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.save(file, values)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror}; mend that and start the same command again: it goes on here"
        ) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock of a file, which ends with the process at the latest; yields whether no other process has it.

    Where the file system has no locks, everybody is let in.

    Raises:
        OSError: if the file cannot be written.
    """
    with path.open("w") as file:
        is_held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        except OSError:
            pass
        yield is_held


def read_json_lines(path: Path, remedy: str = "fetch or make it again") -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, which are dictionaries.

    Args:
        path: the file.
        remedy: what to do about a broken one.

    Raises:
        InputError: if it cannot be read, or a line is no dictionary.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; {remedy}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}; {remedy}") from error
        if not isinstance(rows[-1], dict):
            raise InputError(f"{path}:{number}: not a JSON object; {remedy}")
    return rows


def read_json(path: Path, kind: type = dict, remedy: str = "fetch or make it again") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: what it must hold, a `dict` or a `list`.
        remedy: what to do about a broken one.

    Raises:
        InputError: if it cannot be read, is not valid or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {one_line(error)}; {remedy}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path}: a JSON {type(content).__name__} where a {kind.__name__} is expected; {remedy}")
    return content
