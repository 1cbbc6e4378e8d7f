"""The benchmark's machinery, and that all systems find the same; nothing is timed."""

import json

import numpy as np
import pytest

from benchmarks import search as benchmark
from retromae_jax.errors import InputError


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(benchmark, "in_own_process", benchmark.measure)
    monkeypatch.setattr(benchmark.os, "sched_setaffinity", lambda process, cores: None)


def test_all_systems_find_the_same(tmp_path, capsys):
    arguments = f"--passages 900 --width 8 --queries 20 --depth 30 --rounds 1 --directory {tmp_path / 'place'}"
    benchmark.main([*arguments.split(), "--output", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    for system in ("device", "faiss", "original"):
        assert f"{system} and flat: 0 places differ beyond rounding" in printed
    assert list((tmp_path / "place").iterdir()) == []
    assert [one["system"] for one in json.loads((tmp_path / "figures.json").read_text())["results"]] == [
        "flat",
        "device",
        "faiss",
        "original",
    ]


@pytest.mark.parametrize("system", ["flat", "device"])
def test_the_large_collection_is_compared_with_brute_force(system, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "FULL", {"passages": 3000, "width": 8, "queries": 5, "dtype": "float16"})
    monkeypatch.setattr(benchmark, "BLOCK", 100)
    arguments = ["--depth", "50", "--directory", str(tmp_path), "--output", str(tmp_path / "figures.json")]
    benchmark.main(["--full", "--systems", system, *arguments])
    printed = capsys.readouterr().out
    above = int(printed.split("of the sample, ")[1].split()[0])
    assert 10 < above < 70 and "0 places differ from brute force" in printed


def test_what_differs_is_counted(tmp_path):
    benchmark.make_embeddings(tmp_path, 600, 8, 4, "float32", seed=1)
    found = benchmark.ours("flat")(tmp_path, 20)[0]
    swapped = found[0], found[1].copy()
    swapped[1][2, [3, 9]] = swapped[1][2, [9, 3]]
    assert benchmark.differences(found, found) == (0, 0.0)
    assert benchmark.differences(swapped, found)[0] == 2
    missed = found[0], np.where(found[1] == found[1][1, 5], 599, found[1])
    assert benchmark.compare_with_brute_force(tmp_path, found)[1] == 0
    assert benchmark.compare_with_brute_force(tmp_path, missed)[1] > 0


def test_a_disk_without_room_is_told(tmp_path):
    with pytest.raises(InputError, match="GB are needed there"):
        benchmark.make_embeddings(tmp_path, 10**10, 768, 1, "float16", seed=0)
