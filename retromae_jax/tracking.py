"""Experiment trackers: a run's metrics to Weights & Biases and MLflow, where those are installed.

Where they send what they get, and under which name, follows from their own environment variables (WANDB_PROJECT,
WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...). A resumed training continues the same tracked run.
"""

import importlib
import importlib.util
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from retromae_jax import files
from retromae_jax.errors import InputError, one_line
from retromae_jax.logging import say

# In a run's directory: the ids of its tracked runs.
FILE = "trackers.json"


class Tracker(Protocol):
    """A tracked run.

    Attributes:
        id: of the tracked run.
    """

    id: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics of an optimizer step."""

    def close(self, has_failed: bool) -> None:
        """Sends what is left."""


class WeightsAndBiases:
    """A run of Weights & Biases; `known` is its id, if there is one already."""

    def __init__(self, name: str, known: str | None, config: Mapping[str, Any]):
        self.id = known or secrets.token_hex(4)
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(id=self.id, name=name, resume="allow", config=dict(config))
        # Its own count of steps only grows: what a killed run has sent of steps that are repeated would stop it.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class MLflow:
    """A run of MLflow; `known` is its id, if there is one already."""

    def __init__(self, name: str, known: str | None, config: Mapping[str, Any]):
        self._mlflow = importlib.import_module("mlflow")
        run = self._mlflow.start_run(run_id=known, run_name=None if known else name)
        self.id = run.info.run_id
        if not known:
            self._mlflow.log_params(dict(config))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        # It allows no other signs in names. In the background, or a server that does not answer would hold up steps.
        allowed = {re.sub(r"[^\w\-. :/]", "_at_", key): value for key, value in metrics.items()}
        self._mlflow.log_metrics(allowed, step=step, synchronous=False)

    def close(self, has_failed: bool) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.end_run("FAILED" if has_failed else "FINISHED")


TRACKERS: dict[str, Callable[[str, str | None, Mapping[str, Any]], Tracker]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def missing(names: Iterable[str]) -> list[str]:
    """Those of the trackers that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


class Trackers:
    """The tracked runs of a training; to be entered. Once it goes on, no trouble of theirs ends the training.

    Args:
        names: keys of `TRACKERS`.
        directory: the run's directory.
        config: the run's settings.

    Raises:
        InputError: if a tracker cannot be begun.
    """

    def __init__(self, names: Iterable[str], directory: Path, config: Mapping[str, Any]):
        path = directory / FILE
        ids = files.read_json(path, dict, "remove it, and tracked runs begin anew") if path.is_file() else {}
        self._trackers: dict[str, Tracker] = {}
        self._complained: set[str] = set()
        for name in names:
            try:
                self._trackers[name] = TRACKERS[name](directory.name, ids.get(name), config)
            except Exception as error:  # a tracker may raise anything
                raise InputError(f"trackers: {name} cannot be begun: {one_line(error)}") from error
            ids[name] = self._trackers[name].id
            files.replace(path, json.dumps(ids, indent=2) + "\n")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds metrics of optimizer step `step` (the number of finished steps)."""
        for name, tracker in self._trackers.items():
            try:
                tracker.write(step, metrics)
            except Exception as error:  # a tracker may raise anything
                self._complain(name, error)

    def _complain(self, name: str, error: Exception) -> None:
        if name not in self._complained:
            say(f"trackers: {name} does not take metrics: {one_line(error)}; metrics.jsonl has them all")
        self._complained.add(name)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception) -> None:
        for name, tracker in self._trackers.items():
            try:
                tracker.close(kind is not None)
            except Exception as error:  # a tracker may raise anything
                self._complain(name, error)
