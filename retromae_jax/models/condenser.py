"""The Condenser head: transformer layers over early token states and the last [CLS] state."""

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax.models.bert import BertConfig, BertLayer, Computation, run_layers
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows


class CondenserHead(nnx.Module):
    """The head of Gao and Callan, 2021, equation 6.

    Args:
        config: sizes of the encoder, which the layers share.
        layers: how many.
        computation: how it is computed.
    """

    def __init__(self, config: BertConfig, layers: int, computation: Computation, rngs: nnx.Rngs):
        self.layers = nnx.List([BertLayer(config, computation, rngs) for _ in range(layers)])
        self.remat = computation.remat

    def __call__(
        self,
        sentence_RxTxD: jax.Array,
        early_RxLxD: jax.Array,
        rows: Rows,
        dropout: Dropout | None,
        last_at_RxK: jax.Array,
    ) -> jax.Array:
        """States for the masked-language-model head.

        Args:
            sentence_RxTxD: the encoder's last [CLS] states.
            early_RxLxD: an earlier layer's states.
            rows: the texts.
            dropout: None at evaluation.
            last_at_RxK: int32, the positions at which the states are wanted.

        Returns:
            [R, K, D].
        """
        is_first_RxL = rows.is_token_RxL & (rows.position_RxL == 0)
        x_RxLxD = jnp.where(is_first_RxL[:, :, None], rows.of_text(sentence_RxTxD), early_RxLxD)
        return run_layers(self.layers, x_RxLxD, rows.visible(), dropout, last_at_RxK, self.remat)[-1]
