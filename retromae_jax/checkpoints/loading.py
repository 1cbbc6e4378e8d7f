"""Models to start from: Hugging Face directories, Hub names and run directories, all opened alike."""

import dataclasses
import re
from pathlib import Path

from retromae_jax.checkpoints import huggingface, train_state
from retromae_jax.checkpoints.hub import resolve
from retromae_jax.checkpoints.huggingface import LoadReport
from retromae_jax.errors import InputError, shown
from retromae_jax.files import read_json
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.parameters import Parameters
from retromae_jax.models.pooling import EncoderSettings

# The sentence-transformers modules that an encoder may consist of.
MODULES = ("Transformer", "Pooling", "Normalize")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on disk.

    Attributes:
        directory: a run's or Hugging Face's.
        config: family and sizes of the encoder.
        tokenizer: directory of the tokenizer.
        settings: how the model makes embeddings.
    """

    directory: Path
    config: BertConfig
    tokenizer: Path
    settings: EncoderSettings

    def parameters(self, shapes: Parameters) -> tuple[Parameters, LoadReport]:
        """Reads the parameters that `shapes` names, as far as the model has them."""
        if not train_state.is_run(self.directory):
            tensors = huggingface.read_tensors(self.directory)
            return huggingface.from_huggingface(tensors, shapes, str(self.directory), self.config.model_type)
        run = train_state.Run(self.directory)
        stored = run.restore_parameters()
        run.close()
        loaded = {name: stored[name] for name in shapes if name in stored}
        fresh = [name for name in shapes if name not in stored]
        return loaded, LoadReport(list(loaded), fresh, [name for name in stored if name not in shapes])


def open_model(name_or_directory: str) -> Source:
    """Finds a model and reads everything but its weights.

    Raises:
        InputError: if there is none, or it is of no known model type.
    """
    directory = resolve(name_or_directory)
    if train_state.is_run(directory):
        description = train_state.read_description(directory)
        origin, encoder = directory / "run.json", description["encoder"]
        if encoder.keys() != {field.name for field in dataclasses.fields(EncoderSettings)}:
            raise InputError(f"{origin}: encoder {shown(encoder)} is not complete; restore the file")
        config = BertConfig.from_huggingface(description["model"], str(origin))
        return Source(directory, config, directory / "tokenizer", EncoderSettings(**encoder))
    paths = _modules(directory)
    if unknown := paths.keys() - MODULES:
        raise InputError(
            f"{directory / 'modules.json'}: the modules {', '.join(sorted(unknown))} are not supported; "
            f"{', '.join(MODULES)} are"
        )
    transformer = paths.get("Transformer", directory)
    config = BertConfig.from_huggingface(huggingface.read_config(transformer), str(transformer / "config.json"))
    pooling = "cls"
    if "Pooling" in paths:
        modes = _read_if_there(paths["Pooling"] / "config.json")
        pooling = _pooling(modes, paths["Pooling"] / "config.json")
    lengths = _read_if_there(transformer / "sentence_bert_config.json")
    longest = lengths.get("max_seq_length") or config.max_length
    if not isinstance(longest, int):
        raise InputError(f"{transformer / 'sentence_bert_config.json'}: max_seq_length {shown(longest)} is no number")
    max_length = min(longest, config.max_length)
    settings = EncoderSettings(pooling, "Normalize" in paths, max_length)
    return Source(transformer, config, transformer, settings)


def _pooling(modes: dict, path: Path) -> str:
    if "pooling_mode" in modes:
        found = [modes["pooling_mode"]]
    else:
        found = [name.removeprefix("pooling_mode_") for name, on in modes.items() if on is True]
        found = [name for name in found if name != "include_prompt"]
    for ours, theirs in (("cls", {"cls", "cls_token"}), ("mean", {"mean", "mean_tokens"})):
        if len(found) == 1 and found[0] in theirs:
            return ours
    raise InputError(f"{path}: pooling {shown(found)} is not supported; `cls` and `mean` are")


def _modules(directory: Path) -> dict[str, Path]:
    """The directories of a sentence-transformers model's modules, by their type."""
    path = directory / "modules.json"
    paths = {}
    for module in read_json(path, list) if path.is_file() else ():
        match module:
            # A path out of the directory is none of a module's.
            case {"type": str(kind), "path": str(name)} if re.fullmatch(r"[\w.-]{0,99}", name) and name != "..":
                paths[kind.rsplit(".", 1)[-1]] = directory / name
            case _:
                raise InputError(
                    f"{path}: {shown(module)} is no type and directory of a module; fetch or export it again"
                )
    return paths


def _read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}
