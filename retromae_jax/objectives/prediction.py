"""Prediction of tokens by the masked-language-model head, a part of every pretraining objective."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retromae_jax.cross_entropy import linear_cross_entropy
from retromae_jax.models.bert import Bert, MaskedLanguageModelHead
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows, take

IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one part of a model predicts.

    Attributes:
        states_RxNxD: hidden states, the head's input.
        labels_RxN: int32, the token to predict, or -100.
        count: labels over which the loss is the mean; None for those of these rows.
    """

    states_RxNxD: jax.Array
    labels_RxN: jax.Array
    count: jax.Array | None


def prediction_loss(
    bert: Bert, head: MaskedLanguageModelHead, predictions: Mapping[str, Prediction]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over all parts of the mean cross-entropy of their labels, in nats, in one pass over the vocabulary.

    Returns:
        The loss; and for each part `NAME_loss` and `NAME_accuracy`.
    """
    labels_RxN = jnp.concatenate([part.labels_RxN for part in predictions.values()], axis=1)
    weights = []
    for part in predictions.values():
        labelled_RxN = (part.labels_RxN != IGNORED).astype(jnp.float32)
        count = jnp.sum(labelled_RxN) if part.count is None else part.count
        weights.append(labelled_RxN / jnp.maximum(count, 1))
    loss, cross_entropies_RxN, correct_RxN = linear_cross_entropy(
        head(jnp.concatenate([part.states_RxNxD for part in predictions.values()], axis=1)),
        jnp.where(labels_RxN == IGNORED, 0, labels_RxN),
        jnp.concatenate(weights, axis=1),
        bert.embeddings.word_embeddings.embedding[...],
        head.bias[...],
    )
    metrics, start = {}, 0
    for name, weights_RxN in zip(predictions, weights, strict=True):
        here = slice(start, start := start + weights_RxN.shape[1])
        metrics[f"{name}_loss"] = jnp.sum(weights_RxN * cross_entropies_RxN[:, here])
        metrics[f"{name}_accuracy"] = jnp.sum(weights_RxN * correct_RxN[:, here])
    return loss, metrics


def masked_limit(probability: float, rows: Rows) -> int:
    """The most tokens of a row that the encoder's masks can cover: max(1, round(p n)) for each text of n tokens."""
    length, texts = rows.token_ids_RxL.shape[1], rows.lengths_RxT.shape[1]
    return max(1, round(probability * length)) if texts == 1 else min(length, int(probability * length) + texts)


def labelled(labels_RxL: jax.Array, limit: int) -> jax.Array:
    """Indices of each row's first `limit` labelled positions, int32 [R, limit]; of others where there are fewer."""
    return jnp.argsort(labels_RxL == IGNORED, axis=1, stable=True)[:, :limit]


class Encoded(NamedTuple):
    """Masked texts as the encoder sees them.

    Attributes:
        states: every layer's, as of `Bert.hidden_states`.
        sentence_RxTxD: the last [CLS] state of each text, its sentence embedding.
        masked_RxKxD: last states at the labelled positions.
        labels_RxK: int32, the tokens to predict there, or -100.
    """

    states: list[jax.Array]
    sentence_RxTxD: jax.Array
    masked_RxKxD: jax.Array
    labels_RxK: jax.Array


def encode(
    bert: Bert, corrupted: Rows, labels_RxL: jax.Array, limit: int, dropout: Dropout | None, whole_last: bool = False
) -> Encoded:
    """Encodes masked texts.

    Args:
        bert: the encoder.
        corrupted: the masked texts.
        labels_RxL: int32, the token to predict, or -100.
        limit: no row has more labels than this.
        dropout: None at evaluation.
        whole_last: compute the last layer at all positions, not only where its states are used.
    """
    texts = corrupted.lengths_RxT.shape[1]
    first_RxT, at_RxK = corrupted.first_RxT, labelled(labels_RxL, limit)
    if whole_last:
        states = bert.hidden_states(corrupted, dropout)
        sentence_RxTxD, masked_RxKxD = take(states[-1], first_RxT), take(states[-1], at_RxK)
    else:
        states = bert.hidden_states(corrupted, dropout, jnp.concatenate([first_RxT, at_RxK], axis=1))
        sentence_RxTxD, masked_RxKxD = states[-1][:, :texts], states[-1][:, texts:]
    return Encoded(states, sentence_RxTxD, masked_RxKxD, take(labels_RxL, at_RxK))
