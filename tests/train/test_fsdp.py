"""Pretraining whose parameters and optimizer state are split over devices, against pretraining where they are not."""

import json
import shutil

import jax
import numpy as np
import pytest
from datasets import Dataset

from configs import wiki
from retromae_jax import parallel
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.errors import InputError
from retromae_jax.optimizer import adamw, learning_rate_schedule
from tests.small import compilations
from train.export import export
from train.pretrain import pretrain

STEPS = 2


def config_of(directory, name, fsdp=1, **changes):
    config = wiki.get_config("tiny")
    config.update(workdir=str(directory / name), fsdp=fsdp, num_steps=STEPS, log_every=1, checkpoint_every=1)
    config.update(validation_blocks=0)
    config.model.num_hidden_layers = 1
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def directory(tmp_path_factory, minilm_directory):
    """A directory with two finished runs: `whole`, and `split` over four of the eight devices."""
    directory = tmp_path_factory.mktemp("fsdp")
    generator = np.random.default_rng(0)
    texts = [generator.integers(1000, 30000, generator.integers(8, 31)) for _ in range(40)]
    (directory / "build" / "demo").mkdir(parents=True)
    (directory / "build" / "demo" / "checkpoint").symlink_to(minilm_directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(parallel, "SMALLEST_SPLIT", 2**10)  # all kernels of the tiny model
        Dataset.from_dict({"token_ids": texts}).save_to_disk(config_of(directory, "whole").data)
        for name, fsdp in (("whole", 1), ("split", 4)):
            with compilations() as names:
                pretrain(config_of(directory, name, fsdp))
            assert names.count("jit(step)") == 1  # a state that a step made is split as the first one was
        yield directory


def metrics_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_per_second", "_utilization"))} for line in lines]


def parameters_of(directory):
    run = Run(directory)
    values = jax.device_get(run.restore_parameters())
    run.close()
    return values


def assert_trained_alike(one, other):
    for found, expected in zip(metrics_of(one), metrics_of(other), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    found, expected = parameters_of(one), parameters_of(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_a_split_run_trains_as_a_whole_one(directory):
    assert_trained_alike(directory / "split", directory / "whole")


def test_a_split_run_goes_on_whole(directory, tmp_path):
    shutil.copytree(directory / "split", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(STEPS))
    pretrain(config_of(tmp_path, "resumed", fsdp=1))
    assert_trained_alike(tmp_path / "resumed", directory / "whole")


def restored(directory, fsdp):
    """The state of a run's newest checkpoint on a mesh of all devices."""
    weights, mesh = parameters_of(directory), parallel.training_mesh(fsdp)
    optimizer = adamw(learning_rate_schedule(1e-4, 0.1, STEPS), 0.01, 1.0)
    start = TrainState(np.int32(0), weights, optimizer.init(weights))
    run = Run(directory)
    state = run.restore(jax.device_put(start, parallel.state_sharding(mesh, start)))
    run.close()
    return state


@pytest.mark.parametrize("name", ["split", "whole"])
def test_a_checkpoint_is_the_same_on_every_mesh(directory, name):
    whole, split = restored(directory / name, 1), restored(directory / name, 4)
    assert int(whole.step) == STEPS
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parameters_and_moments_are_split_and_the_rest_is_next_to_nothing(directory):
    state = restored(directory / "split", 4)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert len(moments) == 2 * len(state.parameters) and all(np.any(x) for x in moments)
    for part in (list(state.parameters.values()), moments):
        for x in part:
            held = {shard.data.size for shard in x.addressable_shards}
            assert held == {x.size // 4 if x.ndim == 2 and x.size >= parallel.SMALLEST_SPLIT else x.size}
        held = sum(x.addressable_shards[0].data.size for x in part)
        assert held < 0.3 * sum(x.size for x in part)


def test_a_split_run_exports_as_any_other(directory, tmp_path):
    export(str(directory / "split"), tmp_path / "exported")
    expected = parameters_of(directory / "split")
    loaded, _ = open_model(str(tmp_path / "exported" / "masked_lm")).parameters(expected)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_a_number_that_cannot_be_is_refused(directory):
    with pytest.raises(InputError, match="2 problem") as error:
        pretrain(config_of(directory, "never", fsdp=3, batch_size=9))
    assert "batch_size 9 does not divide over 8 devices" in str(error.value)
    problem = "fsdp 3 does not divide both the 8 devices and the model's hidden_size 32; possible are 1, 2, 4, 8"
    assert problem in str(error.value)
    with pytest.raises(InputError, match="fsdp 0 is less than 1"):
        pretrain(config_of(directory, "never", fsdp=0))
    assert not (directory / "never").exists()
