"""Our BERT against Hugging Face's in PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from retromae_jax.checkpoints import huggingface
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import Bert, BertConfig, Computation, FeedForward
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import TextEncoder
from retromae_jax.objectives.retromae import RetroMAE
from retromae_jax.rows import take
from tests.small import CONFIG, assert_same
from tests.texts import rows


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    token_ids = generator.integers(1000, 30000, (4, 37)).astype(np.int32)
    lengths = np.array([37, 20, 3, 36])
    return token_ids, np.arange(37) < lengths[:, None]


# RoBERTa's head has its own activation. All of the models' positions are used.
@pytest.mark.parametrize(
    "model_type, positions, activation",
    [("bert", 37, "gelu"), ("roberta", 39, "gelu"), ("xlm-roberta", 39, "relu"), ("bert", 37, "relu")],
)
def test_random_weights_give_the_states_and_logits_of_pytorch(batch, model_type, positions, activation):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    sizes |= {"vocab_size": 30000, "max_position_embeddings": positions, "hidden_act": activation}
    theirs = transformers.AutoModelForMaskedLM.from_config(
        transformers.AutoConfig.for_model(model_type, **sizes)
    ).eval()
    for parameter in theirs.parameters():  # biases and LayerNorm start at 0 and 1, where mistakes would not show
        parameter.data += 0.05 * torch.randn_like(parameter)
    config = BertConfig.from_huggingface(theirs.config.to_dict(), "theirs")
    assert config.max_length == 37
    graph, shapes = parameters.structure(RetroMAE(config, vocabulary=None).model)
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    loaded, report = huggingface.from_huggingface(tensors, shapes, "theirs", model_type)
    assert report.left_over == [] and {name.split(".")[0] for name in report.fresh} == {"decoder"}
    decoder = {name: jnp.zeros(shapes[name].shape) for name in report.fresh}
    model = parameters.bind(graph, loaded | decoder)

    token_ids, visible = batch
    token_ids = np.where(visible, token_ids, config.pad_token_id)
    hidden = model.bert(rows(token_ids, visible.sum(axis=1)))
    logits = model.head(hidden) @ loaded["bert.embeddings.word_embeddings.embedding"].T + loaded["head.bias"]
    with torch.no_grad():
        arguments = {"input_ids": torch.tensor(token_ids).long(), "attention_mask": torch.tensor(visible).long()}
        expected_hidden = theirs.base_model(**arguments).last_hidden_state.numpy()
        expected_logits = theirs(**arguments).logits.numpy()
    np.testing.assert_allclose(np.asarray(hidden)[visible], expected_hidden[visible], atol=1e-4)
    np.testing.assert_allclose(np.asarray(logits)[visible], expected_logits[visible], atol=1e-4)


def test_a_real_checkpoint_gives_the_states_of_pytorch(minilm_directory, batch):
    theirs = transformers.BertModel.from_pretrained(minilm_directory).eval()
    config = BertConfig.from_huggingface(huggingface.read_config(minilm_directory), "minilm")
    settings = EncoderSettings("mean", True, 128)
    graph, shapes = parameters.structure(lambda rngs: TextEncoder(config, settings, Computation(), rngs))
    tensors = load_file(minilm_directory / "model.safetensors")
    loaded, report = huggingface.from_huggingface(tensors, shapes, "minilm")
    assert not report.fresh
    token_ids, visible = batch
    hidden = np.asarray(parameters.bind(graph, loaded).bert(rows(token_ids, visible.sum(axis=1))))
    with torch.no_grad():
        arguments = {"input_ids": torch.tensor(token_ids).long(), "attention_mask": torch.tensor(visible).long()}
        expected = theirs(**arguments).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden[visible], expected[visible], atol=1e-4)


def test_bfloat16_stays_close_to_float32():
    config = BertConfig(64, 32, 2, 4, 64)
    states = []
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, _ = parameters.structure(lambda rngs, dtype=dtype: Bert(config, Computation(dtype), rngs))
        weights = parameters.initialize(lambda rngs: Bert(config, Computation(), rngs), seed=0)
        assert {value.dtype for value in weights.values()} == {jnp.dtype("float32")}
        hidden = parameters.bind(graph, weights)(rows(np.arange(20).reshape(2, 10)))
        assert hidden.dtype == dtype
        states.append(np.asarray(hidden, np.float32))
    cosines = np.sum(states[0] * states[1], axis=-1) / np.prod(np.linalg.norm(states, axis=-1), axis=0)
    assert np.min(cosines) > 0.9999


# One text a row, and three or two.
@pytest.mark.parametrize("lengths", [[[12], [9]], [[4, 5, 3], [6, 2, 0]]])
def test_the_last_layer_at_some_positions_equals_the_whole_layer_there(lengths):
    """With dropout: a position draws the same numbers wherever it stands among those chosen."""
    texts, at = rows(np.arange(24).reshape(2, 12), lengths), jnp.array([[0, 7, 7, 3, 11], [2, 0, 8, 1, 5]])

    def states(weights, at):
        return parameters.bind(graph, weights).hidden_states(texts, texts.dropout(), at)

    graph, _ = parameters.structure(lambda rngs: Bert(CONFIG, Computation(), rngs))
    weights = parameters.initialize(lambda rngs: Bert(CONFIG, Computation(), rngs), seed=0)
    whole, some = jax.jit(states)(weights, None), jax.jit(states)(weights, at)
    assert some[-1].shape == (2, 5, CONFIG.hidden_size)
    np.testing.assert_allclose(some[-1], take(whole[-1], at), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(some[-2], whole[-2], rtol=1e-5, atol=1e-6)


def test_remat_keeps_less_for_the_same_gradients():
    """Layers that are computed again draw the same dropout again."""
    texts = rows(np.random.default_rng(0).integers(4, 60, (16, 32)))
    weights = parameters.initialize(lambda rngs: Bert(CONFIG, Computation(), rngs), seed=0)
    gradients, kept = {}, {}
    for remat in (False, True):
        graph, _ = parameters.structure(lambda rngs, remat=remat: Bert(CONFIG, Computation(remat=remat), rngs))

        def loss(weights, graph=graph):
            return jnp.mean(parameters.bind(graph, weights)(texts, texts.dropout()) ** 3)

        gradients[remat] = jax.jit(jax.grad(loss))(weights)
        # What the forward pass leaves for the backward pass. Compilers for CPUs undo some of the saving.
        residuals = jax.eval_shape(lambda weights, loss=loss: jax.vjp(loss, weights)[1], weights)
        kept[remat] = sum(residual.size for residual in jax.tree.leaves(residuals))
    assert_same(gradients[True], gradients[False], tolerance=1e-6)
    assert kept[True] < 0.3 * kept[False]


def test_of_a_layers_wide_states_one_is_kept_for_the_backward_pass():
    """The one before the activation."""
    width = CONFIG.intermediate_size
    assert width not in (CONFIG.hidden_size, 5)
    graph, values = nnx.split(FeedForward(CONFIG, nnx.Rngs(0)))

    def backward(values, x):
        return jax.vjp(lambda values, x: nnx.merge(graph, values)(x, None), values, x)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, values, jnp.zeros((2, 5, CONFIG.hidden_size))))
    assert [x.shape for x in residuals if x.shape[:1] == (2,) and x.shape[-1] == width] == [(2, 5, width)]


def test_what_a_config_leaves_out_is_hugging_faces_default():
    for model_type in ("bert", "roberta", "xlm-roberta"):
        theirs = transformers.AutoConfig.for_model(model_type).to_dict()
        found = BertConfig.from_huggingface({"model_type": model_type, "pad_token_id": None}, "test")
        assert dataclasses.asdict(found).items() <= theirs.items()
    assert BertConfig.from_huggingface({"model_type": "roberta", "max_position_embeddings": 514}, "").max_length == 512


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="hidden_size 30 is not a multiple of num_attention_heads 4"):
        BertConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(InputError, match="model_type is 't5'"):
        BertConfig.from_huggingface({"model_type": "t5"}, "somewhere")
    with pytest.raises(InputError, match="hidden_act 'silu'"):
        BertConfig.from_huggingface({"hidden_act": "silu"}, "somewhere")
