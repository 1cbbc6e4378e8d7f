"""A training run on disk: everything that decides how it goes on.

A checkpoint holds parameters, optimizer state and the number of finished steps. Data order, masks and dropout are
pure functions of the config's seed and that number, so a resumed run equals one that never stopped, bit for bit.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from retromae_jax import hosts, parallel
from retromae_jax.errors import InputError
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
    "checkpoint_every",
    "checkpoints_to_keep",
)


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
        handler = ocp.StandardCheckpointHandler
        self.checkpoints = ocp.CheckpointManager(
            self.directory / "checkpoints",
            item_handlers={"parameters": handler(), "optimizer": handler()},
            options=ocp.CheckpointManagerOptions(max_to_keep=checkpoints_to_keep, create=False),
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
            InputError: if the directory holds checkpoints of a run with other settings or other data, or cannot be
                written to; or if directory, settings or data are not the same on all hosts.
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
        if is_run(self.directory) and self.checkpoints.latest_step() is not None:
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
        hosts.wait_for_all("compared")
        if hosts.is_first():
            tokenizer.save_pretrained(self.directory / "tokenizer")
            path = self.directory / "run.json"
            temporary = path.with_suffix(".incomplete")
            temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            temporary.rename(path)

    def save(self, state: TrainState) -> None:
        """Starts saving a checkpoint, if that of this step is not there yet; the state may be used on at once."""
        step = int(state.step)
        if step != self.checkpoints.latest_step():
            state = parallel.held_by_all(state)
            items = {
                "parameters": ocp.args.StandardSave(state.parameters),
                "optimizer": ocp.args.StandardSave(state.optimizer),
            }
            self.checkpoints.save(step, args=ocp.args.Composite(**items))

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint with the shardings of `state`, or `state` itself if there is none."""
        step = self.checkpoints.latest_step()
        if step is None:
            return state

        def like(tree):
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

        items = {
            "parameters": ocp.args.StandardRestore(like(state.parameters)),
            "optimizer": ocp.args.StandardRestore(like(state.optimizer)),
        }
        restored = self.checkpoints.restore(step, args=ocp.args.Composite(**items))
        count = jax.device_put(np.int32(step), state.step.sharding)
        return TrainState(count, restored["parameters"], restored["optimizer"])

    def restore_parameters(self) -> Parameters:
        """The parameters of the newest checkpoint, on one device.

        Raises:
            InputError: if the run has no checkpoint yet.
        """
        step = self.checkpoints.latest_step()
        if step is None:
            raise InputError(f"{self.directory}: the run has no checkpoint yet")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = {
            name: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=device)
            for name, stored in self.checkpoints.item_metadata(step)["parameters"].items()
        }
        args = ocp.args.Composite(parameters=ocp.args.StandardRestore(shapes))
        return self.checkpoints.restore(step, args=args)["parameters"]

    def close(self) -> None:
        """Waits until checkpoints are on disk."""
        self.checkpoints.wait_until_finished()
        self.checkpoints.close()


def is_run(directory: str | Path) -> bool:
    """Whether a directory is that of a training run."""
    return (Path(directory) / "run.json").is_file()


def read_description(directory: str | Path) -> dict[str, Any]:
    """The content of a run's `run.json`.

    Raises:
        InputError: if it is broken.
    """
    path = Path(directory) / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}; remove the directory or restore the file") from error
