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
from retromae_jax.models.text_encoder import KINDS, of_kind

# The sentence-transformers modules that an encoder may consist of, in this order.
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on disk.

    Attributes:
        directory: a run's or Hugging Face's.
        config: family and sizes of the encoder.
        tokenizer: directory of the tokenizer.
        settings: how the model makes embeddings.
        modules: directories of further modules' weights.
        kind: of text, where this is the encoder of one kind in a run whose encoders are untied.
    """

    directory: Path
    config: BertConfig
    tokenizer: Path
    settings: EncoderSettings
    modules: tuple[Path, ...] = ()
    kind: str = ""

    def of_kind(self, kind: str) -> "Source":
        """The encoder of texts of a kind: where encoders are not untied, this one."""
        if not self.settings.untie_encoder:
            return self
        if not train_state.is_run(self.directory):
            return open_model(str(self.directory / kind))
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, untie_encoder=False), kind=kind)

    def has_head(self) -> bool:
        """Whether there is a masked-language-model head."""
        encoder = self.of_kind(KINDS[0])
        if train_state.is_run(self.directory):
            run = train_state.Run(self.directory)
            names = list(run.checkpoints.structure("parameters"))
            run.close()
            return f"{encoder.kind}.head.bias".removeprefix(".") in names
        names = [name for path in (encoder.directory, *encoder.modules) for name in huggingface.tensor_names(path)]
        return huggingface.huggingface_name("head.bias", self.config.model_type) in names

    def parameters(self, shapes: Parameters) -> tuple[Parameters, LoadReport]:
        """Reads the parameters that `shapes` names, as far as the model has them.

        Untied encoders that are wanted of one that is not both begin as this one.

        Raises:
            InputError: if one encoder is wanted of a model that has two, or files are broken.
        """
        if any(name.startswith(f"{KINDS[0]}.") for name in shapes):
            return self._parameters_of_kinds(shapes)
        if self.settings.untie_encoder:
            raise InputError(
                f"{self.directory} holds two encoders, for queries and for passages; name one of those that "
                f"train.export writes, {' or '.join(f'{kind}/' for kind in KINDS)}; only fine-tuning with "
                "--config.untie_encoder=True goes on from both"
            )
        if not train_state.is_run(self.directory):
            tensors = huggingface.read_tensors(self.directory)
            for module in self.modules:
                tensors |= huggingface.read_tensors(module)
            return huggingface.from_huggingface(tensors, shapes, str(self.directory), self.config.model_type)
        run = train_state.Run(self.directory)
        stored = run.restore_parameters()
        run.close()
        if self.kind:
            stored = of_kind(stored, self.kind)
        loaded = {name: stored[name] for name in shapes if name in stored}
        fresh = [name for name in shapes if name not in stored]
        return loaded, LoadReport(list(loaded), fresh, [name for name in stored if name not in shapes])

    def _parameters_of_kinds(self, shapes: Parameters) -> tuple[Parameters, LoadReport]:
        parameters, reports = {}, {}
        for kind in KINDS:
            loaded, reports[kind] = self.of_kind(kind).parameters(of_kind(shapes, kind))
            parameters |= {f"{kind}.{name}": value for name, value in loaded.items()}

        def named(field: str) -> list[str]:
            return [f"{kind}.{name}" for kind, report in reports.items() for name in getattr(report, field)]

        return parameters, LoadReport(named("loaded"), named("fresh"), named("left_over"))


def open_model(name_or_directory: str) -> Source:
    """Finds a model and reads everything but its weights.

    Raises:
        InputError: if there is none, or it is of no known model type.
    """
    directory = resolve(name_or_directory)
    if train_state.is_run(directory):
        description = train_state.read_description(directory)
        origin = directory / "run.json"
        config = BertConfig.from_huggingface(description["model"], str(origin))
        try:
            settings = EncoderSettings(**description["encoder"])
        except TypeError as error:
            raise InputError(f"{origin}: encoder {shown(description['encoder'])}: {error}; restore the file") from error
        return Source(directory, config, directory / "tokenizer", settings)
    if not (directory / "config.json").is_file() and all((directory / kind).is_dir() for kind in KINDS):
        return _open_untied(directory)
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
    pooling = "cls"
    if "Pooling" in paths:
        modes = _read_if_there(paths["Pooling"] / "config.json")
        pooling = _pooling(modes, paths["Pooling"] / "config.json")
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
    settings = EncoderSettings(pooling, "Normalize" in paths, max_length, projection, lexical_top_k)
    return Source(transformer, config, transformer, settings, tuple(further))


def _open_untied(directory: Path) -> Source:
    query, passage = (open_model(str(directory / kind)) for kind in KINDS)
    # Their longest texts may differ, and each is cut to the encoder's own.
    if (query.config, dataclasses.replace(query.settings, max_length=0)) != (
        passage.config,
        dataclasses.replace(passage.settings, max_length=0),
    ):
        raise InputError(
            f"{directory}: the encoders {' and '.join(f'{kind}/' for kind in KINDS)} differ in their sizes or in how "
            "they make embeddings; export both of one run"
        )
    settings = dataclasses.replace(passage.settings, untie_encoder=True)
    return Source(directory, passage.config, passage.tokenizer, settings)


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
