"""coCondenser: Condenser, and two spans of one document must be nearer to each other than to all other spans.

Gao and Callan, 2022, "Unsupervised Corpus Aware Language Model Pre-training for Dense Passage Retrieval", section 3.2.
"""

import jax
import jax.numpy as jnp
import optax

from retromae_jax.objectives.condenser import Condenser, Model
from retromae_jax.objectives.masked_lm import MaskedTexts
from retromae_jax.objectives.prediction import encode
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows


class CoCondenser(Condenser):
    """The objective; samples 2i and 2i + 1 are two spans of one document. Arguments as for `Condenser`."""

    PAIRS_OF_SPANS = True

    def losses(
        self, model: Model, inputs: MaskedTexts, limit: int, whole: dict[str, jax.Array], dropout: Dropout | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Condenser's losses and the span contrastive loss; arguments as for `MaskedLM.losses`.

        Of a part of a batch, the sum of both has the right gradient, but the metric `contrastive_loss` is the whole
        batch's divided by the number of parts.
        """
        encoded = self.encode(model, inputs, limit, dropout)
        loss, metrics = self.condense(model, inputs, encoded, limit, whole, dropout)
        if whole:
            # The gradient by these sentence embeddings is known already; the loss is given the same gradient.
            linear = jnp.sum(encoded.sentence_RxTxD.astype(jnp.float32) * whole["sentence_gradients"])
            contrastive = whole["contrastive_loss"] + linear - jax.lax.stop_gradient(linear)
        else:
            contrastive = span_contrastive_loss(encoded.sentence_RxTxD, inputs.corrupted)
        return loss + contrastive, {"loss": loss + contrastive, **metrics, "contrastive_loss": contrastive}

    def whole_batch(self, model: Model, parts: Rows) -> dict[str, jax.Array]:
        """Counts, and the contrastive loss's gradient by the sentence embeddings of all parts.

        Gradient caching (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
        Setup"): the embeddings are computed once without and, in `losses`, once with activations, part by part, with
        the same masks and dropout.
        """

        def sentences(rows: Rows) -> jax.Array:
            inputs = self.mask(rows)
            return encode(model.bert, inputs.corrupted, inputs.labels_RxL, 0, rows.dropout()).sentence_RxTxD

        sentence_AxRxTxD = jax.lax.map(sentences, parts)

        def loss(sentence_AxRxTxD: jax.Array) -> jax.Array:
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
            return span_contrastive_loss(sentence_AxRxTxD.reshape(-1, *sentence_AxRxTxD.shape[2:]), rows)

        value, gradients_AxRxTxD = jax.value_and_grad(loss)(sentence_AxRxTxD.astype(jnp.float32))
        count = len(sentence_AxRxTxD)
        return {
            **super().whole_batch(model, parts),
            "contrastive_loss": jnp.full(count, value / count),
            "sentence_gradients": gradients_AxRxTxD,
        }


def span_contrastive_loss(sentence_RxTxD: jax.Array, rows: Rows) -> jax.Array:
    """Mean over spans of the cross-entropy, in nats, of the document's other span among all other spans of the batch.

    Scores are inner products (the paper's equation 5).

    Args:
        sentence_RxTxD: [CLS] states.
        rows: the spans; those of one document have sample numbers 2i and 2i + 1.
    """
    sentence_NxD = sentence_RxTxD.reshape(-1, sentence_RxTxD.shape[-1]).astype(jnp.float32)
    is_span_N, sample_N = rows.is_text_RxT.reshape(-1), rows.samples_RxT.reshape(-1)
    scores_NxN = jnp.matmul(sentence_NxD, sentence_NxD.T, precision="highest")
    may_match_NxN = is_span_N & ~jnp.eye(is_span_N.size, dtype=bool)
    scores_NxN = jnp.where(may_match_NxN, scores_NxN, jnp.finfo(jnp.float32).min)
    other_N = jnp.argmax((sample_N[:, None] ^ 1 == sample_N) & is_span_N, axis=1)
    losses_N = optax.softmax_cross_entropy_with_integer_labels(scores_NxN, other_N)
    return jnp.sum(jnp.where(is_span_N, losses_N, 0)) / jnp.maximum(jnp.sum(is_span_N), 1)
