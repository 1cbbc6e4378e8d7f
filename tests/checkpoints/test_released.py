"""The five models that RetroMAE's authors released (Shitao/RetroMAE...), as old `transformers` saved them, but small.

Each is a directory of config.json, pytorch_model.bin, vocab.txt, tokenizer_config.json and special_tokens_map.json,
with neither tokenizer.json nor safetensors, and BertForMaskedLM as its architecture. The size of RetroMAE_BEIR's
weights (437,998,385 bytes) is that of an encoder with a pooler; of RetroMAE_MSMARCO's (438,128,811), of an encoder with
the head of a masked language model and without a pooler. Of the others, the size is known to three digits only: their
layouts here are those that are likely.
"""

import json
import re

import numpy as np
import pytest
import torch
import transformers

from retromae_jax.checkpoints.loading import open_model
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import TextEncoder
from retromae_jax.objectives.retromae import RetroMAE
from retromae_jax.retrieval.encode import encode_texts

TEXTS = ["A compact ENCODER.", "Retrieval-oriented pre-training makes [CLS] carry the text, unbelievably!", "naïve"]
# As the files say, but for the sizes.
CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.20.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
TOKENIZER = {
    "do_lower_case": True,
    "do_basic_tokenize": True,
    "never_split": None,
    **SPECIAL,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "special_tokens_map_file": None,
    "tokenizer_class": "BertTokenizer",
}
RELEASED = [
    ("RetroMAE", "4.20.0", "masked_lm"),
    ("RetroMAE_MSMARCO", "4.18.0", "masked_lm"),
    ("RetroMAE_MSMARCO_finetune", "4.20.0", "encoder"),
    ("RetroMAE_MSMARCO_distill", "4.20.0", "prefixed_encoder"),
    ("RetroMAE_BEIR", "4.20.0", "encoder"),
]


def released(directory, name, version, layout, vocabulary):
    """Writes a directory as it was released."""
    torch.manual_seed(len(name))
    config = transformers.BertConfig(**CONFIG)
    model = (transformers.BertForMaskedLM if layout == "masked_lm" else transformers.BertModel)(config)
    # Initial values are small and biases 0.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    # A buffer that old releases saved; and the tied tensors of the head.
    tensors = {"embeddings.position_ids": torch.arange(512)[None], **model.state_dict()}
    assert layout != "masked_lm" or {f"cls.predictions.decoder.{name}" for name in ("weight", "bias")} < tensors.keys()
    if layout == "prefixed_encoder":
        tensors = {f"bert.{tensor}": value for tensor, value in tensors.items()}
    directory.mkdir()
    torch.save(tensors, directory / "pytorch_model.bin")
    content = {"_name_or_path": name, **CONFIG, "transformers_version": version}
    (directory / "config.json").write_text(json.dumps(content, indent=2))
    (directory / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER | {"name_or_path": name}))
    (directory / "vocab.txt").write_bytes(vocabulary.read_bytes())
    return directory


def convert(directory):
    """Does what the message says about pickled weights."""
    with pytest.raises(InputError, match="pickled weights are not read") as error:
        open_model(str(directory))
    assert "\n" not in str(error.value)
    exec(re.fullmatch(r'.* python -c "(.*)"', str(error.value))[1])


@pytest.mark.parametrize("name, version, layout", RELEASED)
def test_vectors_are_those_of_transformers(name, version, layout, minilm_directory, tmp_path):
    directory = released(tmp_path / name, name, version, layout, minilm_directory / "vocab.txt")
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.tokenize(TEXTS[0]) == ["a", "compact", "en", "##code", "##r", "."]
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state[:, 0].numpy()

    convert(directory)
    encoder = Encoder.from_pretrained(str(directory))
    assert encoder.settings == EncoderSettings("cls", False, 512)
    np.testing.assert_allclose(encode_texts(encoder, TEXTS, "passage"), expected, atol=1e-5)

    # Fine-tuning begins with all of it, pretraining with as much as there is, and nothing is left over but the pooler.
    source = open_model(str(directory))
    assert source.has_head() == (layout == "masked_lm")
    _, shapes = parameters.structure(lambda rngs: TextEncoder(source.config, source.settings, Computation(), rngs))
    assert source.parameters(shapes)[1].fresh == []
    _, shapes = parameters.structure(RetroMAE(source.config, vocabulary=None).model)
    _, report = source.parameters(shapes)
    fresh = {"decoder"} if layout == "masked_lm" else {"decoder", "head"}
    assert {parameter.split(".")[0] for parameter in report.fresh} == fresh
    left_over = set() if layout == "masked_lm" else {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert set(report.left_over) == left_over
