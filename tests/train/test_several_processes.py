"""Pretraining on two hosts, played by two processes with four devices each, against one process with eight."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from retromae_jax.checkpoints.train_state import Run
from train import demo_data
from train.prepare import prepare

SCRIPT = """
import jax
jax.config.update("jax_num_cpu_devices", {devices})
if {processes} > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
from configs import wiki
from retromae_jax import parallel
parallel.start()
from train.pretrain import pretrain
config = wiki.get_config("tiny")
config.workdir, config.num_steps, config.log_every = {workdir!r}, 2, 1
config.evaluate_every = config.checkpoint_every = 2
pretrain(config)
assert jax.process_count() == {processes} and jax.device_count() == 8
"""


def start(directory, workdir, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = SCRIPT.format(devices=8 // processes, processes=processes, workdir=str(workdir))
    started = []
    for process in range(processes):
        environment = os.environ | {
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PJRT_NPROC": "16",  # with fewer threads than devices, collectives of gloo wait for each other forever
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]),
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(process),
            }
        command = [sys.executable, "-c", script]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=directory, env=environment, **pipes))
    return started


def finish(started):
    outputs = [process.communicate(timeout=240) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return [errors for _, errors in outputs]


def test_two_processes_train_as_one(tmp_path, demo_packages, monkeypatch):
    demo_data.make_demo_data(tmp_path / "build" / "demo")
    from configs import wiki

    repository = os.getcwd()
    monkeypatch.chdir(tmp_path)
    config = wiki.get_config("tiny")
    config.workers = 1
    prepare(config)
    monkeypatch.chdir(repository)

    finish(start(tmp_path, tmp_path / "one", processes=1))
    first, second = finish(start(tmp_path, tmp_path / "two", processes=2))
    assert "pretrain: finished" in first
    assert "pretrain" not in second  # only the first process speaks

    logs = []
    for name in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append(
            [{k: v for k, v in line.items() if not k.endswith(("per_second", "utilization"))} for line in lines]
        )
    assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
    for one, two in zip(*logs, strict=True):
        for key, value in one.items():
            # The gain is a small difference of two losses of about 10.
            tolerance = 1e-5 if key.endswith("gain") else 1e-6
            assert two[key] == pytest.approx(value, rel=1e-6, abs=tolerance), key
    weights = []
    for name in ("one", "two"):
        run = Run(tmp_path / name)
        weights.append({key: np.asarray(value) for key, value in run.restore_parameters().items()})
        run.close()
    for key, value in weights[0].items():
        np.testing.assert_allclose(weights[1][key], value, atol=1e-6, err_msg=key)
