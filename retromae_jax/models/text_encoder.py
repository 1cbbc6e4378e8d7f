"""From texts to embeddings: the networks that fine-tuning trains and encoding runs."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax.models import lexical
from retromae_jax.models.bert import Bert, BertConfig, Computation, MaskedLanguageModelHead, linear
from retromae_jax.models.pooling import EncoderSettings, normalized, pool
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows

Value = TypeVar("Value")

# The kinds of text. They name the two encoders where those are untied: in parameters, and as directories of an export.
KINDS = ("query", "passage")


class TextEncoder(nnx.Module):
    """BERT and pooling; where settings ask for it, a linear projection, and a head that scores the vocabulary.

    Args:
        config: sizes of BERT.
        settings: how texts become embeddings.
        computation: how BERT is computed.
        rngs: of fresh parameters.
    """

    def __init__(self, config: BertConfig, settings: EncoderSettings, computation: Computation, rngs: nnx.Rngs):
        self.bert = Bert(config, computation, rngs)
        if settings.projection:
            self.projection = linear(config.hidden_size, settings.projection, config, rngs)
        if settings.lexical_top_k:
            self.head = MaskedLanguageModelHead(config, rngs)
        self.settings = settings

    def __call__(self, rows: Rows, dropout: Dropout | None = None) -> jax.Array:
        """Embeddings of rows' texts, float32 [R, T, `embedding_width`]; where there is no text, any finite numbers.

        `dropout` is None at evaluation.
        """
        settings = self.settings
        if settings.pooling == "cls" and not settings.lexical_top_k:
            # Of the last states, no other is needed.
            sentence_RxTxD = self.bert.hidden_states(rows, dropout, rows.first_RxT)[-1].astype(jnp.float32)
        else:
            hidden_RxLxD = self.bert(rows, dropout)
            sentence_RxTxD = pool(hidden_RxLxD, rows, settings.pooling)
        if settings.projection:
            sentence_RxTxD = self.projection(sentence_RxTxD)
        if settings.normalize:
            sentence_RxTxD = normalized(sentence_RxTxD)
        if not settings.lexical_top_k:
            return sentence_RxTxD
        highest_RxTxV = lexical.highest_logits(self.bert, self.head, hidden_RxLxD, rows)
        return lexical.pack(sentence_RxTxD, lexical.word_scores(highest_RxTxV), settings.lexical_top_k)


class UntiedEncoders(nnx.Module):
    """An encoder for queries and one for passages, which begin alike; arguments as for `TextEncoder`."""

    def __init__(self, config: BertConfig, settings: EncoderSettings, computation: Computation, rngs: nnx.Rngs):
        self.query = TextEncoder(config, settings, computation, rngs)
        # Projections that begin apart would make the first scores noise.
        self.passage = nnx.clone(self.query)


def embedding_width(config: BertConfig, settings: EncoderSettings) -> int:
    """Numbers in an embedding: the sentence embedding's, and two for each word of the lexical part."""
    return (settings.projection or config.hidden_size) + 2 * settings.lexical_top_k


def of_kind(values: Mapping[str, Value], kind: str) -> dict[str, Value]:
    """Those of untied encoders' parameters that are of one kind's encoder, under the names that it has alone."""
    return {name.removeprefix(f"{kind}."): value for name, value in values.items() if name.startswith(f"{kind}.")}
