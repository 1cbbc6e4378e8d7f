"""What every command that searches with an encoder does alike: its arguments, encoding and searching."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from eval.measure import add_model_arguments, positive
from retromae_jax import hosts
from retromae_jax.data.retrieval import Passages
from retromae_jax.encoder import BACKENDS, Encoders
from retromae_jax.models.pooling import POOLINGS
from retromae_jax.retrieval.embeddings import Embeddings, describe, encode_to_disk
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.retrieval.search import search

# Arguments that change what the model says of itself; fields of `EncoderSettings`.
SETTINGS = {
    "query_max_length": "query_max_length",
    "passage_max_length": "max_length",
    "query_prompt": "query_prompt",
    "passage_prompt": "passage_prompt",
    "titles": "titles",
    "title_separator": "title_separator",
    "pooling": "pooling",
    "normalize": "normalize",
}


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how texts are encoded, but for `--model` and `--titles`, which commands add."""
    parser.set_defaults(titles=None)  # as the model says
    own = "(default: the model's own)"
    parser.add_argument("--query-max-length", type=positive, help=f"tokens of a query {own}")
    parser.add_argument("--passage-max-length", type=positive, help=f"tokens of a passage {own}")
    parser.add_argument("--query-prompt", help=f"what stands before every query {own}")
    parser.add_argument("--passage-prompt", help=f"what stands before every passage {own}")
    parser.add_argument("--title-separator", help=f"between title and text {own}")
    parser.add_argument("--pooling", choices=POOLINGS, help=own)
    parser.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help=f"scale embeddings to length 1 {own}"
    )
    parser.add_argument(
        "--dimension",
        type=positive,
        help="keep so many of an embedding's dimensions, the first ones, for models trained with matryoshka_dims "
        "(default: all)",
    )
    parser.add_argument(
        "--encoder",
        choices=tuple(BACKENDS),
        default="jax",
        help="what runs the model; torch opens an exported directory with transformers (default: %(default)s)",
    )
    add_model_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `add_encoder_arguments`, and where embeddings are that need not be made again."""
    add_encoder_arguments(parser)
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="DIR",
        help="the passages' embeddings, as eval.encode made them with this model (default: encode them now)",
    )


def open_encoders(arguments: argparse.Namespace) -> Encoders:
    """The encoders of queries and passages, as `model` and the arguments of `add_encoder_arguments` say.

    Raises:
        InputError: if the model cannot be used so.
    """
    changes = {field: getattr(arguments, name) for name, field in SETTINGS.items()}
    return Encoders.from_pretrained(
        arguments.model, arguments.compute_dtype, arguments.dimension, arguments.encoder, **changes
    )


class Retriever:
    """The encoders of queries and passages, and the passages that are searched.

    Args:
        arguments: `model` and those of `add_arguments`.

    Raises:
        InputError: if the model cannot be used so, or `embeddings` names none.
    """

    def __init__(self, arguments: argparse.Namespace):
        self._passages = None if arguments.embeddings is None else Embeddings(arguments.embeddings)
        self.encoders = open_encoders(arguments)
        self.batch_size = arguments.batch_size
        own = self.encoders.passage.settings
        self.titles, self.lexical_top_k = own.titles, own.lexical_top_k
        # What decides what is found, for metrics.json.
        self.settings = {
            "model": arguments.model,
            "embeddings": arguments.embeddings and str(arguments.embeddings),
            "query_max_length": self.encoders.query.settings.max_length_of("query"),
            "passage_max_length": own.max_length_of("passage"),
            "query_prompt": self.encoders.query.settings.query_prompt,
            "passage_prompt": own.passage_prompt,
            "title_separator": own.title_separator,
            "pooling": own.pooling,
            "normalize": own.normalize,
            "dimension": self.encoders.passage.dimension,
            "lexical_top_k": self.lexical_top_k,
            "batch_size": arguments.batch_size,
            "encoder": arguments.encoder,
            "compute_dtype": arguments.compute_dtype,
        }

    def index(self, passages: Passages, directory: Path) -> None:
        """Encodes, on all hosts, the passages to search, into files in `directory`; or checks those that there are.

        Raises:
            InputError: if there are embeddings, but not of these passages by this model.
        """
        encoder = self.encoders.passage
        if self._passages is None:
            encode_to_disk(encoder, passages, "passage", directory / "passages", batch_size=self.batch_size)
            self._passages = Embeddings(directory / "passages")
        self._passages.check(describe(encoder, passages, "passage"))

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes queries on this host and finds their best k passages: scores and indices [Q, k], as of `search`."""
        embeddings = encode_texts(self.encoders.query, queries, "query", self.batch_size)
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
