"""RetroMAE: masked auto-encoding for retrieval-oriented language models.

Xiao et al., 2022. The encoder sees the text with 30 % of its tokens masked and predicts them; its [CLS] state is
the sentence embedding. A one-layer decoder rebuilds every token of the text from the sentence embedding and, for
each token, from half of the text. The loss is the sum of both cross-entropies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from retromae_jax import flops, masking, random_bits
from retromae_jax.cross_entropy import linear_cross_entropy
from retromae_jax.models.bert import Bert, BertConfig, MaskedLanguageModelHead
from retromae_jax.models.decoder import EnhancedDecoder

IGNORED = -100


class Inputs(NamedTuple):
    """A batch with its masks.

    Attributes:
        encoder_token_ids_BxL: int32, the corrupted text.
        visible_BxL: bool, True where there is a token.
        encoder_labels_BxL: int32, the token to predict, or -100.
        decoder_token_ids_BxL: int32, the clean text.
        decoder_visible_BxLxL: bool, row i may look at column j.
        decoder_labels_BxL: int32, the token to predict, or -100.
    """

    encoder_token_ids_BxL: jax.Array
    visible_BxL: jax.Array
    encoder_labels_BxL: jax.Array
    decoder_token_ids_BxL: jax.Array
    decoder_visible_BxLxL: jax.Array
    decoder_labels_BxL: jax.Array


class Model(nnx.Module):
    """Encoder, masked-language-model head and enhanced decoder."""

    def __init__(self, config: BertConfig, decoder_query: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.bert = Bert(config, dtype, rngs)
        self.head = MaskedLanguageModelHead(config, dtype, rngs)
        self.decoder = EnhancedDecoder(config, decoder_query, dtype, rngs)


class RetroMAE:
    """The objective.

    Args:
        config: sizes of the encoder.
        vocabulary: the tokenizer's, for masking.
        encoder_mask_probability: share of tokens masked for the encoder.
        decoder_mask_probability: share of tokens hidden from each decoder row.
        decoder_query: see `EnhancedDecoder`.
        dtype: of activations.
    """

    def __init__(
        self,
        config: BertConfig,
        vocabulary: masking.Vocabulary,
        encoder_mask_probability: float = 0.3,
        decoder_mask_probability: float = 0.5,
        decoder_query: str = "position",
        dtype: jnp.dtype = jnp.float32,
    ):
        self.config = config
        self.vocabulary = vocabulary
        self.encoder_mask_probability = encoder_mask_probability
        self.decoder_mask_probability = decoder_mask_probability
        self.decoder_query = decoder_query
        self.dtype = dtype

    @classmethod
    def from_config(cls, config: Any, bert: BertConfig, vocabulary: masking.Vocabulary, dtype: jnp.dtype) -> "RetroMAE":
        """The objective with the settings that a recipe's config names."""
        return cls(
            bert,
            vocabulary,
            config.encoder_mask_probability,
            config.decoder_mask_probability,
            config.decoder_query,
            dtype,
        )

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.decoder_query, self.dtype, rngs)

    def loss(self, model: Model, batch: dict, seed: int) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The training loss of a batch.

        Args:
            model: from `model`, with the parameters to train.
            batch: `token_ids` int32 [B, L], `lengths` int32 [B], `samples` uint32 [B] (each text's number in the
                order of the whole run, from which its random numbers follow).
            seed: the run's seed.

        Returns:
            The loss, and metrics: losses in nats per token and accuracies.
        """
        seeds_B = random_bits.sample_seeds(seed, batch["samples"])
        inputs = self.mask(batch["token_ids"], batch["lengths"], seeds_B)
        return losses(model, inputs, self._masked_limit(batch["token_ids"].shape[1]), random_bits.Dropout(seeds_B))

    def evaluate(self, model: Model, batch: dict, seed: int) -> dict[str, jax.Array]:
        """Metrics of held-out texts without dropout, and the reconstruction gain.

        The gain is the decoder's loss with another text's sentence embedding less its loss with the text's own,
        in nats per token: what the embedding tells the decoder. While it grows, pretraining is worth its cost.
        Arguments as for `loss`; at least two texts.
        """
        seeds_B = random_bits.sample_seeds(seed, batch["samples"])
        inputs = self.mask(batch["token_ids"], batch["lengths"], seeds_B)
        limit = self._masked_limit(batch["token_ids"].shape[1])
        _, metrics = losses(model, inputs, limit)
        _, other = losses(model, inputs, limit, swap_sentences=True)
        return {**metrics, "reconstruction_gain": other["decoder_loss"] - metrics["decoder_loss"]}

    def mask(self, token_ids_BxL: jax.Array, lengths_B: jax.Array, seeds_B: jax.Array) -> Inputs:
        """Makes encoder and decoder inputs from clean texts."""
        position_L = jnp.arange(token_ids_BxL.shape[1], dtype=jnp.int32)
        masked_BxL, corrupted_BxL = masking.encoder_masks(
            token_ids_BxL, lengths_B, seeds_B, self.vocabulary, self.encoder_mask_probability
        )
        inner_BxL = (position_L > 0) & (position_L < lengths_B[:, None] - 1)
        return Inputs(
            encoder_token_ids_BxL=corrupted_BxL,
            visible_BxL=position_L < lengths_B[:, None],
            encoder_labels_BxL=jnp.where(masked_BxL, token_ids_BxL, IGNORED),
            decoder_token_ids_BxL=token_ids_BxL,
            decoder_visible_BxLxL=masking.decoder_masks(
                token_ids_BxL, lengths_B, seeds_B, self.vocabulary, self.decoder_mask_probability
            ),
            decoder_labels_BxL=jnp.where(inner_BxL, token_ids_BxL, IGNORED),
        )

    def flops(self, rows: int, length: int) -> float:
        """Model FLOPs of a training step, forward and backward, on rows that one text of `length` tokens fills.

        Padding counts like tokens: the model is run on it.
        """
        layers = (self.config.num_hidden_layers + 1) * flops.layer_flops(self.config, rows * length, length)
        # The decoder predicts all but [CLS] and [SEP].
        predicted = self._masked_limit(length) + max(0, length - 2)
        return flops.TRAINING * (layers + flops.head_flops(self.config, rows * predicted))

    def _masked_limit(self, length: int) -> int:
        """The most tokens that the encoder's mask can cover in a row of this length."""
        return max(1, round(self.encoder_mask_probability * length))


def losses(
    model: Model,
    inputs: Inputs,
    masked_limit: int,
    dropout: random_bits.Dropout | None = None,
    swap_sentences: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of encoder and decoder loss, each the mean over its labelled tokens in the whole batch, and metrics.

    Args:
        model: the model.
        inputs: the masked batch.
        masked_limit: no text has more encoder labels than this; only so many positions enter the head.
        dropout: None at evaluation.
        swap_sentences: give the decoder the sentence embedding of the text before it in the batch.
    """
    hidden_BxLxD = model.bert(inputs.encoder_token_ids_BxL, inputs.visible_BxL, dropout)
    sentence_BxD = hidden_BxLxD[:, 0]
    if swap_sentences:
        sentence_BxD = jnp.roll(sentence_BxD, 1, axis=0)
    decoded_BxLxD = model.decoder(
        sentence_BxD,
        inputs.decoder_token_ids_BxL,
        inputs.decoder_visible_BxLxL,
        model.bert.embeddings,
        dropout,
    )
    masked_BxKxD, masked_labels_BxK = _labelled(hidden_BxLxD, inputs.encoder_labels_BxL, masked_limit)

    # One pass over the vocabulary serves both losses.
    labels_BxN = jnp.concatenate([masked_labels_BxK, inputs.decoder_labels_BxL], axis=1)
    counted_BxN = labels_BxN != IGNORED
    part_N = np.arange(labels_BxN.shape[1]) < masked_limit
    weights = {}
    for name, of_part_N in (("encoder", part_N), ("decoder", ~part_N)):
        counted = (counted_BxN & of_part_N).astype(jnp.float32)
        weights[name] = counted / jnp.maximum(jnp.sum(counted), 1)
    loss, cross_entropies_BxN, correct_BxN = linear_cross_entropy(
        model.head(jnp.concatenate([masked_BxKxD, decoded_BxLxD], axis=1)),
        jnp.where(counted_BxN, labels_BxN, 0),
        weights["encoder"] + weights["decoder"],
        model.bert.embeddings.word_embeddings.embedding[...],
        model.head.bias[...],
    )
    metrics = {"loss": loss}
    for name, weights_BxN in weights.items():
        metrics[f"{name}_loss"] = jnp.sum(weights_BxN * cross_entropies_BxN)
        metrics[f"{name}_accuracy"] = jnp.sum(weights_BxN * correct_BxN)
    return loss, metrics


def _labelled(hidden_BxLxD: jax.Array, labels_BxL: jax.Array, limit: int) -> tuple[jax.Array, jax.Array]:
    """The labelled positions of each text, moved to the front: states [B, limit, D] and labels [B, limit]."""
    order_BxL = jnp.argsort(labels_BxL == IGNORED, axis=1, stable=True)[:, :limit]
    take = jax.vmap(lambda rows, order: rows[order])
    return take(hidden_BxLxD, order_BxL), take(labels_BxL, order_BxL)
