"""Checkpoints on damaged, full and vanished disks."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retromae_jax import hosts
from retromae_jax.checkpoints.digests import digests
from retromae_jax.checkpoints.directory import DIGESTS, CheckpointDirectory
from retromae_jax.errors import InputError
from tests.disks import fill
from tests.small import mesh_of

NAMES = ("parameters", "optimizer")
pytestmark = pytest.mark.usefixtures("broken_storage")


def items_of(step, size=4000):
    """Trees of a checkpoint; random numbers, so that they cannot be compressed."""
    rng = np.random.default_rng(step)
    return {
        "parameters": {"a.weight": jnp.asarray(rng.normal(size=(size // 40, 40)), jnp.float32), "b": jnp.arange(3.0)},
        "optimizer": ({"a.weight": jnp.asarray(rng.normal(size=size), jnp.float32)}, jnp.int32(step)),
    }


def written(path, steps, to_keep=3):
    """A directory with checkpoints."""
    path.mkdir(exist_ok=True)
    checkpoints = CheckpointDirectory(path, NAMES, to_keep)
    for step in steps:
        checkpoints.save(step, items_of(step))
        checkpoints.check(wait=True)
    return checkpoints


def assert_restores(path, step, to_keep=3):
    found, items = CheckpointDirectory(path, NAMES, to_keep).restore(items_of(0))
    assert found == step
    jax.tree.map(np.testing.assert_array_equal, items, items_of(step))


def test_digests_see_every_bit_and_place_and_no_sharding():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6)), jnp.float32)
    expected = digests({"x": x})
    bits = np.asarray(x).view(np.uint32)
    for row, column, bit in ((0, 0, 0), (15, 5, 31), (3, 2, 17)):
        flipped = bits.copy()
        flipped[row, column] ^= np.uint32(1 << bit)
        assert digests({"x": flipped.view(np.float32)}) != expected
    swapped = np.asarray(x).copy()
    swapped[[2, 9]] = swapped[[9, 2]]
    assert digests({"x": swapped}) != expected
    assert digests({"x": x.reshape(6, 16)}) == expected  # a checkpoint's shapes are compared by Orbax
    mesh = mesh_of(8, 2)
    for spec in (("data", "fsdp"), ("fsdp",), (None, "fsdp")):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert digests({"x": jax.device_put(x, sharding)}) == expected


def test_older_checkpoints_are_removed_when_a_newer_one_is_whole(tmp_path):
    checkpoints = written(tmp_path, (1, 2, 3, 4, 5), to_keep=2)
    assert checkpoints.steps() == [4, 5] and checkpoints.saved == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]
    checkpoints.save(5, items_of(6))  # is there already
    checkpoints.close()
    assert_restores(tmp_path, 5)


def damages(directory):
    """Functions that damage a checkpoint's files, by what they do."""
    data = max(
        (path for path in (directory / "parameters").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )

    def flip(path, position):
        content = bytearray(path.read_bytes())
        content[position] ^= 0x10
        path.write_bytes(content)

    size = data.stat().st_size
    return {
        "bit early": lambda: flip(data, size // 3),
        "bit late": lambda: flip(data, size // 2),
        "truncated": lambda: data.write_bytes(data.read_bytes()[: size // 2]),
        "emptied": lambda: data.write_bytes(b""),
        "missing": data.unlink,
        "digests": lambda: (directory / DIGESTS / "metadata").write_text("{"),
        "half removed": lambda: shutil.rmtree(directory / "optimizer"),
    }


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    written(path, (3, 6)).close()
    return path


@pytest.mark.parametrize(
    "damage", ["bit early", "bit late", "truncated", "emptied", "missing", "digests", "half removed"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(two_checkpoints, tmp_path, capsys, damage):
    path = tmp_path / "run"
    shutil.copytree(two_checkpoints, path)
    damages(path / "6")[damage]()
    # Who only reads renames nothing.
    assert_restores(path, 3, to_keep=None)
    assert (path / "6").is_dir()
    capsys.readouterr()
    assert_restores(path, 3)
    said = capsys.readouterr().err
    assert f"{path / '6'} is damaged: " in said and "step 3 is taken instead" in said
    assert sorted(path.name for path in path.iterdir()) == ["3", "6.damaged"]
    # The step is saved anew, and no good checkpoint is removed for it.
    written(path, (6,), to_keep=2).close()
    assert_restores(path, 6)
    assert sorted(path.name for path in path.iterdir()) == ["3", "6", "6.damaged"]


def test_a_run_with_damaged_checkpoints_only_does_not_start_anew(two_checkpoints, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(two_checkpoints, path)
    for step in ("3", "6"):
        damages(path / step)["bit late"]()
    with pytest.raises(InputError, match=r"none of the checkpoints can be read.*\n  step 6: .*\n  step 3: "):
        CheckpointDirectory(path, NAMES, 3).restore(items_of(0))
    assert sorted(path.name for path in path.iterdir()) == ["3", "6"]


def test_digests_are_computed_when_all_processes_have_read(two_checkpoints, monkeypatch, capsys):
    """Of arrays that are split over hosts they are sums, for which each waits for all."""
    happened, answers = [], iter([False, True, True])

    def all_hold(is_so):
        assert is_so
        happened.append("asked")
        return next(answers)  # of the newest checkpoint, another process can read nothing

    monkeypatch.setattr(hosts, "all_hold", all_hold)
    patched = "retromae_jax.checkpoints.directory.digests"
    monkeypatch.setattr(patched, lambda tree: happened.append("digests") or digests(tree))
    assert_restores(two_checkpoints, 3, to_keep=None)
    assert happened == ["asked", "asked", "digests", "digests", "asked"]
    assert "6 is damaged: another process found it damaged; step 3 is taken instead" in capsys.readouterr().err


def test_checkpoints_without_digests_are_taken_and_unfinished_ones_are_not(two_checkpoints, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(two_checkpoints, path)
    shutil.rmtree(path / "6" / DIGESTS)
    shutil.copytree(path / "6", path / "9.orbax-checkpoint-tmp")
    shutil.copytree(path / "3", path / "1.removed")
    assert_restores(path, 6)
    assert "is from before checkpoints had digests, and taken unchecked" in capsys.readouterr().err
    CheckpointDirectory(path, NAMES).clear()
    assert (path / "9.orbax-checkpoint-tmp").is_dir()
    CheckpointDirectory(path, NAMES, 3).clear()
    assert sorted(path.name for path in path.iterdir()) == ["3", "6"]


def test_a_full_disk_costs_one_checkpoint_and_no_older_one(small_disk, capsys):
    path = small_disk / "checkpoints"
    checkpoints = written(path, (1, 2), to_keep=2)
    with fill(small_disk):
        for step in (3, 4):
            capsys.readouterr()
            checkpoints.save(step, items_of(step))
            checkpoints.check(wait=True)
            said = capsys.readouterr().err
            assert f"the checkpoint of step {step} could not be saved in {path}: " in said
            assert "o space left" in said and "step 2 remains the newest checkpoint" in said
            assert checkpoints.steps() == [1, 2] and checkpoints.failure
    checkpoints.save(5, items_of(5))
    checkpoints.close()
    assert checkpoints.steps() == [2, 5] and not checkpoints.failure
    assert_restores(path, 5)


def test_a_checkpoint_that_outgrows_its_disk(small_disk, capsys):
    checkpoints = written(small_disk, (1,))
    checkpoints.save(2, items_of(2, 400_000))
    checkpoints.check(wait=True)
    assert f"could not be saved in {small_disk}: No space left on device; step 1 remains" in capsys.readouterr().err
    checkpoints.save(3, items_of(3))
    checkpoints.close()
    assert_restores(small_disk, 3)


def test_a_disk_that_is_read_only_for_a_while(small_disk, capsys):
    checkpoints = written(small_disk, (1,))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    checkpoints.save(2, items_of(2))
    checkpoints.check(wait=True)
    assert f"could not be saved in {small_disk}: Read-only file system" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    checkpoints.save(3, items_of(3))
    checkpoints.close()
    assert_restores(small_disk, 3)


def test_a_directory_that_is_away_for_a_while(tmp_path, capsys):
    path, away = tmp_path / "checkpoints", tmp_path / "away"
    checkpoints = written(path, (1,))
    path.rename(away)
    checkpoints.save(2, items_of(2))
    checkpoints.check(wait=True)
    assert "could not be saved" in (said := capsys.readouterr().err) and "No such file or directory" in said
    assert not path.exists()
    away.rename(path)
    checkpoints.save(3, items_of(3))
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]
    assert_restores(path, 3)
