"""Directories that leave the project, opened with the packages that people use; and those that come in."""

import dataclasses
import json
import logging
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from retromae_jax.checkpoints import huggingface
from retromae_jax.checkpoints.hub import resolve
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.encoder import Encoder, Encoders
from retromae_jax.errors import InputError
from retromae_jax.models import lexical, parameters
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.retromae import RetroMAE
from retromae_jax.retrieval.encode import encode_texts
from tests.texts import rows
from train import checks

every_model_type = pytest.mark.parametrize("model_type", huggingface.FAMILIES, indirect=True)

TEXTS = [
    "A compact encoder.",
    "Retrieval-oriented pre-training makes [CLS] carry the text, unbelievably!",
    "naïve",
]


@pytest.fixture(scope="module")
def tokenizer(model_type_tokenizer):
    return load_tokenizer(str(model_type_tokenizer))


@pytest.fixture(scope="module")
def model(model_type, tokenizer):
    """A small random pretraining model: config, graph, parameters."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig.from_huggingface({"model_type": model_type, "vocab_size": len(tokenizer)} | sizes, "test")

    build = RetroMAE(config, vocabulary=None).model
    weights = parameters.initialize(build, seed=1)
    generator = np.random.default_rng(0)
    weights = {k: v + 0.1 * generator.standard_normal(v.shape, np.float32) for k, v in weights.items()}
    return config, parameters.structure(build)[0], weights


@pytest.fixture
def loads_cleanly(caplog):
    """Runs `from_pretrained` and fails on any warning, missing or unexpected key."""

    def load(auto_class, directory):
        with caplog.at_level(logging.WARNING):
            loaded, info = auto_class.from_pretrained(directory, output_loading_info=True)
        assert not any(info.values()), info
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        return loaded.eval()

    return load


@every_model_type
@pytest.mark.parametrize("pooling, normalize", [("cls", False), ("mean", True)])
def test_encoder_directory_opens_everywhere_with_equal_vectors(
    tmp_path, model, tokenizer, loads_cleanly, pooling, normalize
):
    import sentence_transformers

    config, _, weights = model
    directory = tmp_path / "exported"
    huggingface.save_encoder(directory, config, weights, tokenizer, EncoderSettings(pooling, normalize, 16))
    encoder = Encoder.from_pretrained(str(directory))
    assert encoder.settings == EncoderSettings(pooling, normalize, 16)
    ours = encode_texts(encoder, TEXTS, "passage")

    theirs = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    assert theirs.max_seq_length == 16
    assert theirs.similarity_fn_name == ("cosine" if normalize else "dot")
    np.testing.assert_allclose(theirs.encode(TEXTS), ours, atol=1e-5)

    bert = loads_cleanly(transformers.AutoModel, directory)
    reloaded = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = reloaded(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = bert(**inputs)
    if pooling == "cls":
        np.testing.assert_allclose(output.last_hidden_state[:, 0].numpy(), ours, atol=1e-5)
        np.testing.assert_allclose(output.pooler_output.numpy(), np.tanh(ours), atol=1e-5)


def test_prompts_lengths_and_titles_travel_and_prompted_vectors_are_sentence_transformers_own(
    tmp_path, model, tokenizer, caplog
):
    import sentence_transformers

    config, _, weights = model
    settings = EncoderSettings(
        "mean",
        True,
        16,
        query_max_length=8,
        query_prompt="query: ",
        passage_prompt="passage: ",
        titles=False,
        title_separator="[SEP]",
    )
    directory = tmp_path / "exported"
    huggingface.save_encoder(directory, config, weights, tokenizer, settings)
    encoder = Encoder.from_pretrained(str(directory))
    assert encoder.settings == settings
    with caplog.at_level(logging.WARNING):
        theirs = sentence_transformers.SentenceTransformer(str(directory), device="cpu")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    ours = encode_texts(encoder, TEXTS, "passage")
    np.testing.assert_allclose(theirs.encode_document(TEXTS), ours, atol=1e-5)
    theirs.max_seq_length = 8
    ours = encode_texts(encoder, TEXTS, "query")
    np.testing.assert_allclose(theirs.encode(TEXTS, prompt_name="query"), ours, atol=1e-5)
    assert np.max(np.abs(theirs.encode(TEXTS) - ours)) > 1e-3
    # Whatever they are changed to, the model's own stay what they are elsewhere.
    changed = Encoder.from_pretrained(str(directory), query_prompt="", titles=True, query_max_length=None)
    assert changed.settings == dataclasses.replace(settings, query_prompt="", titles=True)

    # As sentence-transformers finds them: passages have another name, and the default is none of either's.
    path = directory / "config_sentence_transformers.json"
    path.write_text('{"prompts": {"passage": "p: ", "other": "o: "}, "default_prompt_name": "other"}')
    found = open_model(str(directory)).settings
    assert (found.query_prompt, found.passage_prompt) == ("", "p: ")
    pooling = directory / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    with pytest.raises(InputError, match=r"prompts are left out of pooling \(include_prompt\), which is not supported"):
        open_model(str(directory))
    for content, message in (('{"prompts": ["q"]}', "are none by name"), ('{"prompts": {"query": 1}}', "1 is no text")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            open_model(str(directory))
    path.unlink()
    for content in ('{"query_max_length": true}', '{"query_length": 32}'):
        (directory / "retrieval.json").write_text(content)
        with pytest.raises(
            InputError, match=r"retrieval.json: 'query_.*length': .* is not understood; fetch or export"
        ):
            open_model(str(directory))


def test_texts_are_in_lower_case_where_sentence_transformers_has_them_so(tmp_path, model, minilm_directory):
    import sentence_transformers

    config, _, weights = model
    uncased, settings = load_tokenizer(str(minilm_directory)), EncoderSettings("mean", False, 16)
    huggingface.save_encoder(tmp_path / "exported", config, weights, uncased, settings)
    path = tmp_path / "exported" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    for lower in (False, True):
        path = tmp_path / "exported" / "sentence_bert_config.json"
        path.write_text(json.dumps({"max_seq_length": 16, "do_lower_case": lower}))
        theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu")
        ours = encode_texts(Encoder.from_pretrained(str(tmp_path / "exported")), ["Dogs bark.", "dogs bark."], "query")
        np.testing.assert_allclose(theirs.encode(["Dogs bark.", "dogs bark."]), ours, atol=1e-5)
        assert np.array_equal(ours[0], ours[1]) == lower


@pytest.fixture(scope="module")
def projected(model):
    """Parameters of an encoder with a projection of width 8 beside the pretraining model's."""
    generator = np.random.default_rng(1)
    kernel, bias = generator.standard_normal((32, 8), np.float32), generator.standard_normal(8, np.float32)
    return model[2] | {"projection.kernel": kernel, "projection.bias": bias}


def test_untied_encoders_with_projections_are_two_directories_with_equal_vectors(tmp_path, model, projected, tokenizer):
    import sentence_transformers

    config, _, _ = model
    encoders = {"query": projected, "passage": {name: value * 0.9 for name, value in projected.items()}}
    weights = {f"{kind}.{name}": value for kind, own in encoders.items() for name, value in own.items()}
    settings = EncoderSettings("mean", True, 16, projection=8, untie_encoder=True)
    directory = tmp_path / "exported"
    huggingface.save_encoder(directory, config, weights, tokenizer, settings)
    opened = Encoders.from_pretrained(str(directory))
    vectors = []
    for kind, encoder in zip(encoders, opened, strict=True):
        assert encoder.settings == EncoderSettings("mean", True, 16, projection=8)
        vectors.append(encode_texts(encoder, TEXTS, "passage"))
        theirs = sentence_transformers.SentenceTransformer(str(directory / kind), device="cpu")
        np.testing.assert_allclose(theirs.encode(TEXTS), vectors[-1], atol=1e-5)
    assert np.max(np.abs(vectors[0] - vectors[1])) > 1e-3

    source = open_model(str(directory))
    assert source.settings == settings
    wanted = {name: value for name, value in weights.items() if ".head." not in name and ".decoder." not in name}
    loaded, report = source.parameters(wanted)
    assert report.fresh == []
    for name, value in wanted.items():
        np.testing.assert_array_equal(loaded[name], value)
    with pytest.raises(InputError, match="holds two encoders, for queries and for passages; name one"):
        source.parameters(projected)
    # One encoder in their place leaves nothing of them behind; and an untied model begins as two of it.
    huggingface.save_encoder(directory, config, projected, tokenizer, EncoderSettings("cls", False, 16, projection=8))
    assert not (directory / "query").exists()
    loaded, report = open_model(str(directory)).parameters(wanted)
    assert report.fresh == []
    for name in ("query.projection.kernel", "passage.projection.kernel"):
        np.testing.assert_array_equal(loaded[name], projected["projection.kernel"])


def test_lexical_parts_are_the_masked_language_models_and_dense_parts_open_everywhere(
    tmp_path, model, projected, tokenizer
):
    import sentence_transformers

    config, _, weights = model
    settings = EncoderSettings("cls", False, 16, projection=8, lexical_top_k=12)
    huggingface.save_encoder(tmp_path / "exported", config, projected, tokenizer, settings)
    assert open_model(str(tmp_path / "exported")).has_head()
    encoder = Encoder.from_pretrained(str(tmp_path / "exported"))
    assert (encoder.settings, encoder.dimension) == (settings, 8 + 2 * 12)
    dense, scores, words = lexical.unpack(encode_texts(encoder, TEXTS, "passage"), 12)

    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), dense, atol=1e-5)
    huggingface.save_masked_lm(tmp_path / "masked_lm", config, weights, tokenizer)
    masked_lm = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "masked_lm").eval()
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path / "masked_lm")(
        TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    counted = inputs["attention_mask"].bool()
    counted[:, 0] = False  # [CLS]
    with torch.no_grad():
        logits = masked_lm(**inputs).logits.masked_fill(~counted[:, :, None], -torch.inf)
        expected, expected_words = torch.log1p(torch.relu(logits.amax(dim=1))).topk(12)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(words, expected_words.numpy())

    with pytest.raises(InputError, match="neither cut to a dimension nor scaled to length 1"):
        Encoder.from_pretrained(str(tmp_path / "exported"), normalize=True)
    (tmp_path / "exported" / "lexical" / "config.json").write_text('{"top_k": 0}')
    with pytest.raises(InputError, match="top_k is 0, not a number of words between 1 and the vocabulary's"):
        open_model(str(tmp_path / "exported"))


@every_model_type
def test_masked_language_model_directory_opens_with_equal_logits_and_carries_the_decoder(
    tmp_path, model, tokenizer, loads_cleanly
):
    config, graph, weights = model
    directory = tmp_path / "exported"
    huggingface.save_masked_lm(directory, config, weights, tokenizer)
    theirs = loads_cleanly(transformers.AutoModelForMaskedLM, directory)
    assert theirs.config.model_type == config.model_type
    inputs = transformers.AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    bound = parameters.bind(graph, weights)
    visible = inputs["attention_mask"].numpy() > 0
    hidden = bound.bert(rows(inputs["input_ids"].numpy(), visible.sum(axis=1)))
    table = weights["bert.embeddings.word_embeddings.embedding"]
    logits = bound.head(hidden) @ table.T + weights["head.bias"]
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    np.testing.assert_allclose(np.asarray(logits)[visible], expected[visible], atol=1e-4)

    # Pretraining continues from the directory with every parameter as it was.
    loaded, report = open_model(str(directory)).parameters(weights)
    assert report.fresh == [] and report.left_over == []
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path, model, tokenizer):
    config, _, weights = model
    directory = tmp_path / "exported"
    for max_length in (16, 32):
        huggingface.save_encoder(directory, config, weights, tokenizer, EncoderSettings("cls", False, max_length))
    assert json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    thesis = directory / "more" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("...")
    with pytest.raises(InputError, match=r"holds more/thesis\.tex, which no export wrote"):
        huggingface.save_encoder(directory, config, weights, tokenizer, EncoderSettings("cls", False, 16))
    assert thesis.exists()
    thesis.unlink()
    # Both parts of a pretraining run's export are replaced together.
    huggingface.save_masked_lm(directory / "masked_lm", config, weights, tokenizer)
    huggingface.save_encoder(directory, config, weights, tokenizer, EncoderSettings("cls", False, 16))
    assert not (directory / "masked_lm").exists()


def test_weights_and_tokenizer_files_are_readable_by_others(tmp_path, model, tokenizer):
    config, _, weights = model
    huggingface.save_masked_lm(tmp_path / "exported", config, weights, tokenizer)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "exported").iterdir())
    vocabulary = (tmp_path / "exported" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert vocabulary[101] == "[CLS]" and len(vocabulary) == 30522 + 1


@pytest.fixture
def stored(tmp_path, model, tokenizer):
    """A masked-language-model directory to spoil."""
    config, _, weights = model
    huggingface.save_masked_lm(tmp_path / "stored", config, weights, tokenizer)
    return tmp_path / "stored"


@every_model_type
def test_layouts_of_other_releases_load(stored, model):
    """Unprefixed names, gamma and beta, half precision, a pooler, buffers, tied tensors, several files."""
    config, _, weights = model
    prefix = huggingface.FAMILIES[config.model_type].prefix
    tensors = load_file(stored / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    unprefixed = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    buffers = {
        "embeddings.position_ids": np.arange(512)[None],
        "pooler.dense.weight": np.eye(32, dtype=np.float32),
    }
    tied = {
        f"{head}.decoder.weight": tensors[f"{prefix}embeddings.word_embeddings.weight"]
        for head in ("cls.predictions", "lm_head")
    }
    half = {name: value.astype(np.float16) for name, value in (tensors | tied).items()}
    bfloat16 = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    for changed, tolerance in ((renamed, 0), (unprefixed | buffers, 0), (half, 1e-2), (bfloat16, 1e-2)):
        save_file(changed, stored / "model.safetensors")
        source = open_model(str(stored))
        source.check_encoder()
        loaded, report = source.parameters(weights)
        expected_fresh = {"head"} if changed.keys() >= buffers.keys() else set()
        assert {name.split(".")[0] for name in report.fresh} == expected_fresh
        assert report.left_over == ([f"{prefix}pooler.dense.weight"] if expected_fresh else [])
        for name, value in loaded.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, weights[name], atol=tolerance)

    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, stored / file)
    (stored / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (stored / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded, report = open_model(str(stored)).parameters(weights)
    assert report.fresh == []


def test_an_encoder_that_lacks_tensors_is_no_start(stored, tokenizer, model, projected, tmp_path):
    tensors = load_file(stored / "model.safetensors")
    save_file({f"module.{name}": value for name, value in tensors.items()}, stored / "model.safetensors")
    config = ConfigDict({"init": str(stored), "tokenizer": ""})
    with pytest.raises(
        InputError, match=r"stored: (\d+) of the encoder's \1 tensors are missing, .* module\."
    ) as error:
        checks.start(config)
    assert "\n" not in str(error.value) and "bert.embeddings.LayerNorm.bias, " in str(error.value)
    save_file(tensors, stored / "model.safetensors")
    assert checks.start(config).source.directory == stored  # the head is not needed, the decoder neither
    content = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"16 of the encoder's 53 tensors are missing, such as bert.encoder.layer.2\."):
        checks.start(config)
    # Each of untied encoders is looked at.
    untied = {f"{kind}.{name}": value for kind in ("query", "passage") for name, value in projected.items()}
    settings = EncoderSettings("cls", False, 16, projection=8, untie_encoder=True)
    huggingface.save_encoder(tmp_path / "two", model[0], untied, tokenizer, settings)
    config.init = str(tmp_path / "two")
    checks.start(config)
    weights = load_file(tmp_path / "two" / "passage" / "model.safetensors")
    del weights["embeddings.LayerNorm.bias"]
    save_file(weights, tmp_path / "two" / "passage" / "model.safetensors")
    with pytest.raises(InputError, match=r"two/passage: 1 of the encoder's 37 tensors are missing"):
        checks.start(config)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"], indirect=True)
def test_roberta_directories_say_what_the_library_wants_to_know(tmp_path, model, tokenizer):
    config, _, weights = model
    huggingface.save_encoder(tmp_path / "exported", config, weights, tokenizer, EncoderSettings("cls", False, 16))
    stored = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert [stored[f"{name}_token_id"] for name in ("bos", "pad", "eos")] == [0, 1, 2]
    assert stored["architectures"] == [f"{huggingface.FAMILIES[config.model_type].classes}Model"]
    assert not (tmp_path / "exported" / "vocab.txt").exists()
    assert open_model(str(tmp_path / "exported")).config == config


def test_pickled_weights_are_refused_with_a_remedy_that_works(stored, model):
    _, _, weights = model
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    tensors = sorted(load_file(stored / "model.safetensors").items())
    for name, part in zip(names, (tensors[::2], tensors[1::2]), strict=True):
        torch.save({tensor: torch.tensor(value) for tensor, value in part}, stored / name)
    (stored / "training_args.bin").write_bytes(b"no weights")
    (stored / "model.safetensors").unlink()
    # Before anything else is read.
    with pytest.raises(InputError, match="pickled weights are not read") as error:
        open_model(str(stored))
    remedy = str(error.value).split("python -c ")[1].strip('"')
    subprocess.run([sys.executable, "-W", "ignore", "-c", remedy], check=True, capture_output=True)
    _, report = open_model(str(stored)).parameters(weights)
    assert report.fresh == []
    for path in (*(stored / name for name in names), stored / "training_args.bin", stored / "model.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=r"pickled .*, which are not fetched from the Hub"):
        open_model(str(stored))


def test_modules_that_would_change_the_vectors_are_refused(tmp_path, model, tokenizer):
    config, _, weights = model
    huggingface.save_encoder(tmp_path / "exported", config, weights, tokenizer, EncoderSettings("cls", True, 16))
    path = tmp_path / "exported" / "modules.json"
    modules = json.loads(path.read_text())
    for added, message in (
        ("Dense", "the modules Transformer, Pooling, Normalize, Dense follow each other in another order"),
        ("Normalize", "each at most once"),
        ("LSTM", "the modules LSTM are not supported"),
    ):
        module = {"idx": 3, "name": "3", "path": f"3_{added}", "type": f"sentence_transformers.models.{added}"}
        path.write_text(json.dumps([*modules, module]))
        with pytest.raises(InputError, match=message):
            open_model(str(tmp_path / "exported"))
    # Without a word about its activation, a Dense module has tanh.
    path.write_text(json.dumps([*modules[:2], module | {"path": "2_Dense", "type": "sentence_transformers.Dense"}]))
    (tmp_path / "exported" / "2_Dense").mkdir()
    linear = {"in_features": 32, "out_features": 8, "bias": True}
    for dense in (linear, linear | {"bias": False, "activation_function": huggingface.NO_ACTIVATION}):
        (tmp_path / "exported" / "2_Dense" / "config.json").write_text(json.dumps(dense))
        with pytest.raises(InputError, match="only a linear layer of 32 inputs with a bias and without activation"):
            open_model(str(tmp_path / "exported"))


def test_a_model_without_tokenizer_files_is_refused(stored):
    for name in ("tokenizer.json", "vocab.txt"):
        (stored / name).unlink()
    with pytest.raises(InputError, match="no tokenizer files"):
        Encoder.from_pretrained(str(stored))


def test_a_tokenizer_without_cls_and_sep_around_texts_is_refused(byte_level_directory, tmp_path):
    """A BERT's tokenizer is given them by transformers, whatever its file says; others have what their file says."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((byte_level_directory / name).read_text())
        changed = {"post_processor": None} if name == "tokenizer.json" else {"tokenizer_class": "TokenizersBackend"}
        (tmp_path / name).write_text(json.dumps(content | changed))
    with pytest.raises(
        InputError, match=r"does not put <s> before a text and </s> behind it; give its tokenizer\.json"
    ):
        load_tokenizer(str(tmp_path))


def test_broken_directories_are_refused(stored, model, tmp_path):
    _, _, weights = model
    with pytest.raises(InputError, match=r"model directory './nowhere' does not exist"):
        resolve("./nowhere")
    with pytest.raises(InputError, match="the Hugging Face Hub did not give it"):
        resolve("nobody/nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"no config.json"):
        open_model(str(empty))
    weights_file = stored / "model.safetensors"
    content = weights_file.read_bytes()
    weights_file.write_bytes(content[:1000])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        open_model(str(stored)).parameters(weights)
    weights_file.write_bytes(content)
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    wrong = open_model(str(stored))
    _, shapes = parameters.structure(RetroMAE(wrong.config, vocabulary=None).model)
    with pytest.raises(InputError, match=r"config\.json and weights do not belong together"):
        wrong.parameters(shapes)
    (stored / "config.json").write_text("[]")
    with pytest.raises(InputError, match="a JSON list where a dict is expected"):
        open_model(str(stored))
    (stored / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        open_model(str(stored))
