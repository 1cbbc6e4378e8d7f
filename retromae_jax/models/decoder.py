"""RetroMAE's enhanced decoder: one transformer layer that rebuilds the text from its sentence embedding.

Xiao et al., 2022, "RetroMAE: Pre-Training Retrieval-oriented Language Models Via Masked Auto-Encoder", section 3.3.
Where the published code differs from the paper's prose, this follows the code: residual and feed-forward run on
the query stream.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig, BertLayer, Computation, Embeddings
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows

DECODER_QUERIES = ("position", "embedded")


class EnhancedDecoder(nnx.Module):
    """The one-layer decoder.

    Args:
        query: `position` adds the position embedding to the raw sentence embedding (RetroMAE); `embedded` passes
            the sentence embedding through the whole embedding block (DupMAE, BGE).
    """

    def __init__(self, config: BertConfig, query: str, computation: Computation, rngs: nnx.Rngs):
        if query not in DECODER_QUERIES:
            raise InputError(f"decoder_query {query!r} is unknown; known are {', '.join(DECODER_QUERIES)}")
        self.layer = BertLayer(config, computation, rngs)
        self.query = query

    def __call__(
        self,
        sentence_RxTxD: jax.Array,
        rows: Rows,
        visible_RxLxL: jax.Array,
        embeddings: Embeddings,
        dropout: Dropout | None,
    ) -> jax.Array:
        """Decodes every position of the texts.

        Args:
            sentence_RxTxD: sentence embeddings.
            rows: the clean texts.
            visible_RxLxL: bool; row i may look at column j. The diagonal must be False.
            embeddings: the encoder's embedding block, which the decoder shares.
            dropout: None at evaluation.

        Returns:
            Hidden states [R, L, D], for the masked-language-model head.
        """
        sentence_RxLxD = rows.of_text(sentence_RxTxD)
        embedded_RxLxD = embeddings(embeddings.words(rows.token_ids_RxL), rows.position_RxL, dropout)
        keys_RxLxD = jnp.where((rows.position_RxL == 0)[:, :, None], sentence_RxLxD, embedded_RxLxD)
        if self.query == "position":
            queries_RxLxD = embeddings.positions(rows.position_RxL) + sentence_RxLxD
        else:
            queries_RxLxD = embeddings(sentence_RxLxD, rows.position_RxL, dropout)
        return self.layer(queries_RxLxD, keys_RxLxD, visible_RxLxL, dropout)
