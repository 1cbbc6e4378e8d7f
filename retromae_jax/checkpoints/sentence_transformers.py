"""What a model's directory says of its embeddings: sentence-transformers' modules, and the lexical part beside them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retromae_jax.checkpoints import huggingface
from retromae_jax.errors import InputError, shown
from retromae_jax.files import read_json
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.pooling import EncoderSettings

# The modules that an encoder may consist of, in this order.
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def read(directory: Path) -> tuple[Path, BertConfig, EncoderSettings, tuple[Path, ...]]:
    """Reads everything but weights.

    Args:
        directory: one that `AutoModel` or `SentenceTransformer` opens; without modules it is one transformer with `cls`
            pooling.

    Returns:
        The transformer's directory and sizes, how texts become embeddings, and directories of further modules' weights.

    Raises:
        InputError: if a file is missing or broken, or the modules make embeddings in a way that is unknown here.
    """
    modules = _modules(directory)
    paths = dict(modules)
    if unknown := paths.keys() - set(MODULES):
        raise InputError(
            f"{directory / 'modules.json'}: the modules {', '.join(sorted(unknown))} are not supported; "
            f"{', '.join(MODULES)} are"
        )
    if list(paths) != [module for module in MODULES if module in paths] or len(paths) < len(modules):
        raise InputError(
            f"{directory / 'modules.json'}: the modules {', '.join(paths)} follow each other in another order than "
            f"{', '.join(MODULES)}, each at most once; that is not supported"
        )
    transformer = paths.get("Transformer", directory)
    config = BertConfig.from_huggingface(huggingface.read_config(transformer), str(transformer / "config.json"))
    query_prompt, passage_prompt = _prompts(directory / huggingface.PROMPTS)
    pooling = "cls"
    if "Pooling" in paths:
        modes = _read_if_there(paths["Pooling"] / "config.json")
        pooling = _pooling(modes, paths["Pooling"] / "config.json", bool(query_prompt or passage_prompt))
    lengths = _read_if_there(transformer / "sentence_bert_config.json")
    longest = lengths.get("max_seq_length") or config.max_length
    if not isinstance(longest, int):
        raise InputError(f"{transformer / 'sentence_bert_config.json'}: max_seq_length {shown(longest)} is no number")
    max_length = min(longest, config.max_length)
    projection, lexical_top_k, further = 0, 0, []
    if "Dense" in paths:
        projection = _projection(paths["Dense"] / "config.json", config)
        further.append(paths["Dense"])
    if (directory / huggingface.LEXICAL).is_dir():
        lexical_top_k = _lexical_top_k(directory / huggingface.LEXICAL / "config.json", config)
        further.append(directory / huggingface.LEXICAL)
    settings = EncoderSettings(
        pooling,
        "Normalize" in paths,
        max_length,
        projection,
        lexical_top_k,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        **_texts(directory / huggingface.TEXTS),
    )
    return transformer, config, settings, tuple(further)


def _projection(path: Path, config: BertConfig) -> int:
    """The width that a Dense module gives embeddings."""
    dense = read_json(path)
    unlike = {
        key: dense[key]
        for key, value in {
            "in_features": config.hidden_size,
            "bias": True,
            "activation_function": huggingface.NO_ACTIVATION,
            "use_residual": False,
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        }.items()
        if dense.get(key, value) not in (value, None)
    }
    if unlike or "activation_function" not in dense:  # without, it would be tanh
        raise InputError(
            f"{path}: only a linear layer of {config.hidden_size} inputs with a bias and without activation is "
            f"supported; this one has {shown(unlike or 'tanh')}"
        )
    if not isinstance(width := dense.get("out_features"), int):
        raise InputError(f"{path}: out_features {shown(width)} is no number; fetch or export the model again")
    return width


def _lexical_top_k(path: Path, config: BertConfig) -> int:
    """How many words of the vocabulary an embedding's lexical part has."""
    top_k = read_json(path).get("top_k")
    if not isinstance(top_k, int) or not 1 <= top_k <= config.vocab_size:
        raise InputError(
            f"{path}: top_k is {shown(top_k)}, not a number of words between 1 and the vocabulary's "
            f"{config.vocab_size}; export the model again"
        )
    return top_k


def _prompts(path: Path) -> tuple[str, str]:
    """What stands before queries and before passages: what `encode_query` and `encode_document` would put there."""
    prompts = _read_if_there(path).get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"{path}: prompts {shown(prompts)} are none by name; fetch or export the model again")

    def first(names: Sequence[str]) -> str:
        found = next((prompts[name] for name in names if name in prompts), None)
        if not isinstance(found or "", str):
            raise InputError(f"{path}: the prompt {shown(found)} is no text; fetch or export the model again")
        return found or ""

    return first(huggingface.QUERY_PROMPTS), first(huggingface.PASSAGE_PROMPTS)


def _texts(path: Path) -> dict[str, Any]:
    """How queries and passages become texts, as far as the model says."""
    content = _read_if_there(path)
    for key, value in content.items():
        kind = huggingface.OF_TEXTS.get(key)
        if kind is None or type(value) is not kind:
            raise InputError(f"{path}: {shown(key)}: {shown(value)} is not understood; fetch or export the model again")
    return content


def _pooling(modes: dict, path: Path, has_prompts: bool) -> str:
    if "pooling_mode" in modes:
        found = [modes["pooling_mode"]]
    else:
        found = [name.removeprefix("pooling_mode_") for name, on in modes.items() if on is True]
        found = [name for name in found if name != "include_prompt"]
    if has_prompts and modes.get("include_prompt") is False and found not in (["cls"], ["cls_token"]):
        raise InputError(f"{path}: prompts are left out of pooling (include_prompt), which is not supported")
    for ours, theirs in (("cls", {"cls", "cls_token"}), ("mean", {"mean", "mean_tokens"})):
        if len(found) == 1 and found[0] in theirs:
            return ours
    raise InputError(f"{path}: pooling {shown(found)} is not supported; `cls` and `mean` are")


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """Types and directories of a sentence-transformers model's modules."""
    path = directory / "modules.json"
    modules = []
    for module in read_json(path, list) if path.is_file() else ():
        match module:
            # A path out of the directory is none of a module's.
            case {"type": str(kind), "path": str(name)} if re.fullmatch(r"[\w.-]{0,99}", name) and name != "..":
                modules.append((kind.rsplit(".", 1)[-1], directory / name))
            case _:
                raise InputError(
                    f"{path}: {shown(module)} is no type and directory of a module; fetch or export it again"
                )
    return modules


def _read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}
