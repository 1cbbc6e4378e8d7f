"""DupMAE: RetroMAE whose ordinary tokens learn to carry the text's words too.

Liu et al., 2023, "RetroMAE-2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models". The
highest score that any of the text's tokens gives to a word of the vocabulary, in the masked-language-model head, is
that word's score; a third loss is the cross-entropy of the text's own words under the softmax of these scores.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from retromae_jax import flops
from retromae_jax.models.lexical import highest_logits
from retromae_jax.objectives.prediction import encode
from retromae_jax.objectives.retromae import Inputs, Model, RetroMAE, reconstruct
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows


@dataclasses.dataclass(eq=False, kw_only=True)
class DupMAE(RetroMAE):
    """The objective.

    Attributes:
        decoder_query: `embedded` in the published code.
        bag_of_words_weight: of the third loss in the sum.
    """

    decoder_query: str = "embedded"
    bag_of_words_weight: float = 0.1

    def counts(self, rows: Rows) -> dict[str, jax.Array]:
        return {**super().counts(rows), "texts": jnp.sum(rows.is_text_RxT)}

    def forward_flops(self, tokens_N: np.ndarray) -> float:
        # All of the last layer's tokens but [CLS] score the vocabulary.
        unread_N = tokens_N - 1 - self.masked_tokens(tokens_N)
        last = flops.layer_flops(self.config, unread_N, tokens_N, np.zeros_like(tokens_N))
        return super().forward_flops(tokens_N) + last + flops.head_flops(self.config, tokens_N - 1)

    def losses(
        self,
        model: Model,
        inputs: Inputs,
        limit: int,
        whole: dict[str, jax.Array],
        dropout: Dropout | None,
        swap_sentences: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RetroMAE's losses and the weighted bag-of-words loss; arguments as for `RetroMAE.losses`."""
        encoded = encode(model.bert, inputs.corrupted, inputs.encoder_labels_RxL, limit, dropout, whole_last=True)
        reconstruction, metrics = reconstruct(model, inputs, encoded, whole, dropout, swap_sentences)
        bag_of_words = bag_of_words_loss(model, encoded.states[-1], inputs.texts, whole.get("texts"))
        loss = reconstruction + self.bag_of_words_weight * bag_of_words
        return loss, {"loss": loss, **metrics, "bow_loss": bag_of_words}


def bag_of_words_loss(model: Model, states_RxLxD: jax.Array, texts: Rows, count: jax.Array | None = None) -> jax.Array:
    """The mean over texts of -sum over words w of b_w log softmax(s)_w, in nats.

    s_w is the highest logit of word w among the text's tokens but [CLS]; b_w is 1/n for each distinct word of a text
    of n tokens, [CLS] and [SEP] not counted, and 0 for other words (the paper's equation 6 and the published code).

    Args:
        model: the model.
        states_RxLxD: the encoder's last states.
        texts: the clean texts.
        count: texts over which the mean is taken; None for those in the rows.
    """
    scores_RxTxV = highest_logits(model.bert, model.head, states_RxLxD, texts)
    normalizers_RxT = jax.nn.logsumexp(scores_RxTxV, axis=-1)
    # Each distinct word is counted where it stands first.
    inner_RxL = texts.inner_RxL
    earlier_LxL = jnp.tri(inner_RxL.shape[1], k=-1, dtype=bool)
    same_RxLxL = (texts.token_ids_RxL[:, :, None] == texts.token_ids_RxL[:, None, :]) & (
        texts.text_RxL[:, :, None] == texts.text_RxL[:, None, :]
    )
    again_RxL = jnp.any(same_RxLxL & earlier_LxL & inner_RxL[:, None, :], axis=2)
    weights_RxL = jnp.where(inner_RxL & ~again_RxL, 1 / jnp.maximum(texts.length_RxL - 2, 1), 0.0)
    own_scores_RxL = jax.vmap(lambda scores, text, word: scores[text, word])(
        scores_RxTxV, texts.text_RxL, texts.token_ids_RxL
    )
    losses_RxL = weights_RxL * (texts.of_text(normalizers_RxT) - own_scores_RxL)
    count = jnp.sum(texts.is_text_RxT) if count is None else count
    return jnp.sum(losses_RxL) / jnp.maximum(count, 1)
