import argparse
import contextlib
from pathlib import Path

import jax
import pytest

from retromae_jax import hosts
from retromae_jax.errors import InputError
from retromae_jax.hosts import VARIABLES, add_flags, start


def test_every_item_is_in_one_share(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append((hosts.share(10), hosts.share(1)))
    assert shares == [(range(3), range(0)), (range(3, 6), range(0)), (range(6, 10), range(1))]
    assert [file.name for file in hosts.files(Path("x"), "scores.npy")][1:] == [
        "scores-00001-of-00003.npy",
        "scores-00002-of-00003.npy",
    ]


def test_a_scratch_directory_is_gone_at_the_end(tmp_path):
    with hosts.scratch(tmp_path / "new" / "scratch", "--output", "cats") as directory:
        (directory / "a.npy").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"scratch: cannot be written to: .*; choose another --output"),
        hosts.scratch(tmp_path / "file" / "scratch", "--output", ""),
    ):
        pass


def test_what_a_failed_run_left_is_for_the_next_one_of_the_same(tmp_path):
    found = []
    for content in ("cats", "cats", "dogs"):
        with contextlib.suppress(ValueError), hosts.scratch(tmp_path / "scratch", "--output", content) as directory:
            found.append((directory / "a.npy").exists())
            (directory / "a.npy").touch()
            raise ValueError
    assert found == [False, True, False]


def test_a_failed_run_leaves_nothing_that_no_other_could_use(tmp_path):
    with contextlib.suppress(ValueError), hosts.scratch(tmp_path / "scratch", "--output", "") as directory:
        (directory / "a.npy").touch()
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_second_command_is_kept_out_of_a_scratch_directory(tmp_path):
    with hosts.scratch(tmp_path / "scratch", "--output", "cats") as directory:
        (directory / "a.npy").touch()
        with (
            pytest.raises(InputError, match=r"scratch: another process works there; wait for it, .* another --output"),
            hosts.scratch(tmp_path / "scratch", "--output", "dogs"),
        ):
            pass
        assert (directory / "a.npy").exists()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def flags(line=""):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(line.split())


@pytest.mark.parametrize(
    "line, message",
    [
        ("--processes 2 --process 0", "must be set together; --coordinator is not"),
        ("--coordinator host0:1234 --processes 2", "must be set together; --process is not"),
        ("--coordinator host0 --processes 2 --process 0", "--coordinator host0 is not HOST:PORT"),
        ("--coordinator host0:1234 --processes two --process 0", "--processes two is not a whole number"),
        ("--coordinator host0:1234 --processes 2 --process 2", "--process 2 is not less than --processes 2"),
    ],
)
def test_wrong_flags_are_refused_before_any_process_waits(line, message):
    with pytest.raises(InputError, match=message):
        start(flags(line))


def test_so_are_wrong_variables(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host0:1234")
    with pytest.raises(InputError, match="must be set together; JAX_NUM_PROCESSES is not"):
        start(flags())
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "-1")
    with pytest.raises(InputError, match="JAX_PROCESS_ID -1 is not a whole number"):
        start(flags())


def test_flags_come_before_variables_and_reach_jax(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "jax.distributed.initialize", lambda *processes, **patience: calls.append((processes, patience))
    )
    for name, value in zip(VARIABLES, ("host0:1234", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    start(flags("--lost-after 20"))
    start(flags("--coordinator host1:1 --processes 3 --process 0"))
    twenty, hundred = (
        {"heartbeat_timeout_seconds": seconds, "shutdown_timeout_seconds": seconds} for seconds in (20, 100)
    )
    assert calls == [(("host0:1234", 2, 1), twenty), (("host1:1", 3, 0), hundred)]


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_the_time_until_a_process_is_lost_is_a_number_of_seconds(seconds, capsys):
    with pytest.raises(SystemExit):
        flags(f"--lost-after {seconds}")
    assert f"{seconds} is not 1 or more" in capsys.readouterr().err
