"""BERT (Devlin et al., 2019) and its kin: the encoder and its masked-language-model head.

Numerically equal to `transformers.BertModel` and `BertForMaskedLM`, and to those of RoBERTa (Liu et al., 2019) and
XLM-RoBERTa (Conneau et al., 2020), which differ in positions and vocabulary only. Array names carry their shape:
B texts, L positions, D hidden width, H heads, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
from flax import nnx

from retromae_jax import parallel
from retromae_jax.attention import AUTOMATIC, attention, choose
from retromae_jax.errors import InputError, shown
from retromae_jax.linear import Linear
from retromae_jax.random_bits import Dropout
from retromae_jax.rows import Rows, take

ACTIVATIONS = {
    # With erf as in PyTorch: JAX's own takes erfc, which costs several times as much on a CPU.
    "gelu": lambda x: x * (jax.lax.erf(x * math.sqrt(0.5)) + 1) / 2,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
# The model types, and the fields for which Hugging Face has other defaults than BERT's.
MODEL_TYPES: dict[str, dict[str, int]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


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
        for name in SIZES:
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is less than 1")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(f"hidden_act {shown(self.hidden_act)} is unknown; known are {', '.join(ACTIVATIONS)}")

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
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            raise InputError(
                f"{origin}: model_type is {shown(model_type)}; known are {', '.join(map(repr, MODEL_TYPES))}"
            )
        positions = config.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise InputError(f"{origin}: position_embedding_type {shown(positions)}; only 'absolute' can be read")
        given: dict[str, Any] = {**MODEL_TYPES[model_type]}
        for name, kind in get_type_hints(cls).items():
            value = config.get(name)
            if value is None:
                continue
            # JSON writes 0.0 as 0, too.
            is_fit = isinstance(value, (int, float) if kind is float else kind)
            if isinstance(value, bool) or not is_fit:
                raise InputError(f"{origin}: {name} is {shown(value)}, not of type {kind.__name__}")
            given[name] = value
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{origin}: {error}") from None


class Computation(NamedTuple):
    """How a model is computed; what it computes is the same but for rounding.

    Attributes:
        dtype: of activations.
        remat: compute activations of the encoder's, and a Condenser head's, layers again in the backward pass instead
            of keeping them.
        attention: one of `retromae_jax.attention.IMPLEMENTATIONS`.
    """

    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention: str = "plain"

    @classmethod
    def on(
        cls,
        platform: str,
        config: BertConfig,
        dtype: str = "float32",
        remat: bool = False,
        attention: str = AUTOMATIC,
    ) -> "Computation":
        """How a model is computed on a kind of device.

        Args:
            platform: of the devices: cpu, gpu or tpu.
            config: sizes of the model.
            dtype: float32 or bfloat16.
            remat: as above.
            attention: as above, or `auto`, which takes what suits the platform.

        Raises:
            InputError: if the implementation of attention cannot compute the model.
        """
        chosen = choose(
            attention,
            platform,
            config.num_attention_heads,
            config.hidden_size,
            config.attention_probs_dropout_prob,
            jnp.dtype(dtype),
        )
        return cls(jnp.dtype(dtype), remat, chosen)


class Embeddings(nnx.Module):
    """The embedding block: word + position + token type, LayerNorm, dropout."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        def embedding(size: int) -> nnx.Embed:
            init = nnx.initializers.normal(config.initializer_range)
            return nnx.Embed(size, config.hidden_size, embedding_init=init, rngs=rngs)

        self.word_embeddings = embedding(config.vocab_size)
        self.position_embeddings = embedding(config.max_position_embeddings)
        self.token_type_embeddings = embedding(config.type_vocab_size)
        self.layer_norm = layer_norm(config, rngs)
        self.first_position = config.first_position
        self.dropout_rate = config.hidden_dropout_prob
        self.dtype = dtype

    def words(self, token_ids_BxL: jax.Array) -> jax.Array:
        """Word embeddings, [B, L, D]."""
        return self._lookup(self.word_embeddings, token_ids_BxL).astype(self.dtype)

    def positions(self, positions_BxL: jax.Array) -> jax.Array:
        """Embeddings of positions in a text, the first of which is 0, [B, L, D]."""
        return self._positions(positions_BxL).astype(self.dtype)

    def __call__(
        self,
        inputs_BxLxD: jax.Array,
        positions_BxL: jax.Array,
        dropout: Dropout | None,
        is_second_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds inputs that stand where word embeddings stand, [B, L, D] -> [B, L, D].

        Args:
            inputs_BxLxD: [B, L, D].
            positions_BxL: of the tokens in their text, the first of which is 0.
            dropout: None at evaluation.
            is_second_BxL: bool, True where a token's type is 1, as in a pair's second segment; None is 0 everywhere.
        """
        # Token types are added in float32, like the sum over tokens of their gradient.
        types_TxD = self.token_type_embeddings.embedding[...]
        added_BxLxD = self._positions(positions_BxL) + types_TxD[0]
        if is_second_BxL is not None and len(types_TxD) > 1:  # RoBERTa has one type
            # No lookup, whose gradient would be a scatter of all tokens into two rows.
            added_BxLxD += jnp.where(is_second_BxL[:, :, None], types_TxD[1] - types_TxD[0], 0.0)
        x_BxLxD = inputs_BxLxD + added_BxLxD.astype(self.dtype)
        return drop(self.layer_norm(x_BxLxD), self.dropout_rate, dropout)

    def _positions(self, positions_BxL: jax.Array) -> jax.Array:
        return self._lookup(self.position_embeddings, positions_BxL + self.first_position)

    def _lookup(self, table: nnx.Embed, indices_BxL: jax.Array) -> jax.Array:
        """Rows of a table, float32 [B, L, D]."""

        def look_up(indices_BxL, table_VxD):
            return (table_VxD[indices_BxL],)

        if parallel.splits_parameters():
            look_up = parallel.per_device(look_up, batched=(True, False), summed=(False,), dtype=self.dtype)
        return look_up(indices_BxL, table.embedding[...])[0]


class Attention(nnx.Module):
    """Multi-head attention, then projection, dropout, residual from the query stream and LayerNorm."""

    def __init__(self, config: BertConfig, computation: Computation, rngs: nnx.Rngs):
        size = config.hidden_size
        self.query = linear(size, size, config, rngs)
        self.key = linear(size, size, config, rngs)
        self.value = linear(size, size, config, rngs)
        self.output = linear(size, size, config, rngs)
        self.layer_norm = layer_norm(config, rngs)
        self.heads = config.num_attention_heads
        self.implementation = computation.attention
        self.probabilities_dropout_rate = config.attention_probs_dropout_prob
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(
        self, queries_BxLxD: jax.Array, keys_BxMxD: jax.Array, visible: jax.Array, dropout: Dropout | None
    ) -> jax.Array:
        def split(x):
            return x.reshape(*x.shape[:2], self.heads, -1)

        mixed_BxLxHxK = attention(
            self.implementation,
            split(self.query(queries_BxLxD)),
            split(self.key(keys_BxMxD)),
            split(self.value(keys_BxMxD)),
            visible,
            dropout,
            self.probabilities_dropout_rate,
        )
        mixed_BxLxD = mixed_BxLxHxK.reshape(queries_BxLxD.shape)
        return self.layer_norm(queries_BxLxD + drop(self.output(mixed_BxLxD), self.dropout_rate, dropout))


class FeedForward(nnx.Module):
    """Two linear layers with the activation between them, dropout, residual and LayerNorm."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.intermediate = linear(config.hidden_size, config.intermediate_size, config, rngs)
        self.output = linear(config.intermediate_size, config.hidden_size, config, rngs)
        self.layer_norm = layer_norm(config, rngs)
        self.activation = config.hidden_act
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(self, x_BxLxD: jax.Array, dropout: Dropout | None) -> jax.Array:
        y_BxLxD = self._output_of(self.intermediate(x_BxLxD))
        return self.layer_norm(x_BxLxD + drop(y_BxLxD, self.dropout_rate, dropout))

    # The activation is made again in the backward pass: kept, it would be a third of what is in memory.
    @jax.checkpoint
    def _output_of(self, hidden_BxLxI: jax.Array) -> jax.Array:
        return self.output(ACTIVATIONS[self.activation](hidden_BxLxI))


class BertLayer(nnx.Module):
    """One transformer layer; keys and values may come from a stream of their own."""

    def __init__(self, config: BertConfig, computation: Computation, rngs: nnx.Rngs):
        self.attention = Attention(config, computation, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self, queries_BxLxD: jax.Array, keys_BxMxD: jax.Array, visible: jax.Array, dropout: Dropout | None
    ) -> jax.Array:
        """Runs attention and feed-forward on the query stream.

        Args:
            queries_BxLxD: [B, L, D].
            keys_BxMxD: [B, M, D], from which keys and values are made; self-attention if the same as the queries.
            visible: bool [B, L, M], whether query i may look at key j; or [B, 1, M], the same for all queries.
            dropout: None at evaluation.

        Returns:
            [B, L, D].
        """
        return self.feed_forward(self.attention(queries_BxLxD, keys_BxMxD, visible, dropout), dropout)


class Bert(nnx.Module):
    """The BERT encoder without pooler: token ids to contextual states.

    Args:
        config: sizes.
        computation: how it is computed.
        rngs: of fresh parameters.
    """

    def __init__(self, config: BertConfig, computation: Computation, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, computation.dtype, rngs)
        self.layers = nnx.List([BertLayer(config, computation, rngs) for _ in range(config.num_hidden_layers)])
        self.remat = computation.remat

    def hidden_states(
        self, rows: Rows, dropout: Dropout | None = None, last_at_RxK: jax.Array | None = None
    ) -> list[jax.Array]:
        """The embedding block's output and every layer's, num_hidden_layers + 1 arrays [R, L, D].

        Args:
            rows: texts; each attends to itself.
            dropout: None at evaluation.
            last_at_RxK: see `run_layers`.
        """
        words_RxLxD = self.embeddings.words(rows.token_ids_RxL)
        embedded_RxLxD = self.embeddings(words_RxLxD, rows.position_RxL, dropout, rows.is_second_RxL)
        return run_layers(self.layers, embedded_RxLxD, rows.visible(), dropout, last_at_RxK, self.remat)

    def __call__(self, rows: Rows, dropout: Dropout | None = None) -> jax.Array:
        """The last layer's states, [R, L, D]; arguments as for `hidden_states`."""
        return self.hidden_states(rows, dropout)[-1]


def in_order(x: jax.Array, layer: BertLayer) -> tuple[jax.Array, BertLayer]:
    """A layer and its input as they are, but that its gradient by the input waits for those by its parameters.

    A CPU's compiler would put the latter off to the end, for all layers, and keep what they are made of until then.
    """
    graph, values = nnx.split(layer)
    x, values = _in_order(x, values)
    return x, nnx.merge(graph, values)


@jax.custom_vjp
def _in_order(x, values):
    return x, values


def _in_order_forward(x, values):
    return (x, values), None


def _in_order_backward(_, gradients):
    d_x, d_values = gradients

    def after(d_x, d_values):
        # Nothing is added, but the compiler cannot know: zero times infinity would be NaN. (Such a step is skipped.)
        return d_x + sum(0 * leaf.reshape(-1)[0] for leaf in jax.tree.leaves(d_values)).astype(d_x.dtype)

    return jax.lax.platform_dependent(d_x, d_values, cpu=after, default=lambda d_x, d_values: d_x), d_values


_in_order.defvjp(_in_order_forward, _in_order_backward)


def run_layers(
    layers: Sequence[BertLayer],
    x_RxLxD: jax.Array,
    visible: jax.Array,
    dropout: Dropout | None,
    last_at_RxK: jax.Array | None = None,
    remat: bool = False,
) -> list[jax.Array]:
    """The input's states and every layer's.

    Args:
        layers: transformer layers.
        x_RxLxD: input.
        visible: as for `BertLayer`.
        dropout: None at evaluation.
        last_at_RxK: int32, the K positions of each row at which the last layer's states are wanted. That layer then
            computes nothing else, and its states are [R, K, D].
        remat: compute the layers' activations again in the backward pass instead of keeping them.
    """
    states = [x_RxLxD]
    for layer in layers:
        is_last = layer is layers[-1]
        if parallel.is_local():  # elsewhere, each layer's gradients would have to be summed over devices for it
            states[-1], layer = in_order(states[-1], layer)
        queries = states[-1]
        if is_last and last_at_RxK is not None:
            queries = take(queries, last_at_RxK)
            visible = visible if visible.shape[1] == 1 else take(visible, last_at_RxK)
            dropout = None if dropout is None else dropout.at(last_at_RxK)
        run = functools.partial(layer, visible=visible, dropout=dropout)
        states.append((jax.checkpoint(run) if remat else run)(queries, states[-1]))
    return states


class MaskedLanguageModelHead(nnx.Module):
    """The transform before the vocabulary projection, and its bias; the projection is the word embedding table."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.transform = linear(config.hidden_size, config.hidden_size, config, rngs)
        self.layer_norm = layer_norm(config, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))
        # RoBERTa's head does not follow the setting.
        self.activation = config.hidden_act if config.model_type == "bert" else "gelu"

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Transforms hidden states, [..., D] -> [..., D]; logits are its product with the table, plus `bias`."""
        return self.layer_norm(ACTIVATIONS[self.activation](self.transform(hidden)))


class ClassificationHead(nnx.Module):
    """One number from the [CLS] state: linear layer, tanh, dropout, linear layer.

    What `BertForSequenceClassification` makes of its pooler and classifier, and `RobertaForSequenceClassification` of
    its head, for one label; the latter drops out of the [CLS] state too.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.dense = linear(config.hidden_size, config.hidden_size, config, rngs)
        self.output = linear(config.hidden_size, 1, config, rngs)
        self.dropout_rate = config.hidden_dropout_prob
        self.drops_input = config.model_type != "bert"

    def __call__(self, hidden_RxTxD: jax.Array, dropout: Dropout | None) -> jax.Array:
        """Scores of T texts a row, [R, T, D] -> [R, T], float32."""
        if self.drops_input:
            hidden_RxTxD = drop(hidden_RxTxD, self.dropout_rate, dropout)
        pooled_RxTxD = drop(jnp.tanh(self.dense(hidden_RxTxD)), self.dropout_rate, dropout)
        return self.output(pooled_RxTxD.astype(jnp.float32))[:, :, 0]


def linear(inputs: int, outputs: int, config: BertConfig, rngs: nnx.Rngs) -> Linear:
    """A linear layer with BERT's initial values."""
    return Linear(inputs, outputs, config.initializer_range, rngs)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm in float32, with output in the dtype of its input."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(x.dtype)


def layer_norm(config: BertConfig, rngs: nnx.Rngs) -> LayerNorm:
    """LayerNorm as BERT has it."""
    return LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
    )


def drop(x: jax.Array, rate: float, dropout: Dropout | None) -> jax.Array:
    """Applies dropout if there is any."""
    return x if dropout is None else dropout(x, rate)
