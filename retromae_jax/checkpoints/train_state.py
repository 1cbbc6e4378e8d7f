"""A training run on disk: everything that decides how it goes on.

A checkpoint holds parameters, optimizer state and the number of finished steps. Data order, masks and dropout are
pure functions of the config's seed and that number, so a resumed run equals one that never stopped, bit for bit.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from retromae_jax import files, hosts, parallel
from retromae_jax.checkpoints.directory import CheckpointDirectory
from retromae_jax.errors import InputError
from retromae_jax.logging import duration, say
from retromae_jax.models.bert import BertConfig
from retromae_jax.models.parameters import Parameters
from retromae_jax.models.pooling import EncoderSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Settings that a resumed run may change; every other one decides what the run computes.
MAY_CHANGE = (
    "workdir",
    "sources",
    "text_field",
    "workers",
    "fsdp",
    "gradient_cache_chunk",
    "log_every",
    "trackers",
    "probe_collection",
    "probe_split",
    "probe_every",
    "probe_passages",
    "checkpoint_every",
    "checkpoints_to_keep",
    "stall_minutes",
    "skipped_steps_allowed",
    "debug_nans",
)
# How long to wait before a run's last checkpoint is tried again.
SECONDS_BETWEEN_ATTEMPTS = (10.0, 60.0)


class TrainState(NamedTuple):
    """What a training step maps to its successor.

    Attributes:
        step: int32 scalar, finished optimizer steps.
        parameters: by name, float32.
        optimizer: the optimizer's state.
    """

    step: jax.Array
    parameters: Parameters
    optimizer: Any


class Run:
    """A run's directory: `run.json` (what the run is), `tokenizer/` and `checkpoints/STEP/`.

    Args:
        directory: the run's directory.
        checkpoints_to_keep: older checkpoints are deleted; None opens a run for reading only.

    Raises:
        InputError: if the directory is none, or cannot be made.
    """

    def __init__(self, directory: str | Path, checkpoints_to_keep: int | None = None):
        self.directory = Path(directory).expanduser().absolute()
        if checkpoints_to_keep is not None:
            if "://" in str(directory):
                raise InputError(
                    f"{directory} is an address, not a directory; mount that storage on all hosts and give "
                    "--config.workdir the directory (docs/tpu.md)"
                )
            try:
                (self.directory / "checkpoints").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{self.directory}: {error.strerror}; choose another --config.workdir") from error
        self.command = ""
        self._lock = contextlib.ExitStack()
        self.checkpoints = CheckpointDirectory(
            self.directory / "checkpoints", ("parameters", "optimizer"), checkpoints_to_keep
        )

    def begin(
        self,
        command: str,
        model: BertConfig,
        encoder: EncoderSettings,
        config: Mapping[str, Any],
        data: Mapping[str, int],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        """Writes what the run is, or checks that the run in the directory is this one.

        Args:
            command: what the run does.
            model: sizes of the encoder.
            encoder: how the run's model makes embeddings.
            config: the run's settings.
            data: sizes of the training data.
            tokenizer: the model's.

        Raises:
            InputError: if the directory holds checkpoints of a run with other settings or other data, is one that
                another process trains in, or cannot be written to; or if directory, settings or data are not the same
                on all hosts.
        """
        self.command = command
        description = json.loads(
            json.dumps(
                {
                    "command": command,
                    "model": dataclasses.asdict(model),
                    "encoder": dataclasses.asdict(encoder),
                    "config": config,
                    "data": data,
                }
            )
        )
        hosts.check_shared(self.directory, "--config.workdir")
        # Hosts may mount it at different places.
        hosts.check_same(json.dumps(description | {"config": description["config"] | {"workdir": ""}}))
        if is_run(self.directory) and self.checkpoints.steps():
            before = read_description(self.directory)
            old, new = (
                {**one["config"], **{f"number of {name}": count for name, count in one["data"].items()}}
                for one in (before, description)
            )
            different = [
                f"{key} (there {old.get(key)!r}, here {new.get(key)!r})"
                for key in sorted(old.keys() | new.keys())
                if key not in MAY_CHANGE and old.get(key) != new.get(key)
            ]
            if different:
                raise InputError(
                    f"{self.directory} holds a run with other settings or data: {'; '.join(different)}. "
                    "Choose another --config.workdir, or remove that directory"
                )
        try:
            # All wait for this, so that all have compared before the first one removes anything.
            self._lock.enter_context(hosts.alone(self.directory / "lock", self.directory, "--config.workdir"))
            if hosts.is_first():
                self.checkpoints.clear()
                tokenizer.save_pretrained(self.directory / "tokenizer")
                files.replace(self.directory / "run.json", json.dumps(description, indent=2) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.directory} cannot be written to: {error.strerror}; make room, or choose another "
                "--config.workdir"
            ) from error

    def save(self, state: TrainState) -> None:
        """Starts saving a checkpoint, if that of this step is not there yet; the state may be used on at once.

        A failure is said, and costs this checkpoint only.
        """
        state = parallel.held_by_all(state)
        self.checkpoints.save(int(state.step), {"parameters": state.parameters, "optimizer": state.optimizer})

    def check(self) -> None:
        """Says it, if the checkpoint that is being saved has failed, and removes older ones if it is on disk."""
        self.checkpoints.check()

    def save_last(self, state: TrainState) -> None:
        """Saves a checkpoint, waits until it is on disk, and does not give up at the first failure.

        Raises:
            InputError: if it cannot be saved.
        """
        for seconds in (*SECONDS_BETWEEN_ATTEMPTS, None):
            self.save(state)
            self.checkpoints.check(wait=True)
            if hosts.all_hold(not self.checkpoints.failure):
                return
            if seconds is not None:
                say(f"trying again in {duration(seconds)}")
                time.sleep(seconds)
        raise InputError(
            f"the checkpoint of step {int(state.step):,} could not be saved in {self.checkpoints.path}: "
            f"{self.checkpoints.failure}; mend that and start the same command again: it goes on from step "
            f"{self.checkpoints.saved or 0:,}"
        )

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint that is not damaged, with the shardings of `state`; or `state` if there is none.

        Raises:
            InputError: if there are checkpoints, and none can be read.
        """
        found = self.checkpoints.restore({"parameters": state.parameters, "optimizer": state.optimizer})
        if found is None:
            return state
        step, items = found
        count = jax.device_put(np.int32(step), state.step.sharding)
        return TrainState(count, items["parameters"], items["optimizer"])

    def restore_parameters(self, step: int | None = None) -> Parameters:
        """The parameters of the newest checkpoint that is not damaged, or of that of `step`, on one device.

        Raises:
            InputError: if the run has no checkpoint yet, or none that can be read.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = {
            name: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=device)
            for name, stored in self.checkpoints.structure("parameters", step).items()
        }
        found = self.checkpoints.restore({"parameters": shapes}, step)
        assert found is not None, "of its checkpoints, at least one has a structure"
        return found[1]["parameters"]

    def close(self) -> None:
        """Waits until checkpoints are on disk; then others may train here."""
        self.checkpoints.close()
        self._lock.close()


def is_run(directory: str | Path) -> bool:
    """Whether a directory is that of a training run."""
    return (Path(directory) / "run.json").is_file()


def run_of(directory: Path) -> tuple[Path, int | None] | None:
    """The run that a directory is of, with a step if it is that of one of the run's checkpoints; None if of no run."""
    if is_run(directory):
        return directory, None
    path = directory.absolute()
    if path.name.isdecimal() and path.parent.name == "checkpoints" and is_run(path.parents[1]):
        return path.parents[1], int(path.name)
    return None


def read_description(directory: str | Path) -> dict[str, Any]:
    """The content of a run's `run.json`.

    Raises:
        InputError: if it is broken.
    """
    path, remedy = Path(directory) / "run.json", "remove the directory or restore the file"
    description = files.read_json(path, dict, remedy)
    for key, kind in {"command": str, "model": dict, "encoder": dict, "config": dict, "data": dict}.items():
        if not isinstance(description.get(key), kind):
            raise InputError(f"{path}: it does not say the run's {key}; {remedy}")
    return description
