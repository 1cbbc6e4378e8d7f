"""Search over the embeddings of passages, which may be larger than memory: the one entry to all methods.

- `device`: exact, in JAX on all devices of a host (`device_search`); the default on accelerators.
- `flat`: exact, by Faiss (`faiss_search`), on GPUs where faiss-gpu is installed; the default on CPUs.
- `hnsw`, `ivfpq`: approximate, by Faiss.

Exact methods find the same passages, but where scores are equal up to rounding. Of passages with equal scores, those
that stand first in their file are found: that decides which are in a run. How a run ranks them then is another rule,
trec_eval's, by passage id (`runs`).
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from retromae_jax.errors import InputError
from retromae_jax.logging import say
from retromae_jax.retrieval import device_search, faiss_search, lexical_search
from retromae_jax.retrieval.slices import Slices, StoredEmbeddings, as_float32, finite
from retromae_jax.retrieval.top_k import Found, TopK

# Methods and their parameters.
METHODS = {
    "device": (),
    "flat": ("gpu",),
    "hnsw": ("M", "efConstruction", "efSearch"),
    "ivfpq": ("nlist", "M", "nprobe", "gpu"),
}
APPROXIMATE = ("hnsw", "ivfpq")

# Queries that are searched exactly, too, where a method is not.
SAMPLE = 64


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to search.

    Attributes:
        name: one of `METHODS`.
        parameters: of its parameters, those that are not to be chosen by what is searched.
    """

    name: str
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Method":
        """The method that is written as `hnsw` or `hnsw:M=32,efSearch=500`.

        Raises:
            InputError: if there is no such.
        """
        name, _, settings = text.partition(":")
        if name not in METHODS:
            raise InputError(f"{text!r}: no method of search; there are {', '.join(METHODS)}")
        parameters = {}
        for setting in filter(None, settings.split(",")):
            parameter, _, value = setting.partition("=")
            if parameter not in METHODS[name]:
                raise InputError(f"{text!r}: {name} has the parameters {', '.join(METHODS[name]) or '(none)'}")
            if not value.isdecimal() or (int(value) < 1 and parameter != "gpu"):
                raise InputError(f"{text!r}: {parameter} is to be a whole number, as in {parameter}=1")
            parameters[parameter] = int(value)
        if parameters.get("gpu") and not faiss_search.gpus():
            raise InputError(f"{text!r}: Faiss has no GPU here; install faiss-gpu-cu12 in place of faiss-cpu, or gpu=0")
        return cls(name, parameters)

    @classmethod
    def default(cls) -> "Method":
        """The exact method that suits the devices."""
        return cls("flat" if jax.default_backend() == "cpu" else "device")

    @property
    def uses_gpus(self) -> bool:
        """Whether Faiss searches on GPUs."""
        return "gpu" in METHODS[self.name] and faiss_search.gpus() > 0 and self.parameters.get("gpu") != 0

    def check(self, count: int, dimension: int) -> None:
        """Checks that so many passages with embeddings of so many numbers can be searched so.

        Raises:
            InputError: if they are too few, or parameters do not go with them.
        """
        if self.name == "ivfpq":
            faiss_search.ivfpq_parameters(count, dimension, self.faiss_parameters, self.uses_gpus)

    @property
    def faiss_parameters(self) -> dict[str, int]:
        """Those of its parameters that Faiss knows."""
        return {name: value for name, value in self.parameters.items() if name != "gpu"}

    def __str__(self) -> str:
        return f"{self.name}:{','.join(f'{k}={v}' for k, v in self.parameters.items())}".rstrip(":")


class PassageIndex:
    """Passages to search.

    A method that is not exact searches exactly, too, for some of the first queries, and says how many of the same
    passages it finds.

    Args:
        passages: embeddings [N, D], of any float dtype that holds the numbers of words exactly; maybe memory-mapped:
            they are read in slices.
        method: None takes the default one.
        lexical_top_k: words in the lexical part that embeddings end in (see `models.lexical`); 0 for none. With one,
            they are searched exactly, by a method of their own (`lexical_search`).
        share: successive numbers of the passages that are searched; None takes all.

    Raises:
        InputError: if the passages cannot be searched with the method, or one's embedding is not finite.
    """

    def __init__(
        self,
        passages: StoredEmbeddings,
        method: Method | None = None,
        lexical_top_k: int = 0,
        share: range | None = None,
    ):
        self.passages, self.method, self.lexical_top_k = passages, method or Method.default(), lexical_top_k
        self.share = range(passages.shape[0]) if share is None else share
        # How many of the exact search's passages an approximate method has found.
        self.recall: float | None = None
        self._index = None
        is_approximate = self.method.name in APPROXIMATE
        if is_approximate and lexical_top_k:
            raise InputError(f"{self.method}: embeddings with a lexical part are searched exactly; choose no method")
        self.method.check(len(self.share), passages.shape[1])
        if is_approximate:
            slices = self._slices(f"index by {self.method}")
            parameters = self.method.faiss_parameters
            self._index = faiss_search.build(self.method.name, slices, parameters, self.method.uses_gpus)

    def search(self, queries: np.ndarray, k: int) -> Found:
        """Finds the passages with the largest inner products, best first, equal scores by index.

        Args:
            queries: embeddings [Q, D].
            k: how many passages to find for each query.

        Returns:
            Scores, float32 [Q, k], and passage indices, int64 [Q, k]. Where there are fewer than k, or an approximate
            method finds fewer, rows end in score -inf and index -1.

        Raises:
            InputError: if an embedding has a value that is not finite, or the widths differ; or if Faiss does not find
                on a GPU what it finds on the CPU.
        """
        dimension = self.passages.shape[1]
        if queries.shape[1] != dimension:
            raise InputError(
                f"queries have embeddings of {queries.shape[1]} numbers, passages of {dimension}; encode both with "
                "one model"
            )
        queries = finite(as_float32(queries), "query")
        found = self._search(queries, k)
        is_doubtful = self._index is not None or (self.method.uses_gpus and not self.lexical_top_k)
        if is_doubtful and self.recall is None and len(queries) and len(self.share):
            self._compare(queries, found)
        return found

    def _slices(self, task: str) -> Slices:
        return Slices(self.passages, self.share, task)

    def _search(self, queries: np.ndarray, k: int) -> Found:
        if not len(queries) or not len(self.share):
            nothing = TopK(len(queries), k)
            return nothing.scores, nothing.indices
        if self._index is not None:
            scores, indices = faiss_search.search_index(self._index, queries, k)
            return scores, np.where(indices < 0, -1, indices + self.share.start)
        if self.lexical_top_k:
            return lexical_search.search(queries, self._slices("search"), k, self.lexical_top_k)
        if self.method.name == "device":
            return device_search.search(queries, self._slices("search"), k)
        return faiss_search.search_flat(queries, self._slices("search"), k, self.method.uses_gpus)

    def _compare(self, queries: np.ndarray, found: Found) -> None:
        """Compares what was found with an exact search on the CPU, on a sample of the queries."""
        k = found[1].shape[1]
        sample = np.sort(np.random.default_rng(0).permutation(len(queries))[:SAMPLE])
        scores, indices = faiss_search.search_flat(queries[sample], self._slices("search a sample exactly"), k)
        if self._index is None:
            # Sums of float32 in another order.
            if not np.allclose(found[0][sample], scores, rtol=1e-4, atol=1e-4):
                raise InputError("Faiss finds other scores on its GPUs than on the CPU; search with flat:gpu=0 instead")
            self.recall = 1.0
            return
        hits = sum(np.isin(exact, own[own >= 0]).sum() for own, exact in zip(found[1][sample], indices, strict=True))
        self.recall = float(hits / (indices >= 0).sum())
        say(f"{self.method}: {self.recall:.2%} of the {k} best passages found, on {len(sample)} queries")
