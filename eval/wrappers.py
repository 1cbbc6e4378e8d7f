"""Encoders as the packages `beir` and `mteb` want them, neither of which is needed here.

    from beir.retrieval.search.dense import DenseRetrievalExactSearch
    searcher = DenseRetrievalExactSearch(BeirModel("exported/beir"))

    import mteb
    mteb.evaluate(MtebModel("exported/beir"), mteb.get_tasks(tasks=["SciFact"]))

Both packages compute scores and rankings themselves. What they call a model makes the embeddings that `eval.beir`
searches: texts are cut at the model's own maximum, and titles stand before texts with a space between.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retromae_jax.encoder import Encoders
from retromae_jax.errors import InputError
from retromae_jax.models.text_encoder import KINDS
from retromae_jax.retrieval.encode import encode_texts

QUERY, PASSAGE = KINDS


class _Model:
    def __init__(self, name_or_directory: str, batch_size: int = 64, compute_dtype: str = "float32"):
        """Opens a model.

        Args:
            name_or_directory: Hugging Face directory, Hub name or run directory, of one encoder or untied ones.
            batch_size: texts computed at once.
            compute_dtype: of activations, float32 or bfloat16.

        Raises:
            InputError: if there is no such model, or its embeddings are more than vectors to multiply.
        """
        self.name, self.batch_size = name_or_directory, batch_size
        self.encoders = Encoders.from_pretrained(name_or_directory, compute_dtype=compute_dtype)
        if self.encoders.passage.settings.lexical_top_k:
            raise InputError(
                f"{name_or_directory}: embeddings with a lexical part are no vectors that others can search"
            )

    def embed(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """Embeddings, float32 [N, D], of queries or passages."""
        encoder, task = getattr(self.encoders, kind), {QUERY: "queries", PASSAGE: "passages"}[kind]
        return encode_texts(encoder, texts, encoder.max_length, self.batch_size, task)


class BeirModel(_Model):
    """An encoder for `beir.retrieval.search.dense`; its score function is `dot`."""

    def encode_queries(self, queries: Sequence[str], **_: Any) -> np.ndarray:
        """Embeddings of queries, float32 [Q, D]."""
        return self.embed(queries, QUERY)

    def encode_corpus(self, corpus: Sequence[Mapping[str, str]], **_: Any) -> np.ndarray:
        """Embeddings of passages with `title` and `text`, float32 [N, D]."""
        return self.embed([f"{passage.get('title') or ''} {passage['text']}".strip() for passage in corpus], PASSAGE)


class MtebModel(_Model):
    """An encoder for `mteb.evaluate` (its `EncoderProtocol`); texts that are no queries are passages."""

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
