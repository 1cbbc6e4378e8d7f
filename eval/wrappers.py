"""Encoders as the packages `beir` and `mteb` want them, neither of which is needed here.

    from beir.retrieval.search.dense import DenseRetrievalExactSearch
    searcher = DenseRetrievalExactSearch(BeirModel("exported/beir"))

    import mteb
    mteb.evaluate(MtebModel("exported/beir"), mteb.get_tasks(tasks=["SciFact"]))

Both packages compute scores and rankings themselves. Texts are prompted and cut as the model says of itself, or as
further arguments say, fields of `EncoderSettings`: `BeirModel("exported/beir", query_max_length=512)`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.models.text_encoder import KINDS

QUERY, PASSAGE = KINDS


class _Model:
    def __init__(
        self, name_or_directory: str, batch_size: int | None = None, compute_dtype: str = "float32", **changes: Any
    ):
        """Opens a model.

        Args:
            name_or_directory: Hugging Face directory, Hub name or run directory, of one encoder or untied ones.
            batch_size: as for `Encoder.encode`.
            compute_dtype: of activations, float32 or bfloat16.
            changes: fields of `EncoderSettings` that are to differ from the model's own.

        Raises:
            InputError: if there is no such model, or its embeddings are no vectors that others can search.
        """
        self.name, self.batch_size = name_or_directory, batch_size
        self.encoder = Encoder.from_pretrained(name_or_directory, compute_dtype, **changes)
        if self.encoder.settings.lexical_top_k:
            raise InputError(
                f"{name_or_directory}: embeddings with a lexical part are no vectors that others can search"
            )

    def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """Embeddings, float32 [N, D], of queries or passages."""
        return self.encoder.encode(texts, kind, self.batch_size)


class BeirModel(_Model):
    """An encoder for `beir.retrieval.search.dense`; its score function is `dot`."""

    def __init__(self, name_or_directory: str, *arguments: Any, titles: bool = True, **others: Any):
        """Opens a model; titles stand before texts, as in BEIR, whatever the model was trained on."""
        super().__init__(name_or_directory, *arguments, titles=titles, **others)

    def encode_queries(self, queries: Sequence[str], **_: Any) -> np.ndarray:
        """Embeddings of queries, float32 [Q, D]."""
        return self.embed(queries, QUERY)

    def encode_corpus(self, corpus: Sequence[Mapping[str, str]], **_: Any) -> np.ndarray:
        """Embeddings of passages with `title` and `text`, float32 [N, D]."""
        settings = self.encoder.settings
        parts = [(passage.get("title") if settings.titles else None, passage["text"]) for passage in corpus]
        texts = [settings.title_separator.join(filter(None, of_passage)) for of_passage in parts]
        return self.embed(texts, PASSAGE)


class MtebModel(_Model):
    """An encoder for `mteb.evaluate` (its `EncoderProtocol`); texts that are no queries are passages.

    It is mteb that puts titles before texts.
    """

    @functools.cached_property
    def mteb_model_meta(self) -> Any:
        """How results are filed."""
        from mteb.models import ModelMeta

        return ModelMeta.create_empty({"name": f"local/{Path(self.name).resolve().name}"})

    def encode(self, inputs: Iterable[Mapping[str, Sequence[str]]], *, prompt_type: Any = None, **_: Any) -> np.ndarray:
        """Embeddings of batches of texts under the key `text`, float32 [N, D]."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embed(texts, QUERY if prompt_type == QUERY else PASSAGE)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Inner products, a tensor [N, M]."""
        return _tensor(embeddings1) @ _tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Inner products of rows, a tensor [N]."""
        return (_tensor(embeddings1) * _tensor(embeddings2)).sum(-1)


def _tensor(embeddings: Any) -> Any:
    import torch

    return torch.as_tensor(embeddings)
