"""Contrastive fine-tuning of a bi-encoder: each query against the passages of the whole batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from retromae_jax import flops
from retromae_jax.models import lexical
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings, truncate
from retromae_jax.models.text_encoder import KINDS, TextEncoder, UntiedEncoders, embedding_width
from retromae_jax.rows import Rows

# The most scores that are in memory at once: those of a large batch are computed a few queries at a time.
MOST_SCORES = 2**22


class Relevance(NamedTuple):
    """What tells which passages of a batch are relevant to which of its queries.

    Attributes:
        relevant_QxN: int32, numbers of all passages that are relevant to each query; -1 fills up.
        passages_P: int32, numbers of the batch's passages; one number may be there several times.
    """

    relevant_QxN: jax.Array
    passages_P: jax.Array


class Embedded(NamedTuple):
    """What the loss of Q queries needs: their G passages each, and all P passages of the batch.

    Attributes:
        queries_QxD: query embeddings, float32.
        own_QxGxD: embeddings of each query's own group of passages, its positive first.
        passages_PxD: passage embeddings of the whole batch.
        positives_Q: int, index of each query's positive among the P passages.
        relevance: of the passages, where false negatives are left out; None compares queries with all.
    """

    queries_QxD: jax.Array
    own_QxGxD: jax.Array
    passages_PxD: jax.Array
    positives_Q: jax.Array
    relevance: Relevance | None = None

    def truncated(self, dimension: int, normalize: bool) -> "Embedded":
        """The first dimensions of all embeddings; see `pooling.truncate`."""
        queries, own, passages = (truncate(x, dimension, normalize) for x in self[:3])
        return self._replace(queries_QxD=queries, own_QxGxD=own, passages_PxD=passages)


def contrastive_loss(
    queries_QxD: jax.Array,
    passages_PxD: jax.Array,
    positives_Q: jax.Array,
    temperature: float,
    relevance: Relevance | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of each query's positive among all passages, by inner product.

    Args:
        queries_QxD: query embeddings, float32.
        passages_PxD: passage embeddings, float32.
        positives_Q: int, index of each query's positive passage.
        temperature: scores are divided by it.
        relevance: of the passages; those that `left_out` finds do not enter a query's softmax. None for none.

    Returns:
        The mean loss in nats, and the share of queries whose positive has the highest score.
    """

    is_repeated_P = None if relevance is None else repeated(relevance.passages_P)

    def of_query(query):
        query_D, positive, relevant_N = query
        scores_P = jnp.matmul(query_D, passages_PxD.T, precision="highest") / temperature
        if relevance is not None:
            left_out_P = left_out(relevant_N, relevance.passages_P, is_repeated_P, positive)
            scores_P = jnp.where(left_out_P, jnp.finfo(jnp.float32).min, scores_P)
        loss = optax.softmax_cross_entropy_with_integer_labels(scores_P, positive)
        return loss, jnp.argmax(scores_P) == positive

    queries = (queries_QxD, positives_Q, None if relevance is None else relevance.relevant_QxN)
    of_queries: Callable[[Any], tuple[jax.Array, jax.Array]]
    at_once = max(1, MOST_SCORES // len(passages_PxD))
    if at_once < len(queries_QxD):
        # Their scores are made again in the backward pass.
        of_queries = functools.partial(jax.lax.map, jax.checkpoint(of_query), batch_size=at_once)
    else:
        of_queries = jax.vmap(of_query)
    losses_Q, is_first_Q = of_queries(queries)
    return jnp.mean(losses_Q), jnp.mean(is_first_Q)


def left_out(relevant_N: jax.Array, passages_P: jax.Array, is_repeated_P: jax.Array, positive: jax.Array) -> jax.Array:
    """Passages of a batch that are no negatives of a query, or were counted before, but for its positive, bool [P].

    Args:
        relevant_N: int32, numbers of all passages that are relevant to the query; -1 fills up.
        passages_P: int32, numbers of the batch's passages; one number may be there several times.
        is_repeated_P: from `repeated`.
        positive: index of the query's positive among the P passages.
    """
    is_relevant_P = jnp.any(relevant_N == passages_P[:, None], axis=1)
    return (is_relevant_P | is_repeated_P) & (jnp.arange(passages_P.size) != positive)


def repeated(passages_P: jax.Array) -> jax.Array:
    """Whether a passage of a batch, int32 numbers [P], stands in it before, bool [P]."""
    order_P = jnp.argsort(passages_P, stable=True)
    sorted_P = passages_P[order_P]
    is_repeated_P = jnp.concatenate([jnp.zeros(1, bool), sorted_P[1:] == sorted_P[:-1]])
    return jnp.zeros_like(is_repeated_P).at[order_P].set(is_repeated_P)


def in_chunks(embed: Callable[[dict], jax.Array], rows: dict[str, jax.Array], chunk: int) -> jax.Array:
    """Embeddings [R, T, D] of R rows' texts, computed a chunk of rows at a time, without activations of more in memory.

    This is gradient caching (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup"): embeddings are computed first without keeping activations; when the loss's gradient by them is known, each
    chunk is computed once more and its gradient by the parameters added to the others'. The gradient of a checkpointed
    loop does just that. Dropout is the same both times, because it is a function of the texts' numbers.

    Args:
        embed: from rows to their texts' embeddings.
        rows: arrays with R as first axis.
        chunk: rows at once; 0 for all.
    """
    count = len(rows["token_ids"])
    if not 0 < chunk < count:
        return embed(rows)
    chunks = -(-count // chunk)
    # Of equal sizes; a row that stands twice to fill the last one is dropped again, so it counts once.
    filled_CxS = np.resize(np.arange(count), (chunks, -(-count // chunks)))
    split = {name: x[filled_CxS] for name, x in rows.items()}
    embeddings_CxSxTxD = jax.lax.map(jax.checkpoint(embed, prevent_cse=False), split)
    return embeddings_CxSxTxD.reshape(filled_CxS.size, *embeddings_CxSxTxD.shape[2:])[:count]


@dataclasses.dataclass(eq=False)
class Contrastive:
    """The objective, defined on the global batch; runs on one device's share of it.

    Attributes:
        config: sizes of the encoder.
        settings: how texts become embeddings.
        computation: how the encoder is computed.
        temperature: scores are divided by it.
        mask_false_negatives: keep passages that are relevant to a query, but not its positive of this batch, out of
            its softmax, and count a passage that is in the batch several times once.
        gradient_cache_chunk: rows that a device encodes at once; 0 for all. See `in_chunks`.
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
            config.query_max_length,
            config.query_prompt,
            config.passage_prompt,
            config.titles,
            config.title_separator,
        )
        settings = {field.name: config[field.name] for field in dataclasses.fields(cls) if field.kw_only}
        return cls(bert, encoder, computation, **settings)

    def model(self, rngs: nnx.Rngs) -> TextEncoder | UntiedEncoders:
        """Builds the model with fresh parameters."""
        kind = UntiedEncoders if self.settings.untie_encoder else TextEncoder
        return kind(self.config, self.settings, self.computation, rngs)

    def flops(self, tokens_N: np.ndarray) -> float:
        """Model FLOPs of a training step on queries and passages of so many tokens; see `retromae_jax.flops`.

        With `cls` pooling, and no lexical part, the last layer has one query position, [CLS].
        """
        settings = self.settings
        only_first = settings.pooling == "cls" and not settings.lexical_top_k
        forward = flops.encoder_flops(self.config, tokens_N, np.ones_like(tokens_N) if only_first else tokens_N)
        forward += 2.0 * len(tokens_N) * self.config.hidden_size * settings.projection
        if settings.lexical_top_k:
            forward += flops.head_flops(self.config, tokens_N - 1)
        return flops.TRAINING * forward

    def loss(
        self, model: TextEncoder | UntiedEncoders, batch: dict, seed: int, axis: str
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of this device's queries against the passages of all devices on the mapped axis.

        Args:
            model: from `model`.
            batch: rows of texts as for `Rows.of`; `places` int32 [Q, 1 + G], where in [R * T] the texts of each query
                are: its own, and its group of G passages, the positive first; where false negatives are masked,
                `passages` int32 [Q * G], numbers of the passages, and `relevant` int32 [Q, N] as for `Relevance`; and
                what `losses` needs.
            seed: the run's seed.
            axis: the mapped axis of devices.

        Returns:
            The mean over this device's queries, and metrics; the batch's are their means over devices.
        """

        texts = {name: batch[name] for name in ("token_ids", "lengths", "samples")}

        def embed(encoder: TextEncoder) -> jax.Array:
            """Embeddings of the texts of each query and its group, [Q, 1 + G, E]."""

            def embed_rows(arrays: dict[str, jax.Array]) -> jax.Array:
                rows = Rows.of(arrays, seed)
                return encoder(rows, rows.dropout())

            embeddings_RxTxE = in_chunks(embed_rows, texts, self.gradient_cache_chunk)
            return embeddings_RxTxE.reshape(-1, embedding_width(self.config, self.settings))[batch["places"]]

        if isinstance(model, UntiedEncoders):
            # Queries and passages share rows, so each encoder reads both.
            of_query, of_passage = (embed(getattr(model, kind)) for kind in KINDS)
        else:
            of_query = of_passage = embed(model)
        queries_QxD, own_QxGxD = of_query[:, 0], of_passage[:, 1:]
        queries, group = own_QxGxD.shape[:2]
        passages_PxD = jax.lax.all_gather(own_QxGxD.reshape(queries * group, -1), axis, tiled=True)
        if top_k := self.settings.lexical_top_k:
            # Only now, because what is gathered, or kept of each chunk of texts, is small.
            queries_QxD, own_QxGxD, passages_PxD = (
                lexical.expand(x, top_k, self.config.vocab_size) for x in (queries_QxD, own_QxGxD, passages_PxD)
            )
        positives_Q = (jax.lax.axis_index(axis) * queries + jnp.arange(queries)) * group
        relevance = None
        if self.mask_false_negatives:
            relevance = Relevance(batch["relevant"], jax.lax.all_gather(batch["passages"], axis, tiled=True))
        embedded = Embedded(queries_QxD, own_QxGxD, passages_PxD, positives_Q, relevance)
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
            embedded.relevance,
        )
        return loss, {"loss": loss, "accuracy": accuracy}
