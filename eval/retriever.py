"""What every command that searches with an encoder does alike: its arguments, encoding and searching."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from eval.measure import add_model_arguments, positive
from retromae_jax import hosts
from retromae_jax.encoder import Encoders
from retromae_jax.errors import InputError
from retromae_jax.retrieval.encode import EmbeddingFiles, encode_on_all_hosts, encode_texts
from retromae_jax.retrieval.search import Method, PassageIndex
from retromae_jax.retrieval.top_k import Found, TopK

QUERY_MAX_LENGTH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how texts are encoded; the model is `--model`, which commands add themselves."""
    parser.add_argument(
        "--query-max-length",
        type=positive,
        help=f"tokens of a query (default: {QUERY_MAX_LENGTH}, or the model's own maximum where that is less)",
    )
    parser.add_argument(
        "--passage-max-length", type=positive, help="tokens of a passage (default: the model's own maximum)"
    )
    parser.add_argument("--pooling", choices=("cls", "mean"), help="(default: the model's own)")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale embeddings to length 1 (default: the model's own)",
    )
    parser.add_argument(
        "--dimension",
        type=positive,
        help="keep so many of an embedding's dimensions, the first ones, for models trained with matryoshka_dims "
        "(default: all)",
    )
    parser.add_argument(
        "--search",
        type=_method,
        metavar="METHOD",
        help="device (in JAX, the default on accelerators) or flat (Faiss, the default on CPUs), which are exact; hnsw "
        "or ivfpq (Faiss), which are approximate and say how good they are. With parameters, as Faiss calls them: "
        "hnsw:M=32,efConstruction=200,efSearch=256 or ivfpq:nlist=16384,M=96,nprobe=1024. Where faiss-gpu is "
        "installed, flat and ivfpq use all GPUs, unless gpu=0",
    )
    add_model_arguments(parser)


def _method(argument: str) -> Method:
    try:
        return Method.parse(argument)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Retriever:
    """The encoders of queries and passages, and the passages that are searched.

    Args:
        arguments: `model` and those of `add_arguments`.

    Raises:
        InputError: if the model cannot be used so.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.encoders = Encoders.from_pretrained(
            arguments.model, arguments.pooling, arguments.normalize, arguments.compute_dtype, arguments.dimension
        )
        self.batch_size = arguments.batch_size
        self.query_max_length = arguments.query_max_length or min(QUERY_MAX_LENGTH, self.encoders.query.max_length)
        self.passage_max_length = arguments.passage_max_length or self.encoders.passage.max_length
        self.lexical_top_k = self.encoders.passage.settings.lexical_top_k
        if self.lexical_top_k and arguments.search is not None:
            raise InputError("embeddings with a lexical part have a search of their own; leave out --search")
        self.method = arguments.search or Method.default()
        # What decides what is found, for metrics.json.
        self.settings = {
            "model": arguments.model,
            "query_max_length": self.query_max_length,
            "passage_max_length": self.passage_max_length,
            "title_separator": arguments.title_separator,
            "pooling": arguments.pooling,
            "normalize": arguments.normalize,
            "dimension": self.encoders.passage.dimension,
            "lexical_top_k": self.lexical_top_k,
            "search": "lexical" if self.lexical_top_k else str(self.method),
            "batch_size": arguments.batch_size,
            "compute_dtype": arguments.compute_dtype,
        }
        self._passages: EmbeddingFiles | None = None
        self._index: PassageIndex | None = None

    def index(self, passages: Sequence[str], directory: Path) -> None:
        """Encodes, on all hosts, the passages to search; their embeddings stay in files in `directory`.

        Raises:
            InputError: if the passages are too few for the method of search.
        """
        self.method.check(len(passages))
        self._index = None
        self._passages = encode_on_all_hosts(
            self.encoders.passage, passages, self.passage_max_length, self.batch_size, "passages", directory
        )

    def search(self, queries: Sequence[str], k: int) -> Found:
        """Encodes queries on this host and finds their best k passages, as of `PassageIndex.search`."""
        embeddings = encode_texts(self.encoders.query, queries, self.query_max_length, self.batch_size, "queries")
        return self._search(embeddings, k, range(len(self._passages)))

    def search_on_all_hosts(self, queries: Sequence[str], k: int, directory: Path) -> Found:
        """As `search`, but all hosts together: each searches a share of the passages, and all get what was found.

        Args:
            directory: seen by all hosts, for files that they leave each other.
        """
        embeddings = encode_on_all_hosts(
            self.encoders.query, queries, self.query_max_length, self.batch_size, "queries", directory
        )
        found = self._search(embeddings[:], k, hosts.share(len(self._passages)))
        if jax.process_count() == 1:
            return found
        files = [hosts.files(directory, name) for name in ("scores.npy", "indices.npy")]
        for own, part in zip(files, found, strict=True):
            np.save(own[jax.process_index()], part)
        hosts.wait_for_all("searched")
        # Shares follow each other, as the passages do.
        best = TopK(len(queries), k)
        for scores, indices in zip(*files, strict=True):
            best.add(np.load(scores), np.load(indices))
        return best.scores, best.indices

    def _search(self, embeddings: np.ndarray, k: int, share: range) -> Found:
        if self._index is None:
            self._index = PassageIndex(self._passages, self.method, self.lexical_top_k, share)
        found = self._index.search(embeddings, k)
        if self._index.recall is not None:
            self.settings["search_recall"] = self._index.recall
        return found
