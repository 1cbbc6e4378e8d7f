"""Trained encoders: texts to embeddings."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import parallel
from retromae_jax.checkpoints.loading import Source, open_model
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings, truncate
from retromae_jax.models.text_encoder import KINDS, TextEncoder, embedding_width
from retromae_jax.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Makes embeddings of texts on all devices of this process.

    Args:
        config: sizes of the encoder.
        weights: parameters of its `TextEncoder`.
        tokenizer: the encoder's.
        settings: how texts become embeddings.
        compute_dtype: of activations, float32 or bfloat16.
        dimension: how many of an embedding's dimensions are kept, the first ones; None keeps all. For models that were
            trained with `matryoshka_dims`.

    Raises:
        InputError: if an embedding has not so many dimensions, or has a lexical part and is to be cut or scaled.
    """

    def __init__(
        self,
        config: BertConfig,
        weights: parameters.Parameters,
        tokenizer: "PreTrainedTokenizerBase",
        settings: EncoderSettings,
        compute_dtype: str = "float32",
        dimension: int | None = None,
    ):
        width = embedding_width(config, settings)
        if settings.lexical_top_k and (dimension is not None or settings.normalize):
            raise InputError("embeddings with a lexical part are neither cut to a dimension nor scaled to length 1")
        if dimension is not None and not 1 <= dimension <= width:
            raise InputError(f"dimension {dimension} is not between 1 and the {width} of the model's embeddings")
        self.config, self.tokenizer, self.settings = config, tokenizer, settings
        self._dimension = dimension or width
        self.mesh = parallel.local_mesh()
        self.weights = jax.device_put(weights, parallel.replicated(self.mesh))
        computation = Computation.on(parallel.platform(self.mesh), config, compute_dtype)
        graph, _ = parameters.structure(lambda rngs: TextEncoder(config, settings, computation, rngs))

        def embed(weights, token_ids_BxL, lengths_B):
            texts = {"token_ids": token_ids_BxL, "lengths": lengths_B, "samples": jnp.zeros_like(lengths_B, jnp.uint32)}
            rows = Rows.of(texts, seed=0)
            with parallel.full_precision(computation.dtype):
                embeddings_Bx1xD = parameters.bind(graph, weights)(rows)
            return truncate(embeddings_Bx1xD[:, 0], self.dimension, settings.normalize)

        self._embed = jax.jit(embed)

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str,
        pooling: str | None = None,
        normalize: bool | None = None,
        compute_dtype: str = "float32",
        dimension: int | None = None,
    ) -> "Encoder":
        """Opens a Hugging Face directory, a Hub name or a run directory.

        Args:
            name_or_directory: the model.
            pooling: `cls` or `mean`; None takes the model's own.
            normalize: whether embeddings have length 1; None takes the model's own.
            compute_dtype: of activations, float32 or bfloat16.
            dimension: how many of an embedding's dimensions are kept; None keeps all.

        Raises:
            InputError: if there is no such model, some of its weights are missing, it has fewer dimensions, or queries
                and passages have an encoder each (see `Encoders`).
        """
        return cls._of(open_model(name_or_directory), pooling, normalize, compute_dtype, dimension)

    @classmethod
    def _of(
        cls, source: Source, pooling: str | None, normalize: bool | None, compute_dtype: str, dimension: int | None
    ) -> "Encoder":
        changes = {"pooling": pooling, "normalize": normalize}
        settings = dataclasses.replace(source.settings, **{k: v for k, v in changes.items() if v is not None})
        _, shapes = parameters.structure(lambda rngs: TextEncoder(source.config, settings, Computation(), rngs))
        weights, report = source.parameters(shapes)
        if report.fresh:
            raise InputError(f"{source.directory}: the encoder's weights are incomplete: {', '.join(report.fresh)}")
        return cls(source.config, weights, load_tokenizer(str(source.tokenizer)), settings, compute_dtype, dimension)

    @property
    def dimension(self) -> int:
        """Width of an embedding; that of one with a lexical part is as `models.lexical` says."""
        return self._dimension

    @property
    def max_length(self) -> int:
        """Longest text in tokens, [CLS] and [SEP] included."""
        return self.settings.max_length

    def embed(self, token_ids_BxL: np.ndarray, lengths_B: np.ndarray) -> jax.Array:
        """Embeddings of padded texts, float32 [B, D]; B must be a multiple of the number of local devices."""
        arrays = jax.device_put((token_ids_BxL, lengths_B), parallel.over_batch(self.mesh))
        with jax.set_mesh(self.mesh):
            return self._embed(self.weights, *arrays)


class Encoders(NamedTuple):
    """The encoders of queries and of passages; the same one, unless they were trained untied."""

    query: Encoder
    passage: Encoder

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str,
        pooling: str | None = None,
        normalize: bool | None = None,
        compute_dtype: str = "float32",
        dimension: int | None = None,
    ) -> "Encoders":
        """Opens what `Encoder.from_pretrained` opens, and runs and exports of untied encoders; arguments as there."""
        source = open_model(name_or_directory)
        opened = [
            Encoder._of(source.of_kind(kind), pooling, normalize, compute_dtype, dimension)
            for kind in (KINDS if source.settings.untie_encoder else KINDS[:1])
        ]
        return cls(opened[0], opened[-1])
