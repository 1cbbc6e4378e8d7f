"""What every command that searches with an encoder does alike: its arguments, encoding and searching."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.measure import add_model_arguments, positive
from retromae_jax import hosts
from retromae_jax.data.retrieval import Passages
from retromae_jax.encoder import BACKENDS, Encoders
from retromae_jax.errors import InputError
from retromae_jax.models.pooling import POOLINGS
from retromae_jax.retrieval.embeddings import Embeddings, describe, encode_to_disk
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.retrieval.search import Method, PassageIndex
from retromae_jax.retrieval.top_k import Found, TopK

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


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that names the encoder."""
    parser.add_argument(
        "--model",
        required=True,
        help="Hugging Face directory or Hub name, or run directory; of untied encoders the directory that holds both",
    )


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how texts are encoded, but for `--model` and `--titles`, which commands add."""
    parser.set_defaults(titles=None)  # as the model says
    own = "(default: the model's own)"
    parser.add_argument("--query-max-length", type=positive, help=f"tokens of a query {own}")
    parser.add_argument("--passage-max-length", type=positive, help=f"tokens of a passage {own}")
    parser.add_argument("--query-prompt", help=f"what stands before every query {own}")
    parser.add_argument("--passage-prompt", help=f"what stands before every passage {own}")
    parser.add_argument("--title-separator", help=f"between title and text {own}")
    parser.add_argument("--pooling", choices=POOLINGS, help=f"from token states to the sentence embedding {own}")
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
    """Adds the arguments of a command that searches one collection: where its embeddings may be, and all else."""
    add_encoder_arguments(parser)
    add_search_argument(parser)
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="DIR",
        help="the passages' embeddings, as eval.encode made them with this model (default: encode them now)",
    )


def add_search_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that says how to search."""
    parser.add_argument(
        "--search",
        type=_method,
        metavar="METHOD",
        help="device (in JAX, the default on accelerators) or flat (Faiss, the default on CPUs), which are exact; hnsw "
        "or ivfpq (Faiss), which are approximate and say how good they are. With parameters, as Faiss calls them: "
        "hnsw:M=32,efConstruction=200,efSearch=256 or ivfpq:nlist=16384,M=192,nprobe=1024. Where faiss-gpu is "
        "installed, flat and ivfpq use all GPUs, unless gpu=0",
    )


def _method(argument: str) -> Method:
    try:
        return Method.parse(argument)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
        self._given = None if arguments.embeddings is None else Embeddings(arguments.embeddings)
        self.encoders = open_encoders(arguments)
        self.batch_size = arguments.batch_size
        own = self.encoders.passage.settings
        self.titles, self.lexical_top_k = own.titles, own.lexical_top_k
        if self.lexical_top_k and arguments.search is not None:
            raise InputError("embeddings with a lexical part have a search of their own; leave out --search")
        self.method = arguments.search or Method.default()
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
            "search": "lexical" if self.lexical_top_k else str(self.method),
            "batch_size": arguments.batch_size,
            "encoder": arguments.encoder,
            "compute_dtype": arguments.compute_dtype,
        }
        self._passages: Embeddings | None = None
        self._index: PassageIndex | None = None

    def content(self, passages: Passages) -> str:
        """What the embeddings of these passages are, for `hosts.scratch`."""
        return json.dumps(describe(self.encoders.passage, passages, "passage"), indent=2)

    def index(self, passages: Passages, directory: Path, hosts_searching: int = 1) -> None:
        """Encodes, on all hosts, the passages to search, into files in `directory`; or checks those that there are.

        Args:
            passages: of the collection.
            directory: seen by all hosts.
            hosts_searching: a share of the passages each.

        Raises:
            InputError: if there are embeddings, but not of these passages by this model; or the passages cannot be
                searched with the method, which shows before they are encoded.
        """
        self.method.check(len(passages) // hosts_searching, self.encoders.passage.dimension)
        encoder, self._passages, self._index = self.encoders.passage, self._given, None
        if self._passages is None:
            encode_to_disk(encoder, passages, "passage", directory / "passages", batch_size=self.batch_size)
            self._passages = Embeddings(directory / "passages")
        self._passages.check(describe(encoder, passages, "passage"))

    def search(self, queries: Sequence[str], k: int) -> Found:
        """Encodes queries on this host and finds their best k passages, as of `PassageIndex.search`."""
        embeddings = encode_texts(self.encoders.query, queries, "query", self.batch_size)
        return self._search(embeddings, k, range(len(self._indexed)))

    def search_on_all_hosts(self, queries: Sequence[str], k: int, directory: Path) -> Found:
        """As `search`, all hosts together: each encodes a share of the queries and searches a share of the passages.

        Args:
            directory: seen by all hosts, for files that they leave each other.
        """
        own = hosts.share(len(queries))
        embeddings = encode_texts(self.encoders.query, queries[own.start : own.stop], "query", self.batch_size)
        embeddings = np.concatenate(list(hosts.exchange(directory, "queries", embeddings)))
        found = self._search(embeddings, k, hosts.share(len(self._indexed)))
        # Shares follow each other, as the passages do.
        best = TopK(len(queries), k)
        parts = (hosts.exchange(directory, name, part) for name, part in zip(("scores", "indices"), found, strict=True))
        for scores, indices in zip(*parts, strict=True):
            best.add(scores, indices)
        return best.scores, best.indices

    @property
    def _indexed(self) -> Embeddings:
        assert self._passages is not None, "`index` comes first"
        return self._passages

    def _search(self, embeddings: np.ndarray, k: int, share: range) -> Found:
        if self._index is None:
            self._index = PassageIndex(self._indexed, self.method, self.lexical_top_k, share)
        found = self._index.search(embeddings, k)
        if self._index.recall is not None:
            self.settings["search_recall"] = self._index.recall
        return found
