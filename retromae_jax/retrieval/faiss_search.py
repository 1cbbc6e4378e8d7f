"""Search by Faiss: exact, on the CPU or on GPUs where faiss-gpu is installed, and by approximate indexes.

Approximate indexes are built slice by slice and stay in memory:

- HNSW (Malkov and Yashunin, 2016): a graph over embeddings in half precision, 2 D + 8 M bytes and some twenty more a
  passage. Building takes longest, and results differ a little from one building to the next.
- IVF-PQ (Jégou et al., 2011): `nlist` lists of passages near to each other, of which a query looks into `nprobe`;
  embeddings are replaced by M bytes, of which the scores are made. M bytes and 8 more a passage.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from retromae_jax.errors import InputError, one_line
from retromae_jax.logging import Progress
from retromae_jax.retrieval.slices import Slices, as_float32, finite
from retromae_jax.retrieval.top_k import Found, TopK

QUERIES_AT_ONCE = 4096
# More are not found at once on a GPU.
MOST_ON_GPU = 2048
# Nor are longer codes searched there.
MOST_BYTES_ON_GPU = 96

# Passages that the centroids of IVF-PQ, those of lists and those of codes, are trained on, for each of them; with fewer
# than 39, Faiss warns. They are drawn in successive rows of so many.
TRAINED_PER_CENTROID = 40
CODES = 256
TRAINED_ROWS = 256

# Queries and k to scores and indices.
Nearest = Callable[[np.ndarray, np.ndarray, int], Found]


def gpus() -> int:
    """How many GPUs this Faiss can use; 0 without faiss-gpu."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def search_flat(queries: np.ndarray, passages: Slices, k: int, on_gpus: bool = False) -> Found:
    """The k passages with the largest inner products, equal ones by index; arguments as of `PassageIndex.search`."""
    best = TopK(len(queries), k)
    nearest = _nearest_on_gpus() if on_gpus and k < MOST_ON_GPU else _nearest
    for start, embeddings in passages.float32():
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(first, first + QUERIES_AT_ONCE)
            scores, indices = _whole_ties(nearest, queries[rows], embeddings, min(k, len(embeddings)))
            best.add(scores, start + indices, rows)
    return best.scores, best.indices


def _whole_ties(nearest: Nearest, queries: np.ndarray, passages: np.ndarray, k: int) -> Found:
    """The best k passages; of those that tie for the last place, the ones with the lowest indices."""
    # Faiss does not say which of several tied passages it returns: ask for more until the tie is whole.
    asked = min(k + 1, len(passages))
    while True:
        scores, indices = nearest(queries, passages, asked)
        if asked == len(passages) or (scores[:, -1] < scores[:, k - 1]).all():
            break
        asked = min(2 * asked, len(passages))
        if asked > MOST_ON_GPU:
            nearest = _nearest
    tied = (scores[:, 1:] == scores[:, :-1]).any(axis=1)
    order = np.lexsort((indices[tied], -scores[tied]), axis=1)
    scores[tied] = np.take_along_axis(scores[tied], order, axis=1)
    indices[tied] = np.take_along_axis(indices[tied], order, axis=1)
    return scores[:, :k], indices[:, :k]


def _nearest(queries: np.ndarray, passages: np.ndarray, k: int) -> Found:
    return faiss.knn(queries, passages, k, metric=faiss.METRIC_INNER_PRODUCT)


def _nearest_on_gpus() -> Nearest:
    resources = [faiss.StandardGpuResources() for _ in range(gpus())]

    def nearest(queries: np.ndarray, passages: np.ndarray, k: int) -> Found:
        parts = [part for part in np.array_split(passages, len(resources)) if len(part)]

        def of_part(gpu: int) -> Found:
            part, metric = parts[gpu], faiss.METRIC_INNER_PRODUCT
            return faiss.knn_gpu(resources[gpu], queries, part, min(k, len(part)), metric=metric, device=gpu)

        with ThreadPoolExecutor(len(parts)) as pool:
            found = list(pool.map(of_part, range(len(parts))))
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        starts = np.cumsum([0, *map(len, parts)])
        indices = np.concatenate([start + indices for start, (_, indices) in zip(starts, found, strict=False)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)

    return nearest


# Approximate indexes.


def build(name: str, passages: Slices, parameters: Mapping[str, int], on_gpus: bool = False) -> faiss.Index:
    """An index of passages.

    Args:
        name: `hnsw` or `ivfpq`.
        passages: to read; twice, if the index is trained.
        parameters: as Faiss calls them; those that are missing are chosen by the number of passages.
        on_gpus: whether it is built and searched there; HNSW has no such.

    Raises:
        InputError: if the passages are too few, an embedding is not finite, or the parameters make no index.
    """
    count, dimension = len(passages.share), passages.embeddings.shape[1]
    try:
        if name == "hnsw":
            index = _hnsw(dimension, **parameters)
        else:
            index = _ivfpq(passages, **ivfpq_parameters(count, dimension, parameters, on_gpus))
            if on_gpus:
                options = faiss.GpuMultipleClonerOptions()
                options.shard = True
                options.useFloat16 = True  # tables of scores: as float32, a GPU has no room for those of 64 bytes
                index = faiss.index_cpu_to_all_gpus(index, options)
    except RuntimeError as error:
        raise InputError(f"Faiss cannot make this index: {one_line(error)}; choose other parameters") from error
    for _, embeddings in passages.float32():
        index.add(embeddings)
    return index


def _hnsw(dimension: int, M: int = 32, efConstruction: int = 200, efSearch: int = 256) -> faiss.Index:
    half: Any = faiss.ScalarQuantizer.QT_fp16  # Faiss's own types say that it is no number
    index = faiss.IndexHNSWSQ(dimension, half, M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = efConstruction
    index.hnsw.efSearch = efSearch  # or k, if that is more
    return index


def ivfpq_parameters(count: int, dimension: int, given: Mapping[str, int], on_gpus: bool) -> dict[str, int]:
    """All parameters of IVF-PQ: those given, and the others chosen by what is searched.

    Args:
        count: passages of a host.
        dimension: numbers of an embedding.
        given: some of `nlist`, `M` and `nprobe`.
        on_gpus: whether it is searched there.

    Raises:
        InputError: if the passages are too few to train it with, or a given parameter does not go with them.
    """
    least = TRAINED_PER_CENTROID * CODES
    if count < least:
        raise InputError(
            f"{count:,} passages of a host are too few to train IVF-PQ, which takes {least:,}; search them exactly"
        )
    # Faiss's own guidelines advise 4 to 16 sqrt(N) lists.
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    nlist = given.get("nlist", min(lists, count // TRAINED_PER_CENTROID))
    most = MOST_BYTES_ON_GPU if on_gpus else dimension
    whole = [parts for parts in range(1, dimension + 1) if dimension % parts == 0]
    # Four numbers or a few more become one byte.
    code = max((parts for parts in whole if 4 * parts <= dimension and parts <= most), default=1)
    chosen = {"nlist": nlist, "M": code, "nprobe": max(1, nlist // 16)} | dict(given)
    if TRAINED_PER_CENTROID * chosen["nlist"] > count:
        raise InputError(
            f"nlist={chosen['nlist']}: {count:,} passages of a host are enough to train "
            f"{count // TRAINED_PER_CENTROID:,} lists"
        )
    if dimension % chosen["M"]:
        raise InputError(f"M={chosen['M']} does not divide the {dimension} numbers of an embedding")
    if chosen["M"] > most:
        raise InputError(f"M={chosen['M']} is more than the {most} bytes that Faiss searches on a GPU; add gpu=0")
    return chosen


def _ivfpq(passages: Slices, nlist: int, M: int, nprobe: int) -> faiss.Index:
    dimension = passages.embeddings.shape[1]
    index = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(dimension), dimension, nlist, M, int(math.log2(CODES)), faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = nprobe
    index.train(_sample(passages, TRAINED_PER_CENTROID * max(nlist, CODES)))
    return index


def _sample(passages: Slices, count: int) -> np.ndarray:
    """Some embeddings, at least so many if there are, from all over the passages."""
    starts = passages.share[::TRAINED_ROWS]
    drawn = np.random.default_rng(0).choice(len(starts), min(len(starts), -(-count // TRAINED_ROWS)), replace=False)
    blocks = []
    with Progress("read a sample", len(drawn), "blocks") as progress:
        for number in np.sort(drawn):
            start = starts[int(number)]
            block = passages.embeddings[start : min(start + TRAINED_ROWS, passages.share.stop)]
            blocks.append(finite(as_float32(block), "passage", start))
            progress.update()
    return np.concatenate(blocks)


def search_index(index: faiss.Index, queries: np.ndarray, k: int) -> Found:
    """The best k passages that an index finds, maybe fewer; scores of IVF-PQ are approximate.

    Raises:
        InputError: if it cannot find so many, as on GPUs.
    """
    best = TopK(len(queries), k)
    with Progress("search", len(queries), "queries") as progress:
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(first, first + QUERIES_AT_ONCE)
            try:
                scores, indices = index.search(queries[rows], k)
            except RuntimeError as error:
                raise InputError(f"Faiss cannot search its index: {one_line(error)}; search with gpu=0") from error
            best.add(np.where(indices < 0, -np.inf, scores).astype(np.float32), indices, rows)
            progress.update(len(scores))
    return best.scores, best.indices
