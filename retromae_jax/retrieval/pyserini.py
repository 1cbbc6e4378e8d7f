"""Embeddings in Pyserini's two layouts.

- A directory of a Faiss index, `index`, and the ids of its vectors, `docid`, one a line: what `pyserini.search.faiss`
  opens. What we write also holds `embeddings.json` (see `embeddings`), so that it can come back as what it was.
- A directory of files of lines `{"id": ..., "contents": ..., "vector": [...]}`: what `pyserini.encode` writes, and
  `pyserini.index.faiss` and `pyserini.index.lucene` (JsonDenseVectorCollection) read. Here, `contents` is empty.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from retromae_jax.data.lines import BadLineError, Lines, check_unique, checked_id, json_object
from retromae_jax.errors import InputError, one_line, shown
from retromae_jax.files import read_json
from retromae_jax.logging import Progress
from retromae_jax.retrieval.embeddings import DESCRIPTION, Embeddings, store
from retromae_jax.retrieval.encode import WINDOW

INDEX, IDS, LINES = "index", "docid", "embeddings.jsonl"


def write_faiss(embeddings: Embeddings, directory: Path) -> None:
    """Writes a Faiss index and ids. All of the index is in memory, 4 bytes a number, or 2 of float16 embeddings."""
    width = embeddings.shape[1]
    index: faiss.Index
    if embeddings.description["dtype"] == "float16":
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(width)
    for _, part in _parts(embeddings):
        index.add(np.ascontiguousarray(part, np.float32))
    (directory / IDS).write_text("".join(f"{one}\n" for one in embeddings.ids.to_pylist()), encoding="utf-8")
    shutil.copyfile(embeddings.directory / DESCRIPTION, directory / DESCRIPTION)
    faiss.write_index(index, str(directory / INDEX))


def write_lines(embeddings: Embeddings, directory: Path) -> None:
    """Writes lines of JSON, with the fewest digits that tell a 32-bit number from all others."""
    with (directory / LINES).open("w", encoding="utf-8") as file:
        for start, part in _parts(embeddings):
            ids = embeddings.ids[start : start + len(part)].to_pylist()
            for one, numbers in zip(ids, part.astype(np.float32).astype(str), strict=True):
                file.write(f'{{"id": {json.dumps(one)}, "contents": "", "vector": [{", ".join(numbers)}]}}\n')


def _parts(embeddings: Embeddings) -> Iterator[tuple[int, np.ndarray]]:
    """Slices of embeddings, and the number of each slice's first."""
    with Progress("convert", len(embeddings), "embeddings") as progress:
        for start in range(0, len(embeddings), WINDOW):
            part = embeddings[start : start + WINDOW]
            yield start, part
            progress.update(len(part))


FORMATS: dict[str, Callable[[Embeddings, Path], None]] = {"faiss": write_faiss, "jsonl": write_lines}


def read(source: Path, directory: Path) -> None:
    """Takes embeddings out of either layout.

    Args:
        source: directory in one of the layouts.
        directory: of the embeddings. If `source` holds no `embeddings.json`, nobody knows of what model they are:
            programs can read them, and commands that search with a model refuse them.

    Raises:
        InputError: if `source` holds neither, or something in it is broken.
    """
    if (source / INDEX).is_file():
        ids, width, part = _open_faiss(source)
    else:
        ids, width, part = _open_lines(source)
    description: dict[str, Any] = {"kind": "passage", "dtype": "float32"}
    if (source / DESCRIPTION).is_file():
        description = read_json(source / DESCRIPTION)
    description |= {"count": len(ids), "width": width, "texts_per_shard": WINDOW}

    def parts() -> Iterator[np.ndarray]:
        with Progress("convert", len(ids), "embeddings") as progress:
            for start in range(0, len(ids), WINDOW):
                rows = range(start, min(start + WINDOW, len(ids)))
                yield part(rows)
                progress.update(len(rows))

    store(directory, description, ids, parts())


# Ids, width, and a function from successive rows to their vectors, float32 [n, D].
Opened = tuple[pa.LargeStringArray, int, Callable[[range], np.ndarray]]


def _open_faiss(source: Path) -> Opened:
    path = source / IDS
    lines = Lines(path)
    ids = pa.array([lines.parsed(row, checked_id) for row in range(len(lines))], pa.large_string())
    check_unique(ids, path)
    try:
        index = faiss.read_index(str(source / INDEX))
        index.reconstruct_n(0, 1)
    except RuntimeError as error:
        raise InputError(
            f"{source / INDEX}: is no Faiss index that still has its vectors: {one_line(error)}; take a flat one"
        ) from error
    if index.ntotal != len(ids):
        raise InputError(f"{path}: {len(ids):,} ids of {index.ntotal:,} vectors; take both files from one index")
    return ids, index.d, lambda rows: index.reconstruct_n(rows.start, len(rows))


def _open_lines(source: Path) -> Opened:
    files = [Lines(path) for path in sorted(source.glob("*.jsonl"))] if source.is_dir() else []
    if not files:
        raise InputError(
            f"{source}: neither a Faiss index ({INDEX} and {IDS}) nor lines of JSON (*.jsonl) there; name a directory "
            "that Pyserini wrote"
        )
    places = [(lines, row) for lines in files for row in range(len(lines))]
    width = len(files[0].parsed(0, _vector))
    ids = pa.array([lines.parsed(row, _id) for lines, row in places], pa.large_string())
    check_unique(ids, source)

    def part(rows: range) -> np.ndarray:
        vectors = np.empty((len(rows), width), np.float32)
        for vector, (lines, row) in zip(vectors, places[rows.start : rows.stop], strict=True):
            found = lines.parsed(row, _vector)
            if len(found) != width:
                raise InputError(f"{lines.path}:{row + 1}: a vector of {len(found)} numbers, the first has {width}")
            vector[:] = found
        return vectors

    return ids, width, part


def _id(line: str) -> str:
    return checked_id(str(json_object(line).get("id", "")))


def _vector(line: str) -> list[float]:
    vector: Any = json_object(line).get("vector")
    if not isinstance(vector, list) or not all(isinstance(number, int | float) for number in vector):
        raise BadLineError(f"no list of numbers under the key 'vector', but {shown(vector)}; encode the corpus again")
    return vector
