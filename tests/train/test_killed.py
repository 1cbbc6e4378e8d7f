"""A training that is killed again and again ends as one that never was."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import masked_lm
from retromae_jax.checkpoints.directory import UNFINISHED
from retromae_jax.checkpoints.train_state import Run
from tests.conftest import FAST_COMPILING
from train import demo_data
from train.prepare import prepare

SETTINGS = {
    "workdir": "run",
    "data": "blocks",
    "sources": ("text.jsonl",),
    "workers": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "evaluate_every": 50,
    "validation_blocks": 8,
    "checkpoints_to_keep": 2,
}
SCRIPT = """
from configs import masked_lm
from train.pretrain import pretrain
config = masked_lm.get_config("tiny")
config.update({settings})
pretrain(config)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, demo_packages):
    """A directory with token blocks, and a cache for what is compiled."""
    directory = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        demo_data.make_demo_data(Path("build", "demo"))
        text = Path("build/demo/text.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        Path("text.jsonl").write_text("".join(text[:300]), encoding="utf-8")
        config = masked_lm.get_config("tiny")
        config.update(SETTINGS)
        prepare(config)
    return directory


def start(directory, num_steps):
    environment = os.environ | {
        "XLA_FLAGS": FAST_COMPILING,
        "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]),
    }
    command = [sys.executable, "-c", SCRIPT.format(settings=SETTINGS | {"num_steps": num_steps})]
    return subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.PIPE, text=True)


def finish(directory, num_steps):
    process = start(directory, num_steps)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def everything_of(directory):
    """All arrays of a run's newest checkpoint, and its log but for the speeds."""
    run = Run(directory / "run")
    last = run.checkpoints.steps()[-1]
    arrays = {name: np.asarray(x) for name, x in run.restore_parameters().items()}
    digests = json.loads((directory / "run" / "checkpoints" / str(last) / "digests" / "metadata").read_text())
    log = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if not k.endswith(("_per_second", "_utilization"))} for line in log]
    run.close()
    return last, arrays, digests, log


def kill_somewhere(directory, num_steps, rng, in_a_save):
    """Starts the run and kills it: in the middle of a save, or at any moment from its start to its fifth save.

    Returns:
        Whether it was killed, and whether a checkpoint was being saved then.
    """
    checkpoints = directory / "run" / "checkpoints"
    before = set(checkpoints.glob("*")) if checkpoints.is_dir() else set()
    process = start(directory, num_steps)
    deadline = time.monotonic() + (300 if in_a_save else rng.uniform(0, 8))
    saves, seen = rng.randrange(1, 4) if in_a_save else 5, set()
    while process.poll() is None:
        unfinished = set(checkpoints.glob(f"[0-9]*{UNFINISHED}")) - before
        seen |= unfinished
        if (unfinished and len(seen) >= saves) or time.monotonic() > deadline:
            time.sleep(rng.uniform(0, 0.03))
            break
        time.sleep(0.001)
    process.kill()
    process.communicate()
    is_killed = process.returncode == -9
    return is_killed, is_killed and in_a_save and any(checkpoints.glob(f"[0-9]*{UNFINISHED}"))


@pytest.mark.long
def test_a_run_killed_33_times_ends_as_if_it_never_was(data, tmp_path):
    # More saves than there can be before the last kill.
    num_steps, kills = 130, 33
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for directory in (undisturbed, killed):
        shutil.copytree(data, directory)
    assert " 1 x cpu" in finish(undisturbed, num_steps)
    shutil.copytree(undisturbed / "compiled", killed / "compiled")
    rng = random.Random(0)
    outcomes = [kill_somewhere(killed, num_steps, rng, in_a_save=number % 3 > 0) for number in range(kills)]
    assert sum(is_killed for is_killed, _ in outcomes) == kills
    in_saves = sum(in_a_save for _, in_a_save in outcomes)
    assert in_saves >= kills / 4
    said = finish(killed, num_steps)
    assert ", from step " in said
    found, expected = everything_of(killed), everything_of(undisturbed)
    assert found[0] == expected[0] == num_steps
    for name, value in expected[1].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)
    assert found[2] == expected[2]  # of the optimizer's state too
    assert found[3] == expected[3]
    assert sorted(path.name for path in (killed / "run" / "checkpoints").iterdir()) == sorted(
        map(str, (num_steps - 1, num_steps))
    )
    print(f"{kills} kills, {in_saves} of them in saves")
