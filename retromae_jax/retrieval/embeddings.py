"""Embeddings on disk: written by one or several hosts, again and again after kills; read a slice at a time.

A directory holds

- `embeddings.json`: what the embeddings are, of which model, texts and settings (`describe`); written first;
- `ids.txt`: the ids of the texts, one a line;
- `vectors-00012-of-00540.npy`: the embeddings of 16,384 successive texts, [n, D], the last of fewer. A shard is under
  its name when all of it is on disk. The dtype is float32 or float16; bfloat16 is stored as uint16, its bits, of which
  numpy alone makes numbers: `(bits.astype(np.uint32) << 16).view(np.float32)`.

Whoever goes on with a directory makes the shards that are missing, provided that the description is the same.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

from retromae_jax import files, hosts
from retromae_jax.data.lines import Lines, check_unique, checked_id
from retromae_jax.data.retrieval import Passages
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError, shown
from retromae_jax.logging import say
from retromae_jax.retrieval.encode import WINDOW, encode_windows

DESCRIPTION, IDS = "embeddings.json", "ids.txt"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# What the same embeddings may be called, or be kept or made otherwise than the next ones: a search does not mind.
NAMES = ("model", "corpus")
MAKING = ("dtype", "compute_dtype", "encoder", "texts_per_shard")
IDS_AT_ONCE = 2**16
# Shards have numbers of five digits.
MOST_SHARDS = 100_000
AGAIN = "make the embeddings again with eval.encode"


def describe(encoder: Encoder, passages: Passages, kind: str, dtype: str = "float32") -> dict[str, Any]:
    """What the embeddings of texts are: the content of `embeddings.json`.

    Args:
        encoder: the encoder.
        passages: the texts, or queries in their place.
        kind: of the texts, `query` or `passage`.
        dtype: that embeddings are stored in, a key of `DTYPES`.
    """
    settings = encoder.settings
    titles = settings.titles and kind == "passage" and passages.is_titled
    return {
        "kind": kind,
        "count": len(passages),
        "width": encoder.dimension,
        "dtype": dtype,
        "texts_per_shard": WINDOW,
        "corpus": str(passages.path),
        "corpus_sha256": passages.digest,
        "titles": titles,
        "title_separator": settings.title_separator if titles else "",
        "prompt": settings.prompt_of(kind),
        "max_length": settings.max_length_of(kind),
        "model": str(encoder.source.directory),
        "model_sha256": encoder.digest,
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "lexical_top_k": settings.lexical_top_k,
        "encoder": encoder.name,
        "compute_dtype": encoder.compute_dtype,
    }


class Embeddings:
    """Embeddings on disk, memory-mapped and read as one array [N, D].

    Attributes:
        directory: theirs.
        description: as of `describe`.

    Raises:
        InputError: if the directory holds none, or not all of them.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.description = _read_description(self.directory)
        missing = missing_shards(self.directory, self.description)
        if missing:
            raise InputError(
                f"{self.directory}: {len(missing):,} of {_shards(self.description):,} shards are missing or cut short, "
                f"the first is {_shard(self.directory, self.description, missing[0]).name}; start the eval.encode that "
                "made it again: it makes what is missing"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.description["count"], self.description["width"]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Embeddings of successive texts, [n, D]; float16 if they are stored so, else float32."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"embeddings are read in order, not in steps of {step}")
        size = self.description["texts_per_shard"]
        parts = [np.empty((0, self.shape[1]), np.float16 if self.description["dtype"] == "float16" else np.float32)]
        for number in range(start // size, -(-max(start, stop) // size)):
            vectors = np.lib.format.open_memmap(_shard(self.directory, self.description, number), "r")
            part = vectors[max(start - number * size, 0) : stop - number * size]
            parts.append((part.astype(np.uint32) << 16).view(np.float32) if part.dtype == np.uint16 else part)
        return np.concatenate(parts)

    @functools.cached_property
    def ids(self) -> pa.LargeStringArray:
        """Ids of the texts.

        Raises:
            InputError: if their file is missing or broken.
        """
        lines = Lines(self.directory / IDS)
        if len(lines) != len(self):
            raise InputError(f"{lines.path}: {len(lines):,} ids of {len(self):,} embeddings; {AGAIN}")
        ids = pa.array((lines.parsed(row, checked_id) for row in range(len(lines))), pa.large_string())
        check_unique(ids, lines.path)
        return ids

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Checks that the embeddings are those that are wanted, however they are stored and were computed.

        Args:
            wanted: of `describe`.

        Raises:
            InputError: if they are of another model, other texts or other settings.
        """
        remedy = "take the embeddings of this model and collection, or the settings that they were made with"
        _refuse_differences(self.directory, self.description, wanted, (*NAMES, *MAKING), remedy)


def encode_to_disk(
    encoder: Encoder,
    passages: Passages,
    kind: str,
    directory: Path,
    dtype: str = "float32",
    batch_size: int | None = None,
) -> int:
    """Encodes texts on all hosts, each making a share of the shards that are not there yet.

    No host holds more embeddings in memory than those of a shard.

    Args:
        encoder: the encoder; its settings say how passages become texts.
        passages: the texts, or queries in their place.
        kind: of the texts, `query` or `passage`.
        directory: seen by all hosts, for the embeddings; what an earlier, killed process left there is kept.
        dtype: that embeddings are stored in, a key of `DTYPES`.
        batch_size: as for `encode_windows`.

    Returns:
        How many texts all hosts encoded.

    Raises:
        InputError: if the directory holds something else or has no room, or an embedding cannot be stored.
    """
    description = describe(encoder, passages, kind, dtype)
    if description["lexical_top_k"] and dtype != "float32":
        raise InputError(
            f"embeddings with a lexical part hold numbers of words, which {dtype} rounds; store them in float32"
        )
    _begin(directory, description, passages.ids)
    is_missing = np.isin(np.arange(_shards(description)), missing_shards(directory, description))
    missing = np.flatnonzero(hosts.of_first(is_missing))
    if 0 < len(missing) < len(is_missing):
        say(f"{directory}: {len(is_missing) - len(missing):,} of {len(is_missing):,} shards are there already")
    own = hosts.share(len(missing))
    texts = passages.texts(description["titles"], description["title_separator"])
    windows = [range(n * WINDOW, min((n + 1) * WINDOW, len(texts))) for n in missing[own.start : own.stop].tolist()]
    encoded = encode_windows(encoder, texts, kind, windows, batch_size)
    for window, vectors in zip(windows, encoded, strict=True):
        stored = _stored(vectors, dtype, passages.ids, window.start)
        files.write_array(_shard(directory, description, window.start // WINDOW), stored)
    hosts.wait_for_all("embeddings written")
    return sum(_rows(description, number) for number in missing.tolist())


def store(
    directory: Path, description: Mapping[str, Any], ids: pa.LargeStringArray, shards: Iterable[np.ndarray]
) -> None:
    """Writes embeddings that were made elsewhere, on one host.

    Args:
        directory: empty, or not there yet.
        description: `kind`, `count`, `width`, `dtype` and `texts_per_shard`; and what else `describe` says, if known.
        ids: of the texts.
        shards: embeddings of successive `texts_per_shard` texts, float32 [n, D].

    Raises:
        InputError: if the directory holds something else or has no room, or an embedding cannot be stored.
    """
    _begin(directory, description, ids)
    for number, vectors in enumerate(shards):
        stored = _stored(vectors, description["dtype"], ids, number * description["texts_per_shard"])
        files.write_array(_shard(directory, description, number), stored)


def missing_shards(directory: Path, description: Mapping[str, Any]) -> list[int]:
    """Numbers of the shards that are not there, or cut short."""
    missing = []
    for number in range(_shards(description)):
        path = _shard(directory, description, number)
        try:
            stored = np.lib.format.open_memmap(path, "r")
        except Exception:  # a broken header may raise anything
            missing.append(number)
            continue
        wanted = np.uint16 if description["dtype"] == "bfloat16" else DTYPES[description["dtype"]]
        if (stored.shape, stored.dtype) != ((_rows(description, number), description["width"]), wanted):
            missing.append(number)
    return missing


def _shards(description: Mapping[str, Any]) -> int:
    return -(-description["count"] // description["texts_per_shard"])


def _rows(description: Mapping[str, Any], number: int) -> int:
    """How many texts a shard is of."""
    size = description["texts_per_shard"]
    return min(size, description["count"] - number * size)


def _shard(directory: Path, description: Mapping[str, Any], number: int) -> Path:
    return directory / f"vectors-{number:05d}-of-{_shards(description):05d}.npy"


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{directory}: no embeddings there, it has no {DESCRIPTION}; make them with eval.encode")
    description = files.read_json(path, dict, AGAIN)
    for key in ("count", "width", "texts_per_shard"):
        if not isinstance(description.get(key), int) or description[key] < 1:
            raise InputError(f"{path}: {key} is {shown(description.get(key))}, not a number above 0; {AGAIN}")
    if _shards(description) > MOST_SHARDS:
        raise InputError(
            f"{path}: count is {shown(description['count'])}, more than {MOST_SHARDS:,} shards have; {AGAIN}"
        )
    if description.get("dtype") not in DTYPES:
        raise InputError(f"{path}: dtype is {shown(description.get('dtype'))}, none of {', '.join(DTYPES)}; {AGAIN}")
    return description


def _begin(directory: Path, description: Mapping[str, Any], ids: pa.LargeStringArray) -> None:
    """Writes what the embeddings are, or checks that those in the directory are these; on all hosts."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}; choose another directory") from error
    if DESCRIPTION in found:
        remedy = "choose another directory, or remove that one"
        _refuse_differences(directory, _read_description(directory), description, NAMES, remedy)
    elif foreign := [name for name in found if name.removesuffix(".incomplete") not in (IDS, DESCRIPTION)]:
        raise InputError(f"{directory} holds {foreign[0]}, which is none of embeddings; choose another directory")
    texts = sum(_rows(description, number) for number in missing_shards(directory, description))
    needed = texts * description["width"] * np.dtype(DTYPES[description["dtype"]]).itemsize
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"{directory} has room for {free:,} bytes, the embeddings need {needed:,}; make room, store them in "
            "float16 or bfloat16, or choose another directory"
        )
    hosts.check_shared(directory, "--output")
    hosts.check_same(json.dumps({key: value for key, value in description.items() if key not in NAMES}))
    if hosts.is_first() and DESCRIPTION not in found:
        unfinished = directory / f"{IDS}.incomplete"
        with unfinished.open("w", encoding="utf-8") as file:
            for start in range(0, len(ids), IDS_AT_ONCE):
                file.writelines(f"{one}\n" for one in ids[start : start + IDS_AT_ONCE].to_pylist())
        os.replace(unfinished, directory / IDS)
        files.replace(directory / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    hosts.wait_for_all("embeddings begun")


def _refuse_differences(
    directory: Path, there: Mapping[str, Any], here: Mapping[str, Any], ignored: tuple[str, ...], remedy: str
) -> None:
    def value(of: Mapping[str, Any], key: str) -> str:
        # Of a digest, what it is of says more.
        return shown(of.get(key.removesuffix("_sha256")))

    different = [
        f"{key.replace('_sha256', ' with other content')} (there {value(there, key)}, here {value(here, key)})"
        for key in here
        if key not in ignored and there.get(key) != here[key]
    ]
    if different:
        raise InputError(f"{directory} holds other embeddings: {'; '.join(different)}; {remedy}")


def _stored(vectors: np.ndarray, dtype: str, ids: pa.LargeStringArray, start: int) -> np.ndarray:
    """Embeddings as they are stored; `start` is the number of the first."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(DTYPES[dtype])
    is_finite = np.isfinite(stored).all(axis=1)
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        problem = "is not finite; check the model's weights"
        if np.isfinite(vectors[row]).all():
            problem = f"has numbers that {dtype} has not; store embeddings in bfloat16 or float32"
        raise InputError(f"the embedding of {shown(ids[start + row].as_py())} {problem}")
    return stored.view(np.uint16) if dtype == "bfloat16" else stored
