"""The training loop with a step that costs nothing: numbers that go wrong, disks that fill up, signs of life."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from retromae_jax.checkpoints import train_state
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.errors import InputError
from tests.disks import fill
from train import loop
from train.status import status

CONFIG = ConfigDict(
    {
        "log_every": 2,
        "checkpoint_every": 2,
        "skipped_steps_allowed": 2,
        "stall_minutes": 20.0,
        "debug_nans": False,
        "trackers": (),
    }
)


def initial():
    """A state of random numbers, which nothing makes smaller on disk."""
    numbers = jnp.asarray(np.random.default_rng(0).normal(size=(2, 10000)), jnp.float32)
    return TrainState(jnp.int32(0), {"w": numbers}, {"m": numbers})


def train(directory, losses, during=lambda step: None, measured=lambda loss: loss, **changes):
    """Runs the loop over given losses; `during` is called in every step, `measured` makes its loss of the given one."""

    def step_function(state, batch):
        run.checkpoints.check(wait=True)
        during(int(state.step))
        metrics = {"loss": measured(batch["loss"]), "gradient_norm": np.float32(1)}
        return state._replace(step=state.step + 1), metrics

    def batch_of_step(step):
        return loop.Batch({"loss": np.float32(losses[step])}, 5, items=np.arange(3) + 100 * step)

    run = Run(directory, 2)
    run.command = "pretrain"
    described = {"command": "pretrain", "model": {}, "encoder": {}, "config": {}, "data": {}}
    (directory / "run.json").write_text(json.dumps(described))
    config = CONFIG.copy_and_resolve_references()
    config.update(changes)
    state = run.restore(initial())
    loop.train(config, run, state, len(losses), step_function, batch_of_step, "queries", lambda step: 0.1)


def log_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def beat_of(directory):
    return json.loads((directory / "heartbeat.json").read_text())


def test_skipped_steps_are_counted_and_do_not_spoil_the_means(tmp_path, capsys):
    train(tmp_path, [1, 2, np.nan, 4, np.inf, -np.inf, 7, 8])
    log = log_of(tmp_path)
    assert [(line.get("loss"), line["skipped_steps"]) for line in log] == [(1.5, 0), (4, 1), (None, 2), (7.5, 0)]
    said = capsys.readouterr().err
    assert "pretrain: step 3 is skipped, the 1. in a row: loss nan, gradient norm 1.0" in said
    assert "pretrain: step 6 is skipped, the 2. in a row: loss -inf" in said
    assert "skipped steps 1" in said and "skipped steps 0" not in said


def test_too_many_skipped_steps_end_the_run_and_leave_the_batch(tmp_path):
    with pytest.raises(InputError, match="not finite in 3 steps in a row, up to step 5") as error:
        train(tmp_path, [1, 2, np.nan, np.nan, np.nan, 6, 7, 8])
    assert "its items in the data are 400, 401, 402" in str(error.value)
    with np.load(tmp_path / "batch_of_step_5.npz") as batch:
        np.testing.assert_array_equal(batch["items"], [400, 401, 402])
        assert np.isnan(batch["loss"])
    assert beat_of(tmp_path)["state"] == "failed"
    assert f"ended by an error 0 s ago; {tmp_path / 'log.txt'} says which" in status(tmp_path)


@jax.jit
def logarithm(x):
    return 2 * jnp.log(x) + 1


def test_the_operation_that_makes_the_first_nan_is_found(tmp_path):
    losses = [1, 2, 3, -4, 5, 6]
    train(tmp_path, losses, measured=logarithm)
    assert log_of(tmp_path)[1]["skipped_steps"] == 1
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(FloatingPointError, match=r"nan.* in log") as error:
        train(other, losses, measured=logarithm, debug_nans=True)
    assert "logarithm" in [frame.name for frame in error.traceback]
    assert beat_of(other)["step"] == 3 and not jax.config.jax_debug_nans


def test_spikes_are_said_and_noise_is_not(tmp_path, capsys):
    losses = 2 + 0.1 * np.random.default_rng(0).normal(size=60)
    losses[40] = 5
    train(tmp_path, losses, log_every=60, checkpoint_every=60)
    said = [line for line in capsys.readouterr().err.splitlines() if "jumps" in line]
    assert len(said) == 1 and said[0].startswith("pretrain: step 41: the loss jumps to 5.000, ")


def test_a_full_disk_costs_checkpoints_and_nothing_else(small_disk, capsys):
    filled = fill(small_disk)
    during = {3: filled.__enter__, 7: lambda: filled.__exit__(None, None, None)}
    train(small_disk, range(1, 11), during=lambda step: during.get(step, str)())
    said = capsys.readouterr().err
    for step in (4, 6):
        assert f"the checkpoint of step {step} could not be saved" in said
    assert "step 8 could" not in said and "step 2 remains the newest checkpoint" in said
    assert [line["step"] for line in log_of(small_disk)] == [2, 4, 6, 8, 10]
    assert int(Run(small_disk).restore(initial()).step) == 10


def test_a_last_checkpoint_that_cannot_be_saved_is_tried_again_and_then_an_error(small_disk, capsys, monkeypatch):
    waits = []
    monkeypatch.setattr(train_state.time, "sleep", waits.append)
    filled = fill(small_disk)
    with pytest.raises(InputError, match=r"step 4 could not be saved .* goes on from step 2"):
        train(small_disk, range(1, 5), during=lambda step: filled.__enter__() if step == 3 else None)
    filled.__exit__(None, None, None)
    assert waits == list(train_state.SECONDS_BETWEEN_ATTEMPTS)
    assert "not saved" in status(small_disk)
    # The same command goes on, when there is room.
    capsys.readouterr()
    train(small_disk, range(1, 5))
    assert int(Run(small_disk).restore(initial()).step) == 4
    assert [line["step"] for line in log_of(small_disk)] == [2, 4]


def test_a_stall_leaves_the_stacks_once(tmp_path):
    stacks, left = tmp_path / "stacks_of_process_0.txt", []

    def hang_in_step_one(step):
        # Until the stall is noticed, and as long again. In the first step, so that no slow disk is what stalls.
        if step == 0:
            deadline = time.monotonic() + 60
            while stacks.stat().st_size == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(1.2)
            left.append(stacks.read_text())

    train(tmp_path, [1, 2, 3, 4], during=hang_in_step_one, stall_minutes=1 / 60)
    assert left[0].count("Timeout") == 1 and "hang_in_step_one" in left[0] and stacks.exists()
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    train(quiet, [1, 2])
    assert not list(quiet.glob("stacks*"))


def test_status_tells_what_a_run_is_doing(tmp_path, monkeypatch):
    monkeypatch.setattr("train.heartbeat.SECONDS_BETWEEN_BEATS", 0.0)
    monkeypatch.setattr("sys.argv", ["train.pretrain", "--config", "configs/wiki.py", "--config.seed=1"])
    seen = []

    def look(step):
        time.sleep(0.01)
        if step == 6:
            seen.append(status(tmp_path))

    train(tmp_path, [1, 2, 3, 4, 5, 6, 7, 8], during=look)
    while_running = {line.split()[0]: line for line in seen[0].splitlines()}
    assert f"running, process {os.getpid()} on" in while_running["state"]
    assert "6 of 8, 75%" in while_running["step"] and "6.0000" in while_running["loss"]
    assert "queries/s" in while_running["speed"] and "time left" in seen[0]
    assert "step 4" in while_running["checkpoint"] or "step 6" in while_running["checkpoint"]
    assert f"cd {os.getcwd()} && python -m train.pretrain --config configs/wiki.py --config.seed=1" in seen[0]

    finished = status(tmp_path)
    assert "finished 0 s ago" in finished and "8 of 8, 100%" in finished and "step 8, 0.2 MB" in finished
    assert "resume" not in finished and "time left" not in finished and "8.0000" in finished
    beat = beat_of(tmp_path)
    assert beat["saved_step"] == 8 and beat["saved_at"] == pytest.approx(beat["time"], abs=60)

    def status_with(**changes):
        (tmp_path / "heartbeat.json").write_text(json.dumps(beat | {"state": "running"} | changes))
        return status(tmp_path)

    assert "killed: process 99999999 on" in status_with(process=99999999, time=time.time() - 300)
    assert "running, process 99999999 on" in status_with(process=99999999)  # in another container, maybe
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: path.parts[1] != "proc" and os.path.exists(path))
        assert "running" in status_with(process=99999999, time=time.time() - 300)
    assert "stalled, or killed: no sign of" in status_with(time=time.time() - 3000)
    assert "running" in status_with(time=time.time() - 300) and "on all 4 hosts" in status_with(processes=4)
    (tmp_path / "stacks_of_process_0.txt").write_text("Timeout")
    assert "where it hangs: " in status_with(time=time.time() - 3000, host="elsewhere")
    (tmp_path / "heartbeat.json").write_text("{")
    with pytest.raises(InputError, match=r"heartbeat\.json: not valid JSON"):
        status(tmp_path)
    (tmp_path / "heartbeat.json").unlink()
    assert "no step yet" in status(tmp_path)
    with pytest.raises(InputError, match="it has no run"):
        status(tmp_path / "checkpoints")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_with_a_checkpoint_and_the_same_command_goes_on(tmp_path, number, capsys):
    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path, [1, 2, 3, 4, 5], during=lambda step: os.kill(os.getpid(), number) if step == 2 else None)
    assert stopped.value.code == 143
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == handlers
    assert "pretrain: stopped by a signal after step 3; the same command goes on" in capsys.readouterr().err
    assert "stopped by a signal 0 s ago, with a checkpoint" in status(tmp_path)
    assert int(Run(tmp_path).restore(initial()).step) == 3
    train(tmp_path, [1, 2, 3, 4, 5])
    assert [line["step"] for line in log_of(tmp_path)] == [2, 3, 4, 5]


def test_a_second_ctrl_c_stops_at_once(tmp_path, capfd):
    def interrupt(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            assert "Ctrl-C: the run stops after this step, with a checkpoint; once more" in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, [1, 2, 3, 4, 5], during=interrupt)
    assert int(Run(tmp_path).restore(initial()).step) == 2
