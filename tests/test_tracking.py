"""Trackers: stand-ins for the packages, and, where they are installed, the packages themselves without a network."""

import json
import sys
import types

import pytest

from retromae_jax import tracking
from retromae_jax.errors import InputError
from retromae_jax.tracking import Trackers, missing

CONFIG = {"batch_size": 8, "model": {"hidden_size": 32}}


class Calls(list):
    """What was called with what."""

    def note(self, name, answer=None):
        def called(*args, **kwargs):
            self.append((name, *args, kwargs) if kwargs else (name, *args))
            return answer

        return called


@pytest.fixture
def wandb(monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(**{name: calls.note(name) for name in ("define_metric", "log", "finish")})
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=calls.note("init", run)))
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-1"))
    names = ("log_params", "log_metrics", "flush_async_logging", "end_run")
    module = types.SimpleNamespace(start_run=calls.note("start_run", run), **{name: calls.note(name) for name in names})
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return calls


def test_a_resumed_training_continues_the_same_tracked_runs(tmp_path, wandb, mlflow):
    for step in (3, 6):
        with Trackers(("wandb", "mlflow"), tmp_path, CONFIG) as trackers:
            trackers.write(step, {"loss": 2.5, "probe/nDCG@10": 0.5})
    ids = json.loads((tmp_path / tracking.FILE).read_text())
    assert ids == {"wandb": ids["wandb"], "mlflow": "run-1"}
    started = ("init", {"id": ids["wandb"], "name": tmp_path.name, "resume": "allow", "config": CONFIG})
    begun = [started, ("define_metric", "step"), ("define_metric", "*", {"step_metric": "step"})]
    logged = [[("log", {"step": step, "loss": 2.5, "probe/nDCG@10": 0.5})] for step in (3, 6)]
    finished = [("finish", {"exit_code": 0})]
    assert wandb == [*begun, *logged[0], *finished, *begun, *logged[1], *finished]
    assert mlflow == [
        ("start_run", {"run_id": None, "run_name": tmp_path.name}),
        ("log_params", CONFIG),
        ("log_metrics", {"loss": 2.5, "probe/nDCG_at_10": 0.5}, {"step": 3, "synchronous": False}),
        ("flush_async_logging",),
        ("end_run", "FINISHED"),
        ("start_run", {"run_id": "run-1", "run_name": None}),
        ("log_metrics", {"loss": 2.5, "probe/nDCG_at_10": 0.5}, {"step": 6, "synchronous": False}),
        ("flush_async_logging",),
        ("end_run", "FINISHED"),
    ]


def test_a_training_that_fails_is_told_so(tmp_path, wandb, mlflow):
    with pytest.raises(ZeroDivisionError), Trackers(("wandb", "mlflow"), tmp_path, CONFIG):
        1 / 0  # noqa: B018
    assert wandb[-1] == ("finish", {"exit_code": 1}) and mlflow[-1] == ("end_run", "FAILED")


def test_trouble_at_the_start_is_an_error_and_later_is_said_once(tmp_path, wandb, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise RuntimeError("no route to host\nmore")

    with Trackers(("wandb",), tmp_path, CONFIG) as trackers:
        trackers._trackers["wandb"]._run.log = refuse
        for step in (1, 2):
            trackers.write(step, {"loss": 1.0})
    said = "trackers: wandb does not take metrics: no route to host; metrics.jsonl has them all"
    assert capsys.readouterr().err.splitlines() == [said]
    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(InputError, match=r"trackers: wandb cannot be begun: no route to host$"):
        Trackers(("wandb",), tmp_path, CONFIG)


def test_without_trackers_nothing_is_written(tmp_path):
    with Trackers((), tmp_path, CONFIG) as trackers:
        trackers.write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_packages_themselves_take_metrics(tmp_path, monkeypatch):
    names = [name for name in tracking.TRACKERS if not missing([name])]
    if not names:
        pytest.skip("neither wandb nor mlflow is installed")
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns",
    }.items():
        monkeypatch.setenv(variable, value)
    for step in (3, 6):
        with Trackers(names, tmp_path, CONFIG) as trackers:
            trackers.write(step, {"loss": step / 2, "probe/nDCG@10": 0.5})
    if "mlflow" in names:
        (found,) = tmp_path.glob("mlruns/*/*/metrics/loss")
        assert [line.split()[1:] for line in found.read_text().splitlines()] == [["1.5", "3"], ["3.0", "6"]]
    if "wandb" in names:
        identity = json.loads((tmp_path / tracking.FILE).read_text())["wandb"]
        assert len(list(tmp_path.glob(f"wandb/offline-run-*-{identity}"))) >= 1
