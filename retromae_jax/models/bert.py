"""BERT (Devlin et al., 2019) and its kin: the encoder and its masked-language-model head.

Numerically equal to `transformers.BertModel` and `BertForMaskedLM`, and to those of RoBERTa (Liu et al., 2019) and
XLM-RoBERTa (Conneau et al., 2020), which differ in positions and vocabulary only. Array names carry their shape:
B texts, L positions, D hidden width, H heads, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax.errors import InputError
from retromae_jax.random_bits import Dropout

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
# The model types, and the fields for which Hugging Face has other defaults than BERT's.
MODEL_TYPES = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Family and sizes of a BERT, under Hugging Face's names."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    model_type: str = "bert"

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(f"hidden_act {self.hidden_act!r} is unknown; known are {', '.join(ACTIVATIONS)}")

    @property
    def first_position(self) -> int:
        """Position of a text's first token: RoBERTa's come after the padding token's id."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """The longest text in tokens: how many positions there are for them."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_huggingface(cls, config: Mapping[str, object], origin: str) -> "BertConfig":
        """Reads the fields from a Hugging Face config.json's content; what it leaves out is Hugging Face's default.

        Raises:
            InputError: if the config at `origin` is of no known model type, or has no learned absolute positions.
        """
        model_type = config.get("model_type", "bert")
        if model_type not in MODEL_TYPES:
            raise InputError(f"{origin}: model_type is {model_type!r}; known are {', '.join(map(repr, MODEL_TYPES))}")
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise InputError(f"{origin}: position_embedding_type {positions!r}; only 'absolute' can be read")
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: config[name] for name in names if config.get(name) is not None}
        return cls(**(MODEL_TYPES[model_type] | given))


class Embeddings(nnx.Module):
    """The embedding block: word + position + token type, LayerNorm, dropout."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        def embedding(size: int) -> nnx.Embed:
            init = nnx.initializers.normal(config.initializer_range)
            return nnx.Embed(size, config.hidden_size, embedding_init=init, rngs=rngs)

        self.word_embeddings = embedding(config.vocab_size)
        self.position_embeddings = embedding(config.max_position_embeddings)
        self.token_type_embeddings = embedding(config.type_vocab_size)
        self.layer_norm = layer_norm(config, dtype, rngs)
        self.first_position = config.first_position
        self.dropout_rate = config.hidden_dropout_prob
        self.dtype = dtype

    def words(self, token_ids_BxL: jax.Array) -> jax.Array:
        """Word embeddings, [B, L, D]."""
        return self.word_embeddings.embedding[token_ids_BxL].astype(self.dtype)

    def positions(self, length: int) -> jax.Array:
        """Position embeddings of a text's first `length` tokens, [L, D]."""
        return self.position_embeddings.embedding[self.first_position : self.first_position + length].astype(self.dtype)

    def __call__(self, inputs_BxLxD: jax.Array, dropout: Dropout | None) -> jax.Array:
        """Embeds inputs that stand where word embeddings stand, [B, L, D] -> [B, L, D]."""
        x_BxLxD = inputs_BxLxD + self.positions(inputs_BxLxD.shape[1])
        x_BxLxD = x_BxLxD + self.token_type_embeddings.embedding[0].astype(self.dtype)
        return drop(self.layer_norm(x_BxLxD), self.dropout_rate, dropout)


class Attention(nnx.Module):
    """Multi-head attention, then projection, dropout, residual from the query stream and LayerNorm."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.hidden_size
        self.query = linear(size, size, config, dtype, rngs)
        self.key = linear(size, size, config, dtype, rngs)
        self.value = linear(size, size, config, dtype, rngs)
        self.output = linear(size, size, config, dtype, rngs)
        self.layer_norm = layer_norm(config, dtype, rngs)
        self.heads = config.num_attention_heads
        self.probabilities_dropout_rate = config.attention_probs_dropout_prob
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(
        self, queries_BxLxD: jax.Array, keys_BxMxD: jax.Array, visible: jax.Array, dropout: Dropout | None
    ) -> jax.Array:
        def split(x):
            return x.reshape(*x.shape[:2], self.heads, -1)

        q_BxLxHxK = split(self.query(queries_BxLxD))
        k_BxMxHxK = split(self.key(keys_BxMxD))
        v_BxMxHxK = split(self.value(keys_BxMxD))
        scores_BxHxLxM = jnp.einsum(
            "BLHK,BMHK->BHLM", q_BxLxHxK, k_BxMxHxK, preferred_element_type=jnp.float32
        ) / jnp.sqrt(jnp.float32(q_BxLxHxK.shape[-1]))
        visible_Bx1xLxM = visible[:, None, None, :] if visible.ndim == 2 else visible[:, None, :, :]
        scores_BxHxLxM = jnp.where(visible_Bx1xLxM, scores_BxHxLxM, jnp.finfo(jnp.float32).min)
        probabilities_BxHxLxM = jax.nn.softmax(scores_BxHxLxM, axis=-1).astype(v_BxMxHxK.dtype)
        probabilities_BxHxLxM = drop(probabilities_BxHxLxM, self.probabilities_dropout_rate, dropout)
        mixed_BxLxHxK = jnp.einsum("BHLM,BMHK->BLHK", probabilities_BxHxLxM, v_BxMxHxK)
        mixed_BxLxD = mixed_BxLxHxK.reshape(queries_BxLxD.shape)
        return self.layer_norm(queries_BxLxD + drop(self.output(mixed_BxLxD), self.dropout_rate, dropout))


class FeedForward(nnx.Module):
    """Two linear layers with the activation between them, dropout, residual and LayerNorm."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.intermediate = linear(config.hidden_size, config.intermediate_size, config, dtype, rngs)
        self.output = linear(config.intermediate_size, config.hidden_size, config, dtype, rngs)
        self.layer_norm = layer_norm(config, dtype, rngs)
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, x_BxLxD: jax.Array, dropout: Dropout | None) -> jax.Array:
        y_BxLxD = self.output(ACTIVATIONS[self.activation](self.intermediate(x_BxLxD)))
        return self.layer_norm(x_BxLxD + drop(y_BxLxD, self.dropout_rate, dropout))


class BertLayer(nnx.Module):
    """One transformer layer; keys and values may come from a stream of their own."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype, rngs)
        self.feed_forward = FeedForward(config, dtype, rngs)

    def __call__(
        self, queries_BxLxD: jax.Array, keys_BxMxD: jax.Array, visible: jax.Array, dropout: Dropout | None
    ) -> jax.Array:
        """Runs attention and feed-forward on the query stream.

        Args:
            queries_BxLxD: [B, L, D].
            keys_BxMxD: [B, M, D], from which keys and values are made; self-attention if the same as the queries.
            visible: bool, [B, M] (columns every row may look at) or [B, L, M] (row i may look at column j).
            dropout: None at evaluation.

        Returns:
            [B, L, D].
        """
        return self.feed_forward(self.attention(queries_BxLxD, keys_BxMxD, visible, dropout), dropout)


class Bert(nnx.Module):
    """The BERT encoder without pooler: token ids to contextual states."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, dtype, rngs)
        self.layers = nnx.List([BertLayer(config, dtype, rngs) for _ in range(config.num_hidden_layers)])

    def hidden_states(
        self, token_ids_BxL: jax.Array, visible: jax.Array, dropout: Dropout | None = None
    ) -> list[jax.Array]:
        """The embedding block's output and every layer's, num_hidden_layers + 1 arrays [B, L, D].

        Args:
            token_ids_BxL: int32 [B, L].
            visible: bool, [B, L] (True where there is a token) or [B, L, L].
            dropout: None at evaluation.
        """
        states = [self.embeddings(self.embeddings.words(token_ids_BxL), dropout)]
        for layer in self.layers:
            states.append(layer(states[-1], states[-1], visible, dropout))
        return states

    def __call__(self, token_ids_BxL: jax.Array, visible: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """The last layer's states, [B, L, D]; arguments as for `hidden_states`."""
        return self.hidden_states(token_ids_BxL, visible, dropout)[-1]


class MaskedLanguageModelHead(nnx.Module):
    """The transform before the vocabulary projection, and its bias; the projection is the word embedding table."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.transform = linear(config.hidden_size, config.hidden_size, config, dtype, rngs)
        self.layer_norm = layer_norm(config, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))
        # RoBERTa's head does not follow the setting.
        self.activation = config.hidden_act if config.model_type == "bert" else "gelu"

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Transforms hidden states, [..., D] -> [..., D]; logits are its product with the table, plus `bias`."""
        return self.layer_norm(ACTIVATIONS[self.activation](self.transform(hidden)))


def linear(inputs: int, outputs: int, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with BERT's initial values, float32 parameters and `dtype` arithmetic."""
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=dtype, rngs=rngs)


def layer_norm(config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with statistics in float32 and output in `dtype`."""
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


def drop(x: jax.Array, rate: float, dropout: Dropout | None) -> jax.Array:
    """Applies dropout if there is any."""
    return x if dropout is None else dropout(x, rate)
