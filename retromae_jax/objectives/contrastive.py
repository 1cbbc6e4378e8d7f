"""Contrastive fine-tuning of a bi-encoder: each query against the passages of the whole batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from retromae_jax import flops, random_bits
from retromae_jax.models import lexical
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings, truncate
from retromae_jax.models.text_encoder import TextEncoder, UntiedEncoders
from retromae_jax.rows import Rows


class Embedded(NamedTuple):
    """What the loss of Q queries needs: their G passages each, and all P passages of the batch.

    Attributes:
        queries_QxD: query embeddings, float32.
        own_QxGxD: embeddings of each query's own group of passages, its positive first.
        passages_PxD: passage embeddings of the whole batch.
        positives_Q: int, index of each query's positive among the P passages.
        excluded_QxP: bool, passages that a query is not compared with; None compares it with all.
    """

    queries_QxD: jax.Array
    own_QxGxD: jax.Array
    passages_PxD: jax.Array
    positives_Q: jax.Array
    excluded_QxP: jax.Array | None = None

    def truncated(self, dimension: int, normalize: bool) -> "Embedded":
        """The first dimensions of all embeddings; see `pooling.truncate`."""
        queries, own, passages = (truncate(x, dimension, normalize) for x in self[:3])
        return self._replace(queries_QxD=queries, own_QxGxD=own, passages_PxD=passages)


def contrastive_loss(
    queries_QxD: jax.Array,
    passages_PxD: jax.Array,
    positives_Q: jax.Array,
    temperature: float,
    excluded_QxP: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of each query's positive among all passages, by inner product.

    Args:
        queries_QxD: query embeddings, float32.
        passages_PxD: passage embeddings, float32.
        positives_Q: int, index of each query's positive passage.
        temperature: scores are divided by it.
        excluded_QxP: bool, passages that do not enter a query's softmax; None for none.

    Returns:
        The mean loss in nats, and the share of queries whose positive has the highest score.
    """
    scores_QxP = jnp.matmul(queries_QxD, passages_PxD.T, precision="highest") / temperature
    if excluded_QxP is not None:
        scores_QxP = jnp.where(excluded_QxP, jnp.finfo(jnp.float32).min, scores_QxP)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores_QxP, positives_Q))
    return loss, jnp.mean(jnp.argmax(scores_QxP, axis=1) == positives_Q)


def false_negatives(relevant_QxN: jax.Array, passages_P: jax.Array, positives_Q: jax.Array) -> jax.Array:
    """Passages that are relevant to a query without being its positive of this batch, bool [Q, P].

    Args:
        relevant_QxN: int32, numbers of all passages that are relevant to each query; -1 fills up.
        passages_P: int32, numbers of the batch's passages; one number may be there several times.
        positives_Q: int, index of each query's positive among the P passages.
    """
    is_relevant_QxP = jnp.any(relevant_QxN[:, None, :] == passages_P[:, None], axis=2)
    return is_relevant_QxP & (jnp.arange(passages_P.size) != positives_Q[:, None])


def in_chunks(embed: Callable[[dict], jax.Array], texts: dict[str, jax.Array], chunk: int) -> jax.Array:
    """Embeddings [B, D] of B texts, computed a chunk at a time, without activations of more than one chunk in memory.

    This is gradient caching (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup"): embeddings are computed first without keeping activations; when the loss's gradient by them is known, each
    chunk is computed once more and its gradient by the parameters added to the others'. The gradient of a checkpointed
    loop does just that. Dropout is the same both times, because it is a function of the texts' numbers.

    Args:
        embed: from texts to their embeddings.
        texts: arrays with B as first axis.
        chunk: texts at once; 0 for all.
    """
    count = texts["lengths"].size
    if not 0 < chunk < count:
        return embed(texts)
    chunks = -(-count // chunk)
    # Of equal sizes; a text that stands twice to fill the last one is dropped again, so it counts once.
    filled_CxS = np.resize(np.arange(count), (chunks, -(-count // chunks)))
    split = {name: x[filled_CxS] for name, x in texts.items()}
    embeddings_CxSxD = jax.lax.map(jax.checkpoint(embed, prevent_cse=False), split)
    return embeddings_CxSxD.reshape(filled_CxS.size, -1)[:count]


@dataclasses.dataclass(eq=False)
class Contrastive:
    """The objective, defined on the global batch; runs on one device's share of it.

    Attributes:
        config: sizes of the encoder.
        settings: how texts become embeddings.
        computation: how the encoder is computed.
        temperature: scores are divided by it.
        mask_false_negatives: keep passages that are relevant to a query, but not its positive of this batch, out of
            its softmax.
        gradient_cache_chunk: texts that a device encodes at once; 0 for all. See `in_chunks`.
        matryoshka_dims: the loss is the mean over these first dimensions of the embeddings (Kusupati et al., 2022,
            "Matryoshka Representation Learning", equation 1, with equal weights); empty takes them whole.
    """

    config: BertConfig
    settings: EncoderSettings
    computation: Computation = dataclasses.field(default_factory=Computation)
    # What follows are keys of a recipe's config.
    _: dataclasses.KW_ONLY
    temperature: float = 1.0
    mask_false_negatives: bool = True
    gradient_cache_chunk: int = 0
    matryoshka_dims: tuple[int, ...] = ()

    def __post_init__(self):
        # On the command line, they are text.
        self.matryoshka_dims = tuple(map(int, self.matryoshka_dims))

    @classmethod
    def from_config(cls, config: Any, bert: BertConfig, computation: Computation) -> "Contrastive":
        """The objective with the settings that a recipe's config names."""
        encoder = EncoderSettings(
            config.pooling,
            config.normalize,
            config.passage_max_length,
            config.projection,
            config.lexical_top_k,
            config.untie_encoder,
        )
        settings = {field.name: config[field.name] for field in dataclasses.fields(cls) if field.kw_only}
        return cls(bert, encoder, computation, **settings)

    def model(self, rngs: nnx.Rngs) -> TextEncoder | UntiedEncoders:
        """Builds the model with fresh parameters."""
        kind = UntiedEncoders if self.settings.untie_encoder else TextEncoder
        return kind(self.config, self.settings, self.computation, rngs)

    def flops(self, tokens_N: np.ndarray) -> float:
        """Model FLOPs of a training step on queries and passages of so many tokens; see `retromae_jax.flops`."""
        forward = self.config.num_hidden_layers * flops.layer_flops(self.config, tokens_N, tokens_N)
        forward += 2.0 * len(tokens_N) * self.config.hidden_size * self.settings.projection
        if self.settings.lexical_top_k:
            forward += flops.head_flops(self.config, tokens_N - 1)
        return flops.TRAINING * forward

    def loss(
        self, model: TextEncoder | UntiedEncoders, batch: dict, seed: int, axis: str
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of this device's queries against the passages of all devices on the mapped axis.

        Args:
            model: from `model`.
            batch: `query_ids` int32 [Q, Lq], `query_lengths` [Q], `passage_ids` int32 [Q * G, L],
                `passage_lengths` [Q * G], each query's positive first in its group of G; `samples` uint32 [Q],
                each query's number in the order of the whole run; where false negatives are masked, `passages` int32
                [Q * G], numbers of the passages, and `relevant` int32 [Q, N] as for `false_negatives`; and what
                `losses` needs.
            seed: the run's seed.
            axis: the mapped axis of devices.

        Returns:
            The mean over this device's queries, and metrics; the batch's are their means over devices.
        """
        queries, passages = batch["query_lengths"].size, batch["passage_lengths"].size
        group = passages // queries
        passage_samples = jnp.repeat(batch["samples"], group) * group + jnp.arange(passages, dtype=jnp.uint32) % group

        def embed(kind: str, samples_B: jax.Array) -> jax.Array:
            encoder = getattr(model, kind) if self.settings.untie_encoder else model

            def embed_at_once(texts: dict[str, jax.Array]) -> jax.Array:
                rows = Rows.of(texts, seed)
                rows = rows._replace(seeds_RxT=random_bits.stream(rows.seeds_RxT, kind))
                return encoder(rows, rows.dropout())

            texts = {"token_ids": batch[f"{kind}_ids"], "lengths": batch[f"{kind}_lengths"], "samples": samples_B}
            return in_chunks(embed_at_once, texts, self.gradient_cache_chunk)

        queries_QxD, own_SxD = embed("query", batch["samples"]), embed("passage", passage_samples)
        passages_PxD = jax.lax.all_gather(own_SxD, axis, tiled=True)
        if top_k := self.settings.lexical_top_k:
            # Only now, because what is gathered, or kept of each chunk of texts, is small.
            queries_QxD, own_SxD, passages_PxD = (
                lexical.expand(x, top_k, self.config.vocab_size) for x in (queries_QxD, own_SxD, passages_PxD)
            )
        positives_Q = (jax.lax.axis_index(axis) * queries + jnp.arange(queries)) * group
        excluded_QxP = None
        if self.mask_false_negatives:
            passages_P = jax.lax.all_gather(batch["passages"], axis, tiled=True)
            excluded_QxP = false_negatives(batch["relevant"], passages_P, positives_Q)
        own_QxGxD = own_SxD.reshape(queries, group, -1)
        embedded = Embedded(queries_QxD, own_QxGxD, passages_PxD, positives_Q, excluded_QxP)
        return self.nested_losses(embedded, batch)

    def nested_losses(self, embedded: Embedded, batch: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean of `losses`, and of each metric, over `matryoshka_dims`."""
        if not self.matryoshka_dims:
            return self.losses(embedded, batch)
        results = [
            self.losses(embedded.truncated(dimension, self.settings.normalize), batch)
            for dimension in self.matryoshka_dims
        ]
        return jax.tree.map(lambda *values: sum(values) / len(values), *results)

    def losses(self, embedded: Embedded, batch: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of embedded texts, the mean over the queries, and metrics; `batch` as for `loss`."""
        loss, accuracy = contrastive_loss(
            embedded.queries_QxD,
            embedded.passages_PxD,
            embedded.positives_Q,
            self.temperature,
            embedded.excluded_QxP,
        )
        return loss, {"loss": loss, "accuracy": accuracy}
