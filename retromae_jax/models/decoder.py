"""RetroMAE's enhanced decoder: one transformer layer that rebuilds the text from its sentence embedding.

Xiao et al., 2022, "RetroMAE: Pre-Training Retrieval-oriented Language Models Via Masked Auto-Encoder", section 3.3.
Where the published code differs from the paper's prose, this follows the code: residual and feed-forward run on
the query stream.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig, BertLayer, Embeddings
from retromae_jax.random_bits import Dropout

DECODER_QUERIES = ("position", "embedded")


class EnhancedDecoder(nnx.Module):
    """The one-layer decoder.

    Args:
        query: `position` adds the position embedding to the raw sentence embedding (RetroMAE); `embedded` passes
            the sentence embedding through the whole embedding block (DupMAE, BGE).
    """

    def __init__(self, config: BertConfig, query: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        if query not in DECODER_QUERIES:
            raise InputError(f"decoder_query {query!r} is unknown; known are {', '.join(DECODER_QUERIES)}")
        self.layer = BertLayer(config, dtype, rngs)
        self.query = query

    def __call__(
        self,
        sentence_BxD: jax.Array,
        token_ids_BxL: jax.Array,
        visible_BxLxL: jax.Array,
        embeddings: Embeddings,
        dropout: Dropout | None,
    ) -> jax.Array:
        """Decodes every position of the text.

        Args:
            sentence_BxD: sentence embeddings.
            token_ids_BxL: the clean text.
            visible_BxLxL: bool; row i may look at column j. The diagonal must be False.
            embeddings: the encoder's embedding block, which the decoder shares.
            dropout: None at evaluation.

        Returns:
            Hidden states [B, L, D], for the masked-language-model head.
        """
        sentence_Bx1xD = sentence_BxD[:, None, :]
        embedded_BxLxD = embeddings(embeddings.words(token_ids_BxL), dropout)
        keys_BxLxD = jnp.concatenate([sentence_Bx1xD, embedded_BxLxD[:, 1:]], axis=1)
        if self.query == "position":
            queries_BxLxD = embeddings.positions(token_ids_BxL.shape[1]) + sentence_Bx1xD
        else:
            queries_BxLxD = embeddings(jnp.broadcast_to(sentence_Bx1xD, embedded_BxLxD.shape), dropout)
        return self.layer(queries_BxLxD, keys_BxLxD, visible_BxLxL, dropout)
