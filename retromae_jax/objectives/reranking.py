"""Reranking: a cross-encoder reads query and passage together and scores the pair (Nogueira and Cho, 2019).

Trained listwise: softmax cross-entropy of each query's relevant passage among its group (Gao et al., 2021, "Rethink
training of BERT rerankers in multi-stage retrieval pipeline", localized contrastive estimation).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from retromae_jax import flops
from retromae_jax.models.bert import Bert, BertConfig, ClassificationHead, Computation
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows


class Model(nnx.Module):
    """The cross-encoder: `AutoModelForSequenceClassification` with one label."""

    def __init__(self, config: BertConfig, computation: Computation, rngs: nnx.Rngs):
        self.bert = Bert(config, computation, rngs)
        self.classifier = ClassificationHead(config, rngs)

    def __call__(self, rows: Rows, dropout: Dropout | None = None) -> jax.Array:
        """Scores of the rows' texts, which are pairs, float32 [R, T]; `dropout` None at evaluation."""
        hidden_RxTxD = self.bert.hidden_states(rows, dropout, rows.first_RxT)[-1]
        return self.classifier(hidden_RxTxD, None if dropout is None else dropout.at(rows.first_RxT))


def listwise_loss(scores_QxG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of each query's first passage among its group.

    Args:
        scores_QxG: float32, of each query's G passages, the relevant one first.

    Returns:
        The mean loss in nats, and the share of queries whose relevant passage has the highest score.
    """
    positives_Q = jnp.zeros(len(scores_QxG), jnp.int32)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores_QxG, positives_Q))
    return loss, jnp.mean(jnp.argmax(scores_QxG, axis=1) == positives_Q)


class Reranking:
    """The objective: a mean over queries, so that each device computes its share of them alone.

    Args:
        config: sizes of the cross-encoder.
        computation: how it is computed.
    """

    def __init__(self, config: BertConfig, computation: Computation):
        self.config, self.computation = config, computation

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.computation, rngs)

    def flops(self, tokens_N: np.ndarray) -> float:
        """Model FLOPs of a training step on pairs of so many tokens; see `retromae_jax.flops`.

        The last layer has one query position, [CLS]; the head's products of 2 D^2 + 2 D a pair.
        """
        width = self.config.hidden_size
        encoder = flops.encoder_flops(self.config, tokens_N, np.ones_like(tokens_N))
        return flops.TRAINING * (encoder + len(tokens_N) * 2.0 * width * (width + 1))

    def loss(self, model: Model, batch: dict, seed: int, axis: str) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of this device's queries.

        Args:
            model: from `model`.
            batch: rows of pairs as for `Rows.of`; `places` int32 [Q, G], where in [R * T] the pairs of each query are,
                the one with the relevant passage first.
            seed: the run's seed.
            axis: the mapped axis of devices; the loss needs nothing of the others.

        Returns:
            The mean over this device's queries, and metrics; the batch's are their means over devices.
        """
        rows = Rows.of(batch, seed)
        scores_RxT = model(rows, rows.dropout())
        loss, accuracy = listwise_loss(scores_RxT.reshape(-1)[batch["places"]])
        return loss, {"loss": loss, "accuracy": accuracy}
