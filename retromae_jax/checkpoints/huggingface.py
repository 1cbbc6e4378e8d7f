"""Hugging Face model directories: reading and writing.

Four kinds of directory are read: encoders (`BertModel`, `RobertaModel`, ...), masked language models
(`BertForMaskedLM`, ...), cross-encoders (`BertForSequenceClassification`, ...), and sentence-transformers models.
Three are written: an encoder that `AutoModel` and `SentenceTransformer` open, or two of them, `query/` and `passage/`;
a cross-encoder that `AutoModelForSequenceClassification` and sentence-transformers' `CrossEncoder` open; and a masked
language model that `AutoModelForMaskedLM` opens, with the objective's own modules (the decoder) beside it in
`objective.safetensors`, so that pretraining can be continued.

`retrieval.json` holds what makes texts of queries and passages: the longest query, whether titles stand before texts,
and what is between them.

An encoder whose embeddings have a lexical part holds, in `lexical/`, the head that scores the vocabulary, under the
names of `AutoModelForMaskedLM`, and how many words are kept. No other package knows that directory: what they open is
the dense part.
"""

import contextlib
import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers.models import WordPiece

from retromae_jax.errors import InputError
from retromae_jax.files import read_json
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.parameters import Arrays
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import KINDS, of_kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Our module paths and Hugging Face's, tried in order; each applies at most once to a name.
_LAYERS = (
    (r"^bert\.layers\.", "bert.encoder.layer."),
    (r"^decoder\.layer\.", "decoder."),
    (r"^condenser_head\.layers\.", "condenser_head."),
    (r"\.attention\.(query|key|value)\.", r".attention.self.\1."),
    (r"\.attention\.output\.", ".attention.output.dense."),
    (r"\.attention\.layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.feed_forward\.intermediate\.", ".intermediate.dense."),
    (r"\.feed_forward\.output\.", ".output.dense."),
    (r"\.feed_forward\.layer_norm\.", ".output.LayerNorm."),
    (r"^bert\.embeddings\.layer_norm\.", "bert.embeddings.LayerNorm."),
    (r"\.(kernel|scale|embedding)$", ".weight"),
)
_BERT = (
    *_LAYERS,
    (r"^head\.transform\.", "cls.predictions.transform.dense."),
    (r"^head\.layer_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^head\.bias$", "cls.predictions.bias"),
    (r"^classifier\.dense\.", "bert.pooler.dense."),
    (r"^classifier\.output\.", "classifier."),
)
_ROBERTA = (
    *_LAYERS,
    (r"^head\.transform\.", "lm_head.dense."),
    (r"^head\.", "lm_head."),
    (r"^classifier\.output\.", "classifier.out_proj."),
    (r"^bert\.", "roberta."),
)


class Family(NamedTuple):
    """Hugging Face's names for a family of models.

    Attributes:
        classes: what the names of its classes begin with.
        prefix: of the encoder's parameters in a masked language model.
        renamings: of our parameters.
    """

    classes: str
    prefix: str
    renamings: tuple[tuple[str, str], ...]


FAMILIES = {
    "bert": Family("Bert", "bert.", _BERT),
    "roberta": Family("Roberta", "roberta.", _ROBERTA),
    "xlm-roberta": Family("XLMRoberta", "roberta.", _ROBERTA),
}
# Directories of an encoder's modules.
POOLING, DENSE, LEXICAL = "1_Pooling", "2_Dense", "lexical"
# Holds the prompts, in sentence-transformers' words; the names by which it knows those of queries and of passages, in
# the order in which it looks for them.
PROMPTS = "config_sentence_transformers.json"
QUERY_PROMPTS, PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")
# Holds what else of `EncoderSettings` makes texts of queries and passages, which no other package knows.
TEXTS = "retrieval.json"
OF_TEXTS = {"query_max_length": int, "titles": bool, "title_separator": str}
# What `torch.nn` calls no activation.
NO_ACTIVATION = "torch.nn.modules.linear.Identity"
# Lists the files that an export wrote, so that the next one knows what it may replace.
EXPORT = "export.json"
# Stored by some releases, and nothing is lost without them: buffers, the tied projection, the next-sentence head.
DERIVED = re.compile(r"position_ids$|^(cls\.predictions|lm_head)\.decoder\.|^cls\.seq_relationship\.")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What came of the tensors of a directory: names of parameters loaded and left fresh, of tensors left over."""

    loaded: list[str]
    fresh: list[str]
    left_over: list[str]

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        if self.fresh:
            lines.append(f"start fresh: {', '.join(_modules(self.fresh))}")
        if self.left_over:
            lines.append(f"left over: {', '.join(_modules(self.left_over))}")
        return "; ".join(lines)


def huggingface_name(name: str, model_type: str = "bert") -> str:
    """The name of one of our parameters in Hugging Face's models of a type."""
    for pattern, replacement in FAMILIES[model_type].renamings:
        name = re.sub(pattern, replacement, name)
    return name


def to_huggingface(parameters: Arrays, model_type: str = "bert") -> dict[str, np.ndarray]:
    """Parameters under Hugging Face names; linear layers as PyTorch keeps them, [outputs, inputs]."""
    return {
        huggingface_name(name, model_type): np.ascontiguousarray(_transposed(name, np.asarray(value)))
        for name, value in parameters.items()
    }


def from_huggingface(
    tensors: Mapping[str, np.ndarray], shapes: Arrays, origin: str, model_type: str = "bert"
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Picks the parameters of a model out of Hugging Face tensors.

    Args:
        tensors: by Hugging Face name, the encoder's with or without prefix (`bert.`).
        shapes: the wanted parameters; values have a `shape`.
        origin: where the tensors are from, for messages.
        model_type: a key of `FAMILIES`.

    Returns:
        The parameters found (float32), and a report.

    Raises:
        InputError: if a tensor's shape is not the wanted one.
    """
    found, report = match(tensors, shapes, model_type)
    parameters = {}
    for name, stored in found.items():
        value = _transposed(name, np.asarray(tensors[stored], np.float32))
        if value.shape != shapes[name].shape:
            raise InputError(
                f"{origin}: tensor {stored} has shape {value.shape}, the model wants {shapes[name].shape}; "
                "config.json and weights do not belong together"
            )
        parameters[name] = np.ascontiguousarray(value)
    return parameters, report


def match(names: Iterable[str], wanted: Iterable[str], model_type: str = "bert") -> tuple[dict[str, str], LoadReport]:
    """The names of those of the stored tensors that are wanted parameters, by the latters' names; and a report."""
    available = {_current_name(name, FAMILIES[model_type].prefix): name for name in names}
    found = {name: available.pop(huggingface_name(name, model_type), None) for name in wanted}
    stored = {name: tensor for name, tensor in found.items() if tensor is not None}
    left_over = [name for name in available if not DERIVED.search(name)]
    return stored, LoadReport(list(stored), [name for name in found if name not in stored], left_over)


def read_config(directory: Path) -> dict:
    """The content of config.json.

    Raises:
        InputError: if it is missing or broken.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: no config.json; this is not a Hugging Face model directory")
    return read_json(path)


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, the objective's own modules included.

    Raises:
        InputError: if there are no safetensors weights, or a file is broken.
    """
    tensors = {}
    for file in weights_files(directory):
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118, it is no dictionary
                tensors[name] = np.asarray(opened.get_tensor(name), np.float32)
    return tensors


def tensor_names(directory: Path) -> list[str]:
    """Names of a directory's tensors, which are not read; errors as of `read_tensors`."""
    names = []
    for file in weights_files(directory):
        with _opened(file) as opened:
            names += opened.keys()
    return names


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        # The flax framework, unlike numpy's, knows bfloat16.
        with safe_open(file, "flax") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read as safetensors ({error}); fetch or export it again") from error


def weights_files(directory: Path) -> list[Path]:
    """The files of a directory's tensors.

    Raises:
        InputError: if there are none, or pickled ones only; the message says how to convert these.
    """
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    elif index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InputError(f"{index}: no weight_map from tensors to files; fetch or export it again")
        # Only files of this directory, whatever the map says.
        files = [directory / Path(name).name for name in sorted(set(weight_map.values()))]
    elif pickled := _pickled(directory):
        raise InputError(
            f"{pickled[0]}: pickled weights are not read, because unpickling can run code from the file; this converts "
            "them without running any, and needs PyTorch: python -c "
            f'"import torch; from safetensors.torch import save_file; save_file({{k: v.contiguous().clone() '
            f"for f in {[str(file) for file in pickled]} for k, v in torch.load(f, 'cpu', weights_only=True).items()}}"
            f", '{directory / 'model.safetensors'}', {{'format': 'pt'}})\""
        )
    else:
        raise InputError(
            f"{directory}: no model.safetensors; this is not a Hugging Face model directory, or its weights are "
            "pickled (pytorch_model.bin), which are not fetched from the Hub: if so, `hf download MODEL --local-dir "
            "DIR` and name DIR, and you are told how to convert them"
        )
    if (directory / "objective.safetensors").is_file():
        files.append(directory / "objective.safetensors")
    return files


def _pickled(directory: Path) -> list[Path]:
    """Files of pickled weights; others than Hugging Face's may be anything."""
    return sorted(directory.glob("pytorch_model*.bin")) or sorted(
        file for suffix in ("bin", "pt", "pkl") for file in directory.glob(f"*.{suffix}")
    )


def save_encoder(
    directory: Path,
    config: BertConfig,
    parameters: Arrays,
    tokenizer: "PreTrainedTokenizerBase",
    settings: EncoderSettings,
) -> None:
    """Writes a directory that `AutoModel`, `AutoTokenizer` and `SentenceTransformer` open.

    Where encoders are untied, it holds two such directories, `query/` and `passage/`.

    The pooler, which `AutoModel` expects and retrieval does not use, becomes tanh of the [CLS] state: an identity
    matrix and no bias.

    Args:
        directory: must not exist yet, or be an earlier export, which is replaced.
        config: sizes of the encoder.
        parameters: those of the encoder that `settings` describe; other modules are left out.
        tokenizer: the encoder's.
        settings: how texts become embeddings.
    """
    encoders = {kind: of_kind(parameters, kind) for kind in KINDS} if settings.untie_encoder else {"": parameters}
    files: dict[str, object] = {}
    weights: dict[str, dict[str, np.ndarray]] = {}
    for folder, of_encoder in encoders.items():
        # Whoever opens an encoder of queries alone cuts queries where we do.
        own_settings = dataclasses.replace(settings, max_length=settings.max_length_of(folder))
        own_files, own_weights = _encoder(config, of_encoder, tokenizer, own_settings)
        files |= {str(Path(folder, name)): content for name, content in own_files.items()}
        weights |= {str(Path(folder, name)): tensors for name, tensors in own_weights.items()}
    _write(directory, files, weights, tokenizer, list(encoders))


def _encoder(
    config: BertConfig,
    parameters: Arrays,
    tokenizer: "PreTrainedTokenizerBase",
    settings: EncoderSettings,
) -> tuple[dict[str, object], dict[str, dict[str, np.ndarray]]]:
    """Files and weights of one encoder's directory."""
    family = FAMILIES[config.model_type]

    def module(prefix: str) -> dict[str, np.ndarray]:
        own = {name: value for name, value in parameters.items() if name.startswith(prefix)}
        return to_huggingface(own, config.model_type)

    tensors = {name.removeprefix(family.prefix): value for name, value in module("bert.").items()}
    tensors["pooler.dense.weight"] = np.eye(config.hidden_size, dtype=np.float32)
    tensors["pooler.dense.bias"] = np.zeros(config.hidden_size, np.float32)
    weights = {"model.safetensors": tensors}
    modules = {"Transformer": "", "Pooling": POOLING}
    if settings.projection:
        modules["Dense"] = DENSE
        linear = {f"linear.{name.removeprefix('projection.')}": x for name, x in module("projection.").items()}
        weights[f"{DENSE}/model.safetensors"] = linear
    if settings.normalize:
        modules["Normalize"] = f"{len(modules)}_Normalize"
    prompts = {QUERY_PROMPTS[0]: settings.query_prompt, PASSAGE_PROMPTS[0]: settings.passage_prompt}
    files: dict[str, object] = {
        "config.json": _config_json(config, "Model", tokenizer),
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{module}"}
            for i, (module, path) in enumerate(modules.items())
        ],
        f"{POOLING}/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": settings.pooling == "cls",
            "pooling_mode_mean_tokens": settings.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": settings.max_length, "do_lower_case": False},
        PROMPTS: {
            "prompts": {name: prompt for name, prompt in prompts.items() if prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if settings.normalize else "dot",
        },
        TEXTS: _of_texts(settings),
    }
    if settings.projection:
        files[f"{DENSE}/config.json"] = {
            "in_features": config.hidden_size,
            "out_features": settings.projection,
            "bias": True,
            "activation_function": NO_ACTIVATION,
        }
    if settings.lexical_top_k:
        files[f"{LEXICAL}/config.json"] = {"top_k": settings.lexical_top_k}
        weights[f"{LEXICAL}/model.safetensors"] = module("head.")
    return files, weights


def _of_texts(settings: EncoderSettings) -> dict[str, object]:
    return {key: getattr(settings, key) for key in OF_TEXTS}


def save_cross_encoder(
    directory: Path,
    config: BertConfig,
    parameters: Arrays,
    tokenizer: "PreTrainedTokenizerBase",
    settings: EncoderSettings,
) -> None:
    """Writes a directory that `AutoModelForSequenceClassification` and sentence-transformers' `CrossEncoder` open.

    Scores are logits: `CrossEncoder` puts them through no sigmoid, which would round those of the best passages to 1.

    Args:
        directory: as for `save_encoder`.
        config: sizes of the model.
        parameters: `bert.*` and `classifier.*`.
        tokenizer: the model's.
        settings: the longest pair in tokens, special ones included, and how passages become texts.
    """
    # One label is a number; Hugging Face knows it as regression.
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    activation = {"sentence_transformers": {"activation_fn": NO_ACTIVATION}}
    content = _config_json(config, "ForSequenceClassification", tokenizer) | labels | activation
    limited = copy.deepcopy(tokenizer)
    limited.model_max_length = settings.max_length
    tensors = to_huggingface(parameters, config.model_type)
    _write(directory, {"config.json": content, TEXTS: _of_texts(settings)}, {"model.safetensors": tensors}, limited)


def save_masked_lm(
    directory: Path,
    config: BertConfig,
    parameters: Arrays,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Writes a directory that `AutoModelForMaskedLM` opens and `init` continues pretraining from.

    Arguments as for `save_encoder`; `parameters` are those of a pretraining model.
    """
    language_model = {k: v for k, v in parameters.items() if k.startswith(("bert.", "head."))}
    objective = {k: v for k, v in parameters.items() if k not in language_model}
    _write(
        directory,
        {"config.json": _config_json(config, "ForMaskedLM", tokenizer)},
        {
            "model.safetensors": to_huggingface(language_model, config.model_type),
            **({"objective.safetensors": to_huggingface(objective, config.model_type)} if objective else {}),
        },
        tokenizer,
    )


def _write(
    directory: Path,
    files: Mapping[str, object],
    weights: Mapping[str, Mapping[str, np.ndarray]],
    tokenizer: "PreTrainedTokenizerBase",
    folders: Sequence[str] = ("",),
) -> None:
    """Writes everything beside `directory` first, so that a failure leaves what was there as it was.

    Args:
        directory: where to write.
        files: JSON by name.
        weights: tensors by name of their file.
        tokenizer: the model's.
        folders: of the directory, in which the tokenizer belongs.
    """
    if directory.exists() and (foreign := _foreign_files(directory)):
        raise InputError(f"{directory} holds {foreign[0]}, which no export wrote; choose another directory")
    temporary = directory.with_name(directory.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, tensors in weights.items():
        save_file(dict(tensors), temporary / name, metadata={"format": "pt"})
        (temporary / name).chmod(0o644)
    for folder in folders:
        tokenizer.save_pretrained(temporary / folder)
        if isinstance(tokenizer.backend_tokenizer.model, WordPiece):
            _write_vocabulary(tokenizer, temporary / folder / "vocab.txt")
    written = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
    (temporary / EXPORT).write_text(json.dumps({"files": [*written, EXPORT]}, indent=2) + "\n", encoding="utf-8")
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)


def add_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Adds files, by name, to an export; the next export may replace them with it."""
    listing = read_json(directory / EXPORT)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    listing["files"] = sorted({*listing["files"], *files})
    (directory / EXPORT).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")


def _foreign_files(directory: Path) -> list[str]:
    """Files in a directory that exports did not write into it; an export may replace it if there are none."""
    if not directory.is_dir():
        return ["a file of this name"]
    own = {listing.parent / name for listing in directory.rglob(EXPORT) for name in read_json(listing).get("files", [])}
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and path not in own
    )


def _write_vocabulary(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """The vocabulary, a word a line, for clients that do not read tokenizer.json."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    path.write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")


def _config_json(config: BertConfig, architecture: str, tokenizer: "PreTrainedTokenizerBase") -> dict:
    content = {
        "architectures": [FAMILIES[config.model_type].classes + architecture],
        **dataclasses.asdict(config),
        "position_embedding_type": "absolute",
        "dtype": "float32",
    }
    if config.model_type != "bert":  # RoBERTa calls them <s> and </s>
        content |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return content


def _transposed(name: str, value: np.ndarray) -> np.ndarray:
    return value.T if name.endswith(".kernel") else value


def _current_name(name: str, prefix: str) -> str:
    """A stored tensor's name as the masked language model, the decoder and the projection have it today."""
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    name = re.sub(r"^linear\.", "projection.", name)  # as sentence-transformers' Dense calls it
    return prefix + name if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def _modules(names: list[str]) -> list[str]:
    """The outermost modules that some parameters belong to."""
    nested = ("bert.", "roberta.", "cls.", *(f"{kind}." for kind in KINDS))
    return sorted({".".join(name.split(".")[: 2 if name.startswith(nested) else 1]) for name in names})
