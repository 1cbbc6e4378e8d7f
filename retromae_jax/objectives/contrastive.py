"""Contrastive fine-tuning of a bi-encoder: each query against the passages of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from retromae_jax import flops, random_bits
from retromae_jax.models.bert import Bert, BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings, pool
from retromae_jax.rows import Rows


class Model(nnx.Module):
    """The encoder, shared by queries and passages."""

    def __init__(self, config: BertConfig, computation: Computation, rngs: nnx.Rngs):
        self.bert = Bert(config, computation, rngs)


def contrastive_loss(
    queries_QxD: jax.Array, passages_PxD: jax.Array, positives_Q: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of each query's positive among all passages, by inner product.

    Args:
        queries_QxD: query embeddings, float32.
        passages_PxD: passage embeddings, float32.
        positives_Q: int, index of each query's positive passage.
        temperature: scores are divided by it.

    Returns:
        The mean loss in nats, and the share of queries whose positive has the highest score.
    """
    scores_QxP = jnp.matmul(queries_QxD, passages_PxD.T, precision="highest") / temperature
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores_QxP, positives_Q))
    return loss, jnp.mean(jnp.argmax(scores_QxP, axis=1) == positives_Q)


class Contrastive:
    """The objective, defined on the global batch; runs on one device's share of it.

    Args:
        config: sizes of the encoder.
        settings: pooling and normalization.
        temperature: scores are divided by it.
        computation: how the encoder is computed.
    """

    def __init__(
        self,
        config: BertConfig,
        settings: EncoderSettings,
        temperature: float,
        computation: Computation,
    ):
        self.config, self.settings = config, settings
        self.temperature, self.computation = temperature, computation

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.computation, rngs)

    def flops(self, tokens_N: np.ndarray) -> float:
        """Model FLOPs of a training step on queries and passages of so many tokens; see `retromae_jax.flops`."""
        layers = self.config.num_hidden_layers
        return flops.TRAINING * layers * flops.layer_flops(self.config, tokens_N, tokens_N)

    def loss(self, model: Model, batch: dict, seed: int, axis: str) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of this device's queries against the passages of all devices on the mapped axis.

        Args:
            model: from `model`.
            batch: `query_ids` int32 [Q, Lq], `query_lengths` [Q], `passage_ids` int32 [Q * G, L],
                `passage_lengths` [Q * G], each query's positive first in its group of G; `samples` uint32 [Q],
                each query's number in the order of the whole run.
            seed: the run's seed.
            axis: the mapped axis of devices.

        Returns:
            The mean over this device's queries, and metrics; the batch's are their means over devices.
        """
        queries, passages = batch["query_lengths"].size, batch["passage_lengths"].size
        group = passages // queries
        passage_samples = jnp.repeat(batch["samples"], group) * group + jnp.arange(passages, dtype=jnp.uint32) % group

        def embed(kind: str, samples_B: jax.Array) -> jax.Array:
            texts = {"token_ids": batch[f"{kind}_ids"], "lengths": batch[f"{kind}_lengths"], "samples": samples_B}
            rows = Rows.of(texts, seed)
            rows = rows._replace(seeds_RxT=random_bits.stream(rows.seeds_RxT, kind))
            hidden_BxLxD = model.bert(rows, rows.dropout())
            return pool(hidden_BxLxD, rows.is_token_RxL, self.settings.pooling, self.settings.normalize)

        queries_QxD, passages_PxD = embed("query", batch["samples"]), embed("passage", passage_samples)
        gathered_PxD = jax.lax.all_gather(passages_PxD, axis, tiled=True)
        positives_Q = (jax.lax.axis_index(axis) * queries + jnp.arange(queries)) * group
        loss, accuracy = contrastive_loss(queries_QxD, gathered_PxD, positives_Q, self.temperature)
        return loss, {"loss": loss, "accuracy": accuracy}
