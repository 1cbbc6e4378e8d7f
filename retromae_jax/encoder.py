"""Trained encoders: texts to embeddings."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import parallel
from retromae_jax.checkpoints.digests import model_digest
from retromae_jax.checkpoints.loading import Source, open_model
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError, shown
from retromae_jax.logging import delayed
from retromae_jax.models import parameters
from retromae_jax.models.bert import Computation
from retromae_jax.models.pooling import EncoderSettings, truncate
from retromae_jax.models.text_encoder import KINDS, TextEncoder, embedding_width
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.retrieval.hits import Hit, hits
from retromae_jax.rows import Rows


class Encoder:
    """Makes embeddings of texts on all devices of this process.

    Args:
        source: the model on disk.
        settings: how texts become embeddings: the model's own, or changed.
        compute_dtype: of activations, float32 or bfloat16.
        dimension: how many of an embedding's dimensions are kept, the first ones; None keeps all. For models that were
            trained with `matryoshka_dims`.
        device: `cpu`, `gpu` or `tpu`, of which all devices are taken, or devices; None is what JAX takes.

    Attributes:
        name: of what runs the model.
        source: the model on disk.
        config: sizes of the model.
        tokenizer: the model's.
        settings: how texts become embeddings.
        compute_dtype: of activations.
        dimension: width of an embedding; that of one with a lexical part is as `models.lexical` says.
        both: the encoders of queries and of passages: twice this one, unless they were trained untied.

    Raises:
        InputError: if some of the model's weights are missing, an embedding has not so many dimensions, or has a
            lexical part and is to be cut or scaled, texts are longer than the model has positions, or there is no such
            device.
    """

    name = "jax"

    def __init__(
        self,
        source: Source,
        settings: EncoderSettings,
        compute_dtype: str = "float32",
        dimension: int | None = None,
        device: parallel.Device = None,
    ):
        width = embedding_width(source.config, settings)
        if settings.lexical_top_k and (dimension is not None or settings.normalize):
            raise InputError("embeddings with a lexical part are neither cut to a dimension nor scaled to length 1")
        if dimension is not None and not 1 <= dimension <= width:
            raise InputError(f"dimension {dimension} is not between 1 and the {width} of the model's embeddings")
        self.source, self.config, self.settings = source, source.config, settings
        self.compute_dtype = compute_dtype
        self.dimension = dimension or width
        self.tokenizer = load_tokenizer(str(source.tokenizer))
        for kind in KINDS:
            self._check_lengths(kind)
        self.both = Encoders(self, self)
        self._open(device)

    def _check_lengths(self, kind: str) -> None:
        longest, positions = self.settings.max_length_of(kind), self.config.max_length
        if not 3 <= longest <= positions:
            raise InputError(
                f"maximum length {longest} of a {kind} is not between 3 and the encoder's {positions} positions"
            )
        prompt = self.settings.prompt_of(kind)
        if len(self.tokenizer.backend_tokenizer.encode(prompt).ids) >= longest:
            raise InputError(f"the prompt {shown(prompt)} leaves no room in the {longest} tokens of a {kind}")

    def _open(self, device: parallel.Device) -> None:
        """Brings the weights onto the devices, and makes `embed` ready."""
        settings = self.settings
        self.mesh = parallel.local_mesh(device)
        computation = Computation.on(self.platform, self.config, self.compute_dtype)
        graph, _ = parameters.structure(lambda rngs: TextEncoder(self.config, settings, computation, rngs))
        self.weights: parameters.Arrays = jax.device_put(self._parameters(), parallel.replicated(self.mesh))

        def embed(weights, token_ids_BxL, lengths_B):
            texts = {"token_ids": token_ids_BxL, "lengths": lengths_B, "samples": jnp.zeros_like(lengths_B, jnp.uint32)}
            rows = Rows.of(texts, seed=0)
            with parallel.full_precision(computation.dtype):
                embeddings_Bx1xD = parameters.bind(graph, weights)(rows)
            return truncate(embeddings_Bx1xD[:, 0], self.dimension, settings.normalize)

        self._embed = jax.jit(embed)

    def _parameters(self) -> parameters.Arrays:
        """Those of the model's `TextEncoder`, in host memory."""
        _, shapes = parameters.structure(lambda rngs: TextEncoder(self.config, self.settings, Computation(), rngs))
        weights, report = self.source.parameters(shapes)
        if report.fresh:
            raise InputError(
                f"{self.source.directory}: the encoder's weights are incomplete: {', '.join(report.fresh)}"
            )
        return weights

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str,
        compute_dtype: str = "float32",
        dimension: int | None = None,
        device: parallel.Device = None,
        **changes: Any,
    ) -> "Encoder":
        """Opens a Hugging Face directory, a Hub name or a run directory.

        Of untied encoders this is the one of passages; `encode` and `search` use both.

        Args:
            name_or_directory: the model.
            compute_dtype: as for `Encoder`.
            dimension: as for `Encoder`.
            device: as for `Encoder`.
            changes: fields of `EncoderSettings` that are to differ from the model's own; None is the model's own.

        Raises:
            InputError: as `Encoder`; and if there is no such model.
        """
        return Encoders.from_pretrained(
            name_or_directory, compute_dtype, dimension, cls.name, device, **changes
        ).passage

    def encode(
        self,
        texts: str | Sequence[str],
        kind: str = "passage",
        batch_size: int | None = None,
        progress: bool = True,
    ) -> np.ndarray:
        """Embeddings of texts, float32 [N, D], in their order; of a single text, [D].

        Args:
            texts: N texts, or one.
            kind: of the texts, `query` or `passage`: the model may prompt and cut them differently, or encode them by
                different encoders.
            batch_size: texts that each device encodes at once where they are as long as may be; of shorter ones as
                many more. None takes what suits the devices.
            progress: whether to show it, if it takes more than a few seconds.

        Raises:
            InputError: if there is no such kind of text.
        """
        if kind not in KINDS:
            raise InputError(f"kind of text {shown(kind)}; there are {' and '.join(KINDS)}")
        if isinstance(texts, str):
            return self.encode([texts], kind, batch_size, progress)[0]
        with delayed() if progress else delayed(math.inf):
            return encode_texts(getattr(self.both, kind), texts, kind, batch_size)

    @overload
    def search(
        self, query: str, corpus: Sequence[str] | np.ndarray, k: int = 10, progress: bool = True
    ) -> list[Hit]: ...
    @overload
    def search(
        self, query: list[str], corpus: Sequence[str] | np.ndarray, k: int = 10, progress: bool = True
    ) -> list[list[Hit]]: ...
    def search(self, query, corpus, k=10, progress=True):
        """The k passages whose embeddings have the highest inner product with the query's, the best first.

        Args:
            query: a query, or a list of them.
            corpus: the passages, or their embeddings of `encode`, for which several searches need not wait again.
            k: hits wanted; there are fewer if there are fewer passages.
            progress: as for `encode`.

        Returns:
            The query's hits; of several queries, a list of each one's.
        """
        from retromae_jax.retrieval.search import PassageIndex  # Faiss takes a while to import

        passages = corpus if isinstance(corpus, np.ndarray) else self.encode(corpus, "passage", progress=progress)
        queries = self.encode([query] if isinstance(query, str) else query, "query", progress=progress)
        with delayed() if progress else delayed(math.inf):
            found = PassageIndex(passages, lexical_top_k=self.settings.lexical_top_k).search(queries, k)
        ranked = [hits(*of_query, corpus) for of_query in zip(*found, strict=True)]
        return ranked[0] if isinstance(query, str) else ranked

    @property
    def platform(self) -> str:
        """The kind of the devices: cpu, gpu or tpu."""
        return parallel.platform(self.mesh)

    @property
    def devices(self) -> int:
        """How many devices share a batch."""
        return self.mesh.size

    @functools.cached_property
    def digest(self) -> str:
        """Of the model; see `model_digest`."""
        return model_digest(self.config, self.tokenizer, self.weights)

    def embed(self, token_ids_BxL: np.ndarray, lengths_B: np.ndarray) -> jax.Array:
        """Embeddings of padded texts, float32 [B, D]; B must be a multiple of `devices`."""
        arrays = jax.device_put((token_ids_BxL, lengths_B), parallel.over_batch(self.mesh))
        with jax.set_mesh(self.mesh):
            return self._embed(self.weights, *arrays)


def _torch_encoder() -> type[Encoder]:
    from retromae_jax.torch_encoder import TorchEncoder

    return TorchEncoder


# What runs a model; PyTorch is imported by those only who ask for it.
BACKENDS: dict[str, Callable[[], type[Encoder]]] = {"jax": lambda: Encoder, "torch": _torch_encoder}


class Encoders(NamedTuple):
    """The encoders of queries and of passages; the same one, unless they were trained untied."""

    query: Encoder
    passage: Encoder

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str,
        compute_dtype: str = "float32",
        dimension: int | None = None,
        backend: str = "jax",
        device: parallel.Device = None,
        **changes: Any,
    ) -> "Encoders":
        """Opens what `Encoder.from_pretrained` opens; arguments as there.

        Args:
            backend: what runs the model, a key of `BACKENDS`.
        """
        source, encoder = open_model(name_or_directory), BACKENDS[backend]()
        opened = []
        for kind in KINDS if source.settings.untie_encoder else KINDS[:1]:
            own = source.of_kind(kind)
            opened.append(encoder(own, own.settings.changed(**changes), compute_dtype, dimension, device))
        both = cls(opened[0], opened[-1])
        for one in both:
            one.both = both
        return both
