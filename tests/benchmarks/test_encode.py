"""The benchmark's table, and that all systems compute the same; nothing is timed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.encode import summary
from benchmarks.finetune import model_directory
from benchmarks.rounds import compare
from benchmarks.texts import load_texts, neighbours_score
from benchmarks.worker import EncodingTask
from retromae_jax.data.tokenization import load_tokenizer
from tests.conftest import FAST_COMPILING


def test_the_score_of_neighbours_is_a_mean_of_inner_products():
    assert neighbours_score(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])) == (3 + 8) / 2


def test_ratios_of_time_and_of_processor_time():
    theirs = {
        "system": "sentence_transformers",
        "seconds": [8.0, 4.0, 6.0],
        "processor_seconds": [6.0, 6.0, 6.0],
        "tokens_per_second": [10.0, 20.0, 15.0],
        "peak_megabytes": 800.0,
        "losses": [0.5, 0.25, 0.75],
    }
    ours = theirs | {"system": "retromae_jax", "seconds": [2.0, 2.0, 2.0], "processor_seconds": [4.0, 3.0, 2.0]}
    row, baseline = summary([ours | {"peak_megabytes": 400.0}, theirs], texts=8)
    assert (row["texts/s"], row["least"], row["most"], row["score"]) == ("4.00", "4.00", "4.00", 0.5)
    assert (row["speed ratio"], row["processor ratio"], row["memory ratio"]) == (3.0, 2.0, 0.5)
    assert (baseline["speed ratio"], baseline["texts/s"]) == (1.0, "1.33")
    assert "speed ratio" not in summary([ours], texts=8)[0]


def test_the_peak_is_a_processs_own():
    command = "from benchmarks.worker import peak_bytes; before = peak_bytes(); held = bytearray(10**8); "
    command += "del held; print(before, peak_bytes())"
    held = bytearray(3 * 10**8)  # by the parent, also while the other starts
    printed = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    before, after = map(int, printed.split())
    assert before < len(held) and after - before == pytest.approx(10**8, rel=0.1)


@pytest.mark.long
def test_all_systems_compute_the_same(minilm_directory, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILING)  # one device
    words = ["heart", "blood", "bone", "liver", "lung", "muscle", "pumps", "cleans", "carries"]
    lines = [{"_id": str(n), "text": " ".join(words[n % 4 : n % 5 + 5] * (n % 3 + 2))} for n in range(12)]
    (tmp_path / "medquad").mkdir()
    (tmp_path / "medquad" / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = EncodingTask(
        texts=load_texts("medquad", tmp_path, 12, load_tokenizer(str(minilm_directory)), 16, seed=0),
        batch_size=6,
        max_length=16,
        threads=1,
        seed=0,
        model=str(model_directory("tiny", minilm_directory, tmp_path)),
        at_once=4,
    )
    ours, rounded, theirs = compare(task, list(EncodingTask.SYSTEMS), rounds=2)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert rounded["losses"] == pytest.approx(theirs["losses"], rel=1e-2)
