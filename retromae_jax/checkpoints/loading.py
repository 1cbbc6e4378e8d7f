"""Models to start from: Hugging Face directories, Hub names, runs and their checkpoints, all opened alike."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from retromae_jax.checkpoints import huggingface, sentence_transformers, train_state
from retromae_jax.checkpoints.hub import resolve
from retromae_jax.checkpoints.huggingface import LoadReport
from retromae_jax.errors import InputError, shown
from retromae_jax.models.bert import Bert, BertConfig, Computation
from retromae_jax.models.parameters import Arrays, structure
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import KINDS, of_kind


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
        step: of a run's checkpoint; None takes the newest that is not damaged.
    """

    directory: Path
    config: BertConfig
    tokenizer: Path
    settings: EncoderSettings
    modules: tuple[Path, ...] = ()
    kind: str = ""
    step: int | None = None

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
            names = list(run.checkpoints.structure("parameters", self.step))
            run.close()
            return f"{encoder.kind}.head.bias".removeprefix(".") in names
        return bool(encoder._match(["head.bias"]).loaded)

    def check_encoder(self) -> None:
        """Checks, by their names, that all of the encoder's parameters are there; none is read.

        Raises:
            InputError: if some are not.
        """
        if train_state.is_run(self.directory):
            return  # which has written them together with their sizes
        _, shapes = structure(lambda rngs: Bert(self.config, Computation(), rngs))
        for kind in KINDS if self.settings.untie_encoder else ("",):
            encoder = self.of_kind(kind)
            report = encoder._match([f"bert.{name}" for name in shapes])
            if report.fresh:
                missing = [huggingface.huggingface_name(name, self.config.model_type) for name in report.fresh[:3]]
                others = f"; there are others, such as {', '.join(report.left_over[:3])}" if report.left_over else ""
                raise InputError(
                    f"{encoder.directory}: {len(report.fresh)} of the encoder's {len(shapes)} tensors are missing, "
                    f"such as {', '.join(missing)}{others}; mend the sizes in config.json or the tensors' names, or "
                    "fetch the model again"
                )

    def _match(self, wanted: Iterable[str]) -> LoadReport:
        """Which parameters a Hugging Face directory has."""
        names = [name for path in (self.directory, *self.modules) for name in huggingface.tensor_names(path)]
        return huggingface.match(names, wanted, self.config.model_type)[1]

    def parameters(self, shapes: Arrays) -> tuple[Arrays, LoadReport]:
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
        stored = run.restore_parameters(self.step)
        run.close()
        if self.kind:
            stored = of_kind(stored, self.kind)
        loaded = {name: stored[name] for name in shapes if name in stored}
        fresh = [name for name in shapes if name not in stored]
        return loaded, LoadReport(list(loaded), fresh, [name for name in stored if name not in shapes])

    def _parameters_of_kinds(self, shapes: Arrays) -> tuple[Arrays, LoadReport]:
        parameters: dict[str, jax.Array | np.ndarray] = {}
        reports = {}
        for kind in KINDS:
            loaded, reports[kind] = self.of_kind(kind).parameters(of_kind(shapes, kind))
            parameters |= {f"{kind}.{name}": value for name, value in loaded.items()}

        def named(field: str) -> list[str]:
            return [f"{kind}.{name}" for kind, report in reports.items() for name in getattr(report, field)]

        return parameters, LoadReport(named("loaded"), named("fresh"), named("left_over"))


def open_model(name_or_directory: str, weights: bool = True) -> Source:
    """Finds a model and reads everything but its weights.

    Args:
        name_or_directory: the model.
        weights: whether they will be read, too: then missing or pickled ones show here, before hours of work.

    Raises:
        InputError: if there is none, or it is of no known model type, or its weights are missing or pickled.
    """
    directory = resolve(name_or_directory)
    if run := train_state.run_of(directory):
        directory, step = run
        description = train_state.read_description(directory)
        origin = directory / "run.json"
        config = BertConfig.from_huggingface(description["model"], str(origin))
        try:
            settings = EncoderSettings(**description["encoder"])
        except TypeError as error:
            raise InputError(f"{origin}: encoder {shown(description['encoder'])}: {error}; restore the file") from error
        return Source(directory, config, directory / "tokenizer", settings, step=step)
    if not (directory / "config.json").is_file() and all((directory / kind).is_dir() for kind in KINDS):
        return _open_untied(directory)
    transformer, config, settings, modules = sentence_transformers.read(directory)
    for path in (transformer, *modules) if weights else ():
        huggingface.weights_files(path)
    return Source(transformer, config, transformer, settings, modules)


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
