"""RetroMAE: masked auto-encoding for retrieval-oriented language models.

Xiao et al., 2022. The encoder sees the text with 30 % of its tokens masked and predicts them; its [CLS] state is
the sentence embedding. A one-layer decoder rebuilds every token of the text from the sentence embedding and, for
each token, from half of the text. The loss is the sum of both cross-entropies.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from retromae_jax import flops, masking
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.decoder import EnhancedDecoder
from retromae_jax.objectives import masked_lm
from retromae_jax.objectives.masked_lm import MaskedLM
from retromae_jax.objectives.prediction import IGNORED, Encoded, Prediction, encode, prediction_loss
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows


class Inputs(NamedTuple):
    """Texts as encoder and decoder get them.

    Attributes:
        corrupted: the texts with the encoder's masks.
        encoder_labels_RxL: int32, the token to predict, or -100.
        texts: the clean texts.
        decoder_visible_RxLxL: bool, row i may look at column j.
        decoder_labels_RxL: int32, the token to predict, or -100.
    """

    corrupted: Rows
    encoder_labels_RxL: jax.Array
    texts: Rows
    decoder_visible_RxLxL: jax.Array
    decoder_labels_RxL: jax.Array


class Model(masked_lm.Model):
    """Encoder, masked-language-model head and enhanced decoder."""

    def __init__(self, config: BertConfig, decoder_query: str, computation: Computation, rngs: nnx.Rngs):
        super().__init__(config, computation, rngs)
        self.decoder = EnhancedDecoder(config, decoder_query, computation, rngs)


@dataclasses.dataclass(eq=False, kw_only=True)
class RetroMAE(MaskedLM):
    """The objective.

    Attributes:
        encoder_mask_probability: share of tokens masked for the encoder.
        decoder_mask_probability: share of tokens hidden from each decoder row.
        decoder_query: see `EnhancedDecoder`.
    """

    encoder_mask_probability: float = 0.3
    decoder_mask_probability: float = 0.5
    decoder_query: str = "position"

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.decoder_query, self.computation, rngs)

    def evaluate(self, model: Model, rows: Rows) -> dict[str, jax.Array]:
        """Metrics of held-out texts without dropout, and the reconstruction gain.

        The gain is the decoder's loss with another text's sentence embedding less its loss with the text's own,
        in nats per token: what the embedding tells the decoder. While it grows, pretraining is worth its cost.
        """
        inputs, limit = self.mask(rows), self.limit(rows)
        _, metrics = self.losses(model, inputs, limit, {}, None)
        _, other = self.losses(model, inputs, limit, {}, None, swap_sentences=True)
        return {**metrics, "reconstruction_gain": other["decoder_loss"] - metrics["decoder_loss"]}

    def counts(self, rows: Rows) -> dict[str, jax.Array]:
        return {**super().counts(rows), "decoder": jnp.sum(rows.inner_RxL)}

    def mask(self, rows: Rows) -> Inputs:
        """Makes encoder and decoder inputs from clean texts."""
        corrupted, encoder_labels_RxL = self.mask_encoder(rows)
        return Inputs(
            corrupted=corrupted,
            encoder_labels_RxL=encoder_labels_RxL,
            texts=rows,
            decoder_visible_RxLxL=masking.decoder_visibility(rows, self.vocabulary, self.decoder_mask_probability),
            decoder_labels_RxL=jnp.where(rows.inner_RxL, rows.token_ids_RxL, IGNORED),
        )

    def forward_flops(self, tokens_N: np.ndarray) -> float:
        return super().forward_flops(tokens_N) + flops.layer_flops(self.config, tokens_N, tokens_N)

    def predictions(self, tokens_N: np.ndarray) -> np.ndarray:
        # The decoder predicts all but [CLS] and [SEP].
        return super().predictions(tokens_N) + np.maximum(tokens_N - 2, 0)

    def losses(
        self,
        model: Model,
        inputs: Inputs,
        limit: int,
        whole: dict[str, jax.Array],
        dropout: Dropout | None,
        swap_sentences: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of encoder and decoder loss, each the mean over its labels, and metrics.

        Arguments as for `MaskedLM.losses`; with `swap_sentences` the decoder gets another text's sentence embedding.
        """
        encoded = encode(model.bert, inputs.corrupted, inputs.encoder_labels_RxL, limit, dropout)
        loss, metrics = reconstruct(model, inputs, encoded, whole, dropout, swap_sentences)
        return loss, {"loss": loss, **metrics}


def reconstruct(
    model: Model,
    inputs: Inputs,
    encoded: Encoded,
    whole: dict[str, jax.Array],
    dropout: Dropout | None,
    swap_sentences: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Encoder and decoder loss of encoded texts."""
    sentence_RxTxD = encoded.sentence_RxTxD
    if swap_sentences:
        sentence_RxTxD = _of_text_before(sentence_RxTxD, inputs.texts)
    decoded_RxLxD = model.decoder(
        sentence_RxTxD, inputs.texts, inputs.decoder_visible_RxLxL, model.bert.embeddings, dropout
    )
    predictions = {
        "encoder": Prediction(encoded.masked_RxKxD, encoded.labels_RxK, whole.get("encoder")),
        "decoder": Prediction(decoded_RxLxD, inputs.decoder_labels_RxL, whole.get("decoder")),
    }
    return prediction_loss(model.bert, model.head, predictions)


def _of_text_before(sentence_RxTxD: jax.Array, rows: Rows) -> jax.Array:
    """Gives each text the sentence embedding of the one before it in the batch, and the first that of the last."""
    is_text_N = rows.is_text_RxT.reshape(-1)
    number_N = jnp.where(is_text_N, jnp.arange(is_text_N.size), -1)
    before_N = jnp.pad(jax.lax.cummax(number_N)[:-1], (1, 0), constant_values=-1)
    source_N = jnp.where(before_N < 0, jnp.max(number_N), before_N)
    return sentence_RxTxD.reshape(is_text_N.size, -1)[source_N].reshape(sentence_RxTxD.shape)
