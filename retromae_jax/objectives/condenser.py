"""Condenser: a head predicts masked tokens from early states and the last [CLS], which so learns to carry the text.

Gao and Callan, 2021, "Condenser: a Pre-training Architecture for Dense Retrieval", section 3.
"""

import dataclasses

import jax
import numpy as np
from flax import nnx

from retromae_jax import flops
from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.condenser import CondenserHead
from retromae_jax.objectives import masked_lm
from retromae_jax.objectives.masked_lm import MaskedLM, MaskedTexts
from retromae_jax.objectives.prediction import Encoded, Prediction, encode, labelled, prediction_loss
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import take


class Model(masked_lm.Model):
    """Encoder, masked-language-model head and Condenser head."""

    def __init__(self, config: BertConfig, head_layers: int, computation: Computation, rngs: nnx.Rngs):
        super().__init__(config, computation, rngs)
        self.condenser_head = CondenserHead(config, head_layers, computation, rngs)


@dataclasses.dataclass(eq=False, kw_only=True)
class Condenser(MaskedLM):
    """The objective.

    Attributes:
        head_layers: transformer layers of the head.
        skip_from: the encoder layer whose states the head gets, beside the last [CLS]; 0 is the embedding block.
        late_masked_lm: whether the last layer predicts the masked tokens too.

    Raises:
        InputError: if there is no such layer, or the head would have none.
    """

    head_layers: int = 2
    skip_from: int = 6
    late_masked_lm: bool = True

    def __post_init__(self):
        layers = self.config.num_hidden_layers
        if not 0 <= self.skip_from < layers:
            raise InputError(f"skip_from {self.skip_from} is no layer before the last of {layers}; take {layers // 2}")
        if self.head_layers < 1:
            raise InputError(f"head_layers {self.head_layers} is less than 1")

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.head_layers, self.computation, rngs)

    def forward_flops(self, tokens_N: np.ndarray) -> float:
        masked_N = self.masked_tokens(tokens_N)
        full = (self.head_layers - 1) * flops.layer_flops(self.config, tokens_N, tokens_N)
        last = flops.layer_flops(self.config, masked_N, tokens_N, tokens_N)
        count = super().forward_flops(tokens_N) + full + last
        if self.late_masked_lm:
            return count
        # Only [CLS] has a last state then.
        return count - flops.layer_flops(self.config, masked_N, tokens_N, np.zeros_like(masked_N))

    def predictions(self, tokens_N: np.ndarray) -> np.ndarray:
        return super().predictions(tokens_N) * (2 if self.late_masked_lm else 1)

    def losses(
        self, model: Model, inputs: MaskedTexts, limit: int, whole: dict[str, jax.Array], dropout: Dropout | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the head's and, with `late_masked_lm`, the last layer's loss; arguments as for `MaskedLM`."""
        encoded = self.encode(model, inputs, limit, dropout)
        loss, metrics = self.condense(model, inputs, encoded, limit, whole, dropout)
        return loss, {"loss": loss, **metrics}

    def encode(self, model: Model, inputs: MaskedTexts, limit: int, dropout: Dropout | None) -> Encoded:
        """Encodes masked texts; the last layer's states at the masked positions only if they are predicted from."""
        return encode(model.bert, inputs.corrupted, inputs.labels_RxL, limit if self.late_masked_lm else 0, dropout)

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
        labels_RxK = take(inputs.labels_RxL, at_RxK)
        predictions = {"head": Prediction(predicted_RxKxD, labels_RxK, whole.get("encoder"))}
        if self.late_masked_lm:
            predictions["encoder"] = Prediction(encoded.masked_RxKxD, labels_RxK, whole.get("encoder"))
        return prediction_loss(model.bert, model.head, predictions)
