"""Masked language modelling, the baseline: BERT's pretraining without next-sentence prediction.

Devlin et al., 2019, section 3.1, with whole-word masks.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from retromae_jax import flops, masking
from retromae_jax.models.bert import Bert, BertConfig, Computation, MaskedLanguageModelHead
from retromae_jax.objectives.prediction import IGNORED, Prediction, encode, masked_limit, prediction_loss
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows


class Model(nnx.Module):
    """Encoder and masked-language-model head."""

    def __init__(self, config: BertConfig, computation: Computation, rngs: nnx.Rngs):
        self.bert = Bert(config, computation, rngs)
        self.head = MaskedLanguageModelHead(config, rngs)


class MaskedTexts(NamedTuple):
    """Masked texts.

    Attributes:
        corrupted: the texts with masks.
        labels_RxL: int32, the token to predict, or -100.
    """

    corrupted: Rows
    labels_RxL: jax.Array


@dataclasses.dataclass(eq=False)
class MaskedLM:
    """The objective, and what all pretraining objectives have in common.

    Attributes:
        config: sizes of the encoder.
        vocabulary: the tokenizer's, for masking.
        computation: how the model is computed.
        encoder_mask_probability: share of tokens masked for the encoder.
    """

    # Whether the samples 2i and 2i + 1 are two spans of one document, instead of texts of their own.
    PAIRS_OF_SPANS: ClassVar[bool] = False

    config: BertConfig
    vocabulary: masking.Vocabulary
    computation: Computation = dataclasses.field(default_factory=Computation)
    # What follows are keys of a recipe's config.
    _: dataclasses.KW_ONLY
    encoder_mask_probability: float = 0.15

    @classmethod
    def from_config(
        cls, config: Any, bert: BertConfig, vocabulary: masking.Vocabulary, computation: Computation
    ) -> "MaskedLM":
        """The objective with the settings that a recipe's config names."""
        settings = {field.name: config[field.name] for field in dataclasses.fields(cls) if field.kw_only}
        return cls(bert, vocabulary, computation, **settings)

    def model(self, rngs: nnx.Rngs) -> Model:
        """Builds the model with fresh parameters."""
        return Model(self.config, self.computation, rngs)

    def loss(
        self, model: Model, rows: Rows, whole: dict[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The training loss of texts.

        Args:
            model: from `model`, with the parameters to train.
            rows: clean texts; masks and dropout follow from their seeds.
            whole: where the rows are a part of a batch, what the part must know of the whole, from `whole_batch`.

        Returns:
            The loss, and metrics: losses in nats and accuracies. The sums over the parts are the batch's.
        """
        return self.losses(model, self.mask(rows), self.limit(rows), whole or {}, rows.dropout())

    def evaluate(self, model: Model, rows: Rows) -> dict[str, jax.Array]:
        """Metrics of held-out texts, without dropout."""
        return self.losses(model, self.mask(rows), self.limit(rows), {}, None)[1]

    def whole_batch(self, model: Model, parts: Rows) -> dict[str, jax.Array]:
        """What the parts of a batch must know of the whole: how many labels the means are over.

        Args:
            model: from `model`.
            parts: the batch's rows with a leading axis of A parts.

        Returns:
            Arrays with a leading axis of A, one element for each part.
        """
        counts_A = jax.lax.map(self.counts, parts)
        return jax.tree.map(lambda count_A: jnp.broadcast_to(jnp.sum(count_A), count_A.shape), counts_A)

    def counts(self, rows: Rows) -> dict[str, jax.Array]:
        """Number of labels for each part of the model that predicts tokens."""
        return {"encoder": jnp.sum(self.mask_encoder(rows).labels_RxL != IGNORED)}

    def mask(self, rows: Rows) -> Any:
        """Makes the model's inputs from clean texts."""
        return self.mask_encoder(rows)

    def mask_encoder(self, rows: Rows) -> MaskedTexts:
        """Makes the encoder's input from clean texts."""
        masked_RxL, corrupted_RxL = masking.encoder_masks(rows, self.vocabulary, self.encoder_mask_probability)
        labels_RxL = jnp.where(masked_RxL, rows.token_ids_RxL, IGNORED)
        return MaskedTexts(rows._replace(token_ids_RxL=corrupted_RxL), labels_RxL)

    def limit(self, rows: Rows) -> int:
        """The most labels that the encoder has in one of the rows."""
        return masked_limit(self.encoder_mask_probability, rows)

    def flops(self, tokens_N: np.ndarray) -> float:
        """Model FLOPs of a training step, forward and backward, on texts of so many tokens; see `retromae_jax.flops`.

        Padding is not counted, nor what nothing depends on: the last layer's states that no loss reads.
        """
        return flops.TRAINING * self.forward_flops(np.asarray(tokens_N))

    def forward_flops(self, tokens_N: np.ndarray) -> float:
        """Model FLOPs of the forward pass."""
        masked_N = self.masked_tokens(tokens_N)
        encoder = flops.encoder_flops(self.config, tokens_N, 1 + masked_N)
        return encoder + flops.head_flops(self.config, self.predictions(np.asarray(tokens_N)))

    def predictions(self, tokens_N: np.ndarray) -> np.ndarray:
        """How many tokens are predicted for texts of so many tokens, by all parts of the model together."""
        return self.masked_tokens(tokens_N)

    def masked_tokens(self, tokens_N: np.ndarray) -> np.ndarray:
        """The encoder's budget of masked tokens for texts of so many tokens."""
        return np.maximum(1, np.round(self.encoder_mask_probability * tokens_N))

    def losses(
        self, model: Model, inputs: MaskedTexts, limit: int, whole: dict[str, jax.Array], dropout: Dropout | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of masked texts and its parts.

        Args:
            model: from `model`.
            inputs: from `mask`.
            limit: no row has more encoder labels than this; only so many positions enter the head.
            whole: as for `loss`.
            dropout: None at evaluation.
        """
        encoded = encode(model.bert, inputs.corrupted, inputs.labels_RxL, limit, dropout)
        prediction = Prediction(encoded.masked_RxKxD, encoded.labels_RxK, whole.get("encoder"))
        loss, metrics = prediction_loss(model.bert, model.head, {"encoder": prediction})
        return loss, {"loss": loss, **metrics}
