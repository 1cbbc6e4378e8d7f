"""What every command that searches with an encoder does alike: its arguments, encoding and searching."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from eval.measure import add_model_arguments, positive
from retromae_jax import hosts
from retromae_jax.encoder import Encoders
from retromae_jax.retrieval.encode import EmbeddingFiles, encode_on_all_hosts, encode_texts
from retromae_jax.retrieval.search import search

QUERY_MAX_LENGTH = 32


def add_arguments(
    parser: argparse.ArgumentParser,
    query_default: str = f"{QUERY_MAX_LENGTH}, or the model's own maximum where that is less",
) -> None:
    """Adds the arguments that say how texts are encoded; the model is `--model`, which commands add themselves.

    Args:
        query_default: how long queries may be where nothing is said, for the help.
    """
    parser.add_argument("--query-max-length", type=positive, help=f"tokens of a query (default: {query_default})")
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
    add_model_arguments(parser)


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
            "batch_size": arguments.batch_size,
            "compute_dtype": arguments.compute_dtype,
        }
        self._passages: EmbeddingFiles | None = None

    def index(self, passages: Sequence[str], directory: Path) -> None:
        """Encodes, on all hosts, the passages to search; their embeddings stay in files in `directory`."""
        self._passages = encode_on_all_hosts(
            self.encoders.passage, passages, self.passage_max_length, self.batch_size, "passages", directory
        )

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes queries on this host and finds their best k passages: scores and indices [Q, k], as of `search`."""
        embeddings = encode_texts(self.encoders.query, queries, self.query_max_length, self.batch_size, "queries")
        return search(embeddings, self._passages, k, self.lexical_top_k)

    def search_on_all_hosts(self, queries: Sequence[str], k: int, directory: Path) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, each host searching for a share of the queries; all hosts get what was found for all queries.

        Args:
            directory: seen by all hosts, for files that they leave each other.
        """
        scores, indices = (hosts.files(directory, f"{name}.npy") for name in ("scores", "indices"))
        own, process = hosts.share(len(queries)), jax.process_index()
        for files, found in zip((scores, indices), self.search(queries[own.start : own.stop], k), strict=True):
            np.save(files[process], found)
        hosts.wait_for_all("searched")
        return tuple(np.concatenate([np.load(file) for file in files]) for files in (scores, indices))
