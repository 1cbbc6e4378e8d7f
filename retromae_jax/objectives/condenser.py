"""Condenser: a head predicts masked tokens from early states and the last [CLS], which so learns to carry the text.

Gao and Callan, 2021, "Condenser: a Pre-training Architecture for Dense Retrieval", section 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from retromae_jax import flops, masking
from retromae_jax.errors import InputError
from retromae_jax.models.bert import Bert, BertConfig, MaskedLanguageModelHead
from retromae_jax.models.condenser import CondenserHead
from retromae_jax.objectives.masked_lm import MaskedLM, MaskedTexts
from retromae_jax.objectives.prediction import Encoded, Prediction, encode, labelled, prediction_loss
from retromae_jax.random_bits import Dropout


class Model(nnx.Module):
    """Encoder, masked-language-model head and Condenser head."""

    def __init__(self, config: BertConfig, head_layers: int, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        self.bert = Bert(config, dtype, rngs, remat)
        self.head = MaskedLanguageModelHead(config, dtype, rngs)
        self.condenser_head = CondenserHead(config, head_layers, dtype, rngs)


class Condenser(MaskedLM):
    """The objective.

    Args:
        config, vocabulary, dtype, remat, encoder_mask_probability: as for `MaskedLM`.
        head_layers: transformer layers of the head.
        skip_from: the encoder layer whose states the head gets, beside the last [CLS]; 0 is the embedding block.
        late_masked_lm: whether the last layer predicts the masked tokens too.
    """

    SETTINGS = (*MaskedLM.SETTINGS, "head_layers", "skip_from", "late_masked_lm")

    def __init__(
        self,
        config: BertConfig,
        vocabulary: masking.Vocabulary,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        *,
        encoder_mask_probability: float = 0.15,
        head_layers: int = 2,
        skip_from: int = 6,
        late_masked_lm: bool = True,
    ):
        super().__init__(config, vocabulary, dtype, remat, encoder_mask_probability=encoder_mask_probability)
        if not 0 <= skip_from < config.num_hidden_layers:
            raise InputError(
                f"skip_from {skip_from} is no layer before the last of {config.num_hidden_layers}; "
                f"take {config.num_hidden_layers // 2}"
            )
        if head_layers < 1:
            raise InputError(f"head_layers {head_layers} is less than 1")
        self.head_layers, self.skip_from, self.late_masked_lm = head_layers, skip_from, late_masked_lm

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.head_layers, self.dtype, self.remat, rngs)

    def forward_flops(self, tokens_N: np.ndarray) -> float:
        masked_N = self.masked_tokens(tokens_N)
        full = (self.head_layers - 1) * flops.layer_flops(self.config, tokens_N, tokens_N)
        last = flops.layer_flops(self.config, masked_N, tokens_N, tokens_N)
        late = flops.head_flops(self.config, masked_N) if self.late_masked_lm else 0.0
        # The encoder's count holds one pass of the masked tokens through the vocabulary already.
        return super().forward_flops(tokens_N) + full + last + late

    def losses(
        self, model: Model, inputs: MaskedTexts, limit: int, whole: dict[str, jax.Array], dropout: Dropout | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the head's and, with `late_masked_lm`, the last layer's loss; arguments as for `MaskedLM`."""
        encoded = encode(model.bert, inputs.corrupted, inputs.labels_RxL, limit, dropout)
        loss, metrics = self.condense(model, inputs, encoded, limit, whole, dropout)
        return loss, {"loss": loss, **metrics}

    def condense(
        self,
        model: Model,
        inputs: MaskedTexts,
        encoded: Encoded,
        limit: int,
        whole: dict[str, jax.Array],
        dropout: Dropout | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of encoded texts."""
        at_RxK = labelled(inputs.labels_RxL, limit)
        predicted_RxKxD = model.condenser_head(
            encoded.sentence_RxTxD, encoded.states[self.skip_from], inputs.corrupted, dropout, at_RxK
        )
        predictions = {"head": Prediction(predicted_RxKxD, encoded.labels_RxK, whole.get("encoder"))}
        if self.late_masked_lm:
            predictions["encoder"] = Prediction(encoded.masked_RxKxD, encoded.labels_RxK, whole.get("encoder"))
        return prediction_loss(model.bert, model.head, predictions)
