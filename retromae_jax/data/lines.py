"""The lines of users' files: memory-mapped, and parsed with what is wrong with one and where it stands."""

import contextlib
import gzip
import hashlib
import json
import mmap
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retromae_jax.errors import InputError, shown

Parsed = TypeVar("Parsed")

BYTES_AT_ONCE = 2**26


class BadLineError(ValueError):
    """What is wrong with a line and the remedy; where the line stands is added by `Lines.parsed`."""


class Lines(Sequence[str]):
    """The lines of a UTF-8 text file, memory-mapped, without line ends and byte order mark.

    Blank lines at the end do not count.

    Raises:
        InputError: if the file is missing, empty or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._bytes = _mapped(path)
        ends = _newlines(self._bytes)
        if self._bytes[-1:] != b"\n":
            ends = np.append(ends, len(self._bytes))
        self._starts, self._ends = np.concatenate([[0], ends[:-1] + 1]), ends
        if self._bytes[:3] == b"\xef\xbb\xbf":
            self._starts[0] = 3
        count = len(ends)
        while count and not self._bytes[self._starts[count - 1] : self._ends[count - 1]].strip():
            count -= 1
        if count == 0:
            raise InputError(f"{path}: the file is empty; fetch or make it again")
        self._starts, self._ends = self._starts[:count], self._ends[:count]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        line = self._bytes[self._starts[index] : self._ends[index]]
        try:
            return line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}:{index + 1}: byte {error.start + 1} of the line is not UTF-8; mend the line, or convert "
                "the file with iconv"
            ) from None

    def sha256(self) -> str:
        """The digest of the file's content, of a `.gz` file unpacked."""
        return hashlib.sha256(self._bytes).hexdigest()

    def parsed(self, index: int, parse: Callable[[str], Parsed]) -> Parsed:
        """What `parse` makes of a line; its `BadLineError` becomes an InputError that names file and line."""
        line = self[index]
        try:
            return parse(line)
        except BadLineError as problem:
            raise InputError(f"{self.path}:{index + 1}: {problem}") from None


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if path.suffix == ".gz":
                file = stack.enter_context(unpack(path, file))
            is_empty = file.seek(0, 2) == 0
            # The map outlives the open file.
            return b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; mend its name or its rights") from error


def unpack(path: Path, packed: IO[bytes]) -> IO[bytes]:
    """A temporary file of what a `.gz` file holds; the caller closes it.

    Args:
        path: of the packed file.
        packed: the same, opened.

    Raises:
        InputError: if it is damaged, or there is no room to unpack it.
    """
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    lines = 0
    with gzip.open(packed) as stream:
        while True:
            try:
                chunk = stream.read(BYTES_AT_ONCE)
            except (EOFError, OSError, zlib.error) as error:
                unpacked.close()
                raise InputError(
                    f"{path}:{lines + 1}: cannot be unpacked any further: {error}; it may be cut short or damaged: "
                    "fetch it again"
                ) from error
            if not chunk:
                break
            lines += chunk.count(b"\n")
            try:
                unpacked.write(chunk)
            except OSError as error:
                raise InputError(
                    f"{path}: no room to unpack it in {tempfile.gettempdir()}: {error.strerror}; unpack it yourself or "
                    "set TMPDIR"
                ) from error
    unpacked.seek(0)
    return unpacked


def _newlines(content: mmap.mmap | bytes) -> np.ndarray:
    every = np.frombuffer(content, np.uint8)
    found = [
        start + np.flatnonzero(every[start : start + BYTES_AT_ONCE] == ord("\n"))
        for start in range(0, len(every), BYTES_AT_ONCE)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


def columns(line: str, names: tuple[str, ...]) -> list[str]:
    """The fields of a line between tabs, as many as there are names; raises a BadLineError."""
    fields = line.split("\t")
    if len(fields) != len(names):
        raise BadLineError(
            f"{counted(len(fields), 'field')} where {len(names)} are expected, {' TAB '.join(names)}; mend the line "
            "(a text must not hold tabs)"
        )
    return fields


def counted(count: int, noun: str) -> str:
    """So many of something, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def checked_id(value: str) -> str:
    """An id that runs and qrels can hold; raises a BadLineError."""
    # Runs and qrels in TREC's format have fields between white space.
    if value.split() != [value]:
        raise BadLineError(
            f"the id {shown(value)} is empty or has white space in it; give the passage or query another one"
        )
    return value


def json_object(line: str) -> dict:
    """The object that a line of JSON holds; raises a BadLineError."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"no valid JSON: {error}; mend or remove the line") from None
    if not isinstance(record, dict):
        raise BadLineError(f"a JSON {type(record).__name__} where an object is expected; write one object a line")
    return record


def encodable(text: str, key: str) -> str:
    """The text under a key, if it can be written again as UTF-8; raises a BadLineError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadLineError(
            f"{key!r} holds half of a surrogate pair at character {error.start + 1}; mend or remove the line"
        ) from None
    return text


def check_unique(ids: pa.Array, path: Path) -> None:
    """Raises an InputError if one of the ids, which stand on successive lines of a file, stands there twice."""
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    numbers = ids.dictionary_encode().indices.to_numpy()
    _, firsts, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    row = int(np.argmax(firsts[inverse] != np.arange(len(ids))))
    raise InputError(
        f"{path}:{row + 1}: the id {shown(ids[row].as_py())} stands on line {firsts[inverse[row]] + 1} already; remove "
        "one or give it another id"
    )
