"""Embeddings on disk: what is written, what goes on after a kill, and what is refused."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from retromae_jax import hosts
from retromae_jax.data.retrieval import load_passages
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.retrieval import embeddings
from retromae_jax.retrieval.embeddings import Embeddings, encode_to_disk
from retromae_jax.retrieval.encode import encode_texts

SIZE = 4
NAMES = ["vectors-00000-of-00003.npy", "vectors-00001-of-00003.npy", "vectors-00002-of-00003.npy"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(embeddings, "WINDOW", SIZE)


@pytest.fixture(scope="module")
def encoder(small_encoder_directory):
    return Encoder.from_pretrained(str(small_encoder_directory))


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    """Ten of them, in three shards; some have titles."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), 10)


def write_corpus(directory, count):
    words = ["cats", "purr", "dogs", "bark", "apples", "fall"]
    lines = [f"p{n}\t{'animals' * (n % 2)}\t{' '.join(words[n % 3 : n % 5 + 2] * (n % 4 + 1))}" for n in range(count)]
    (directory / "corpus.tsv").write_text("".join(f"{line}\n" for line in lines))
    return load_passages(directory)


@pytest.fixture(scope="module")
def vectors(encoder, passages):
    return encode_texts(encoder, passages.texts(separator=" : "), "passage")


def test_what_is_written_is_read_by_numpy_alone(encoder, passages, vectors, tmp_path):
    for dtype, tolerance in (("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)):
        assert encode_to_disk(encoder, passages, "passage", tmp_path / dtype, dtype) == 10
        assert sorted(path.name for path in (tmp_path / dtype).iterdir()) == ["embeddings.json", "ids.txt", *NAMES]
        stored = np.concatenate([np.load(tmp_path / dtype / name) for name in NAMES])
        if dtype == "bfloat16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(stored, vectors, atol=tolerance)
        assert (tmp_path / dtype / "ids.txt").read_text().split("\n") == [*(f"p{n}" for n in range(10)), ""]

        found = Embeddings(tmp_path / dtype)
        assert found.shape == (10, 32) and len(found) == 10
        assert found.ids.to_pylist() == [f"p{n}" for n in range(10)]
        for rows in (slice(None), slice(0, 4), slice(3, 9), slice(5, 6), slice(8, 100), slice(7, 2), slice(10, 10)):
            np.testing.assert_array_equal(found[rows], stored[rows])
            assert found[rows].dtype == (np.float16 if dtype == "float16" else np.float32)
    description = json.loads((tmp_path / "float16" / "embeddings.json").read_text())
    assert (description["count"], description["width"], description["dtype"]) == (10, 32, "float16")
    assert (description["prompt"], description["max_length"], description["title_separator"]) == ("read: ", 24, " : ")


def test_queries_have_no_titles_and_settings_of_their_own(encoder, passages, tmp_path):
    encode_to_disk(encoder, passages, "query", tmp_path / "queries")
    found = Embeddings(tmp_path / "queries")
    np.testing.assert_allclose(found[:], encode_texts(encoder, passages.texts(titles=False), "query"), atol=1e-6)
    assert (found.description["titles"], found.description["prompt"]) == (False, "find: ")


def test_only_what_is_missing_or_cut_short_is_made(encoder, passages, tmp_path, capsys):
    encode_to_disk(encoder, passages, "passage", tmp_path)
    expected = {name: (tmp_path / name).read_bytes() for name in NAMES}
    (tmp_path / NAMES[0]).unlink()
    (tmp_path / NAMES[2]).write_bytes(expected[NAMES[2]][:-1])
    kept = (tmp_path / NAMES[1]).stat().st_mtime_ns
    message = f"2 of 3 shards are missing or cut short, the first is {NAMES[0]}; start the eval.encode"
    with pytest.raises(InputError, match=message):
        Embeddings(tmp_path)
    assert encode_to_disk(encoder, passages, "passage", tmp_path) == 4 + 2
    assert "1 of 3 shards are there already" in capsys.readouterr().err
    assert {name: (tmp_path / name).read_bytes() for name in NAMES} == expected
    assert (tmp_path / NAMES[1]).stat().st_mtime_ns == kept
    assert encode_to_disk(encoder, passages, "passage", tmp_path) == 0


@pytest.mark.parametrize("before, after", [(2, 3), (3, 1)])
def test_hosts_share_what_is_missing_also_with_others_than_before(
    encoder, passages, vectors, tmp_path, monkeypatch, before, after
):
    def run(processes, only):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(hosts, "check_same", lambda description: None)
        monkeypatch.setattr(hosts, "check_shared", lambda directory, setting: None)
        monkeypatch.setattr(hosts, "wait_for_all", lambda reason: None)
        missing = []
        for process in only:
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            # All hosts look before any of them writes.
            monkeypatch.setattr(hosts, "of_first", lambda values: missing.append(values) or missing[0])
            encode_to_disk(encoder, passages, "passage", tmp_path)

    run(before, range(before - 1))  # the last one is killed at once
    there = {path.name for path in tmp_path.glob("vectors-*")}
    assert 0 < len(there) < 3
    run(after, range(after))
    np.testing.assert_allclose(Embeddings(tmp_path)[:], vectors, atol=1e-6)


def test_embeddings_of_another_model_corpus_or_setting_are_refused(
    encoder, passages, small_encoder_directory, minilm_directory, tmp_path
):
    directory = tmp_path / "stored"
    encode_to_disk(encoder, passages, "passage", directory)
    longer = Encoder.from_pretrained(str(small_encoder_directory), max_length=30, titles=False, pooling="cls")
    message = (
        r"stored holds other embeddings: titles \(there True, here False\); title_separator .*; max_length \(there 24, "
        r"here 30\); pooling \(there 'mean', here 'cls'\); choose another directory, or remove that one"
    )
    with pytest.raises(InputError, match=message):
        encode_to_disk(longer, passages, "passage", directory)
    with pytest.raises(InputError, match=r"dtype \(there 'float32', here 'float16'\)"):
        encode_to_disk(encoder, passages, "passage", directory, "float16")
    (tmp_path / "other").mkdir()
    with pytest.raises(
        InputError, match=r"count \(there 10, here 11\); corpus with other content \(there '.*/corpus.tsv"
    ):
        encode_to_disk(encoder, write_corpus(tmp_path / "other", 11), "passage", directory)
    with pytest.raises(
        InputError, match=r"width \(there 32, here 384\).*; model with other content \(there '.*encoder"
    ):
        encode_to_disk(Encoder.from_pretrained(str(minilm_directory), max_length=24), passages, "passage", directory)
    # The same corpus elsewhere is the same.
    (tmp_path / "moved").mkdir()
    assert encode_to_disk(encoder, write_corpus(tmp_path / "moved", 10), "passage", directory) == 0


@pytest.mark.parametrize("killed", [["ids.txt.incomplete"], ["ids.txt", "embeddings.json.incomplete"]])
def test_what_was_killed_while_it_began_begins_again(encoder, passages, tmp_path, killed):
    for name in killed:
        (tmp_path / name).write_text("{")
    assert encode_to_disk(encoder, passages, "passage", tmp_path) == len(passages)


def test_directories_that_hold_something_else_are_left_alone(encoder, passages, tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match=r"holds thesis\.tex, which is none of embeddings; choose another directory"):
        encode_to_disk(encoder, passages, "passage", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    for content, message in (("{", "not valid JSON"), ('{"count": 0}', "count is 0, not a number above 0; make the")):
        (tmp_path / "embeddings.json").write_text(content)
        with pytest.raises(InputError, match=message):
            Embeddings(tmp_path)


def test_numbers_that_a_dtype_has_not_are_refused(encoder, passages, tmp_path, monkeypatch):
    def encoded(value):
        def windows(encoder, texts, kind, windows, batch_size):
            for window in windows:
                yield np.where(np.arange(len(window))[:, None] == 1, np.float32(value), np.zeros(32, np.float32))

        return windows

    monkeypatch.setattr(embeddings, "encode_windows", encoded(70000.0))
    with pytest.raises(InputError, match="the embedding of 'p1' has numbers that float16 has not; store embeddings in"):
        encode_to_disk(encoder, passages, "passage", tmp_path / "float16", "float16")
    encode_to_disk(encoder, passages, "passage", tmp_path / "bfloat16", "bfloat16")
    assert Embeddings(tmp_path / "bfloat16")[1:2].max() == pytest.approx(70000, rel=1e-2)
    monkeypatch.setattr(embeddings, "encode_windows", encoded(np.nan))
    with pytest.raises(InputError, match="the embedding of 'p1' is not finite; check the model's weights"):
        encode_to_disk(encoder, passages, "passage", tmp_path / "float32")


def test_a_full_disk_is_said_before_and_while_writing(encoder, passages, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 * 32 * 4 - 1))
        with pytest.raises(InputError, match=r"has room for 1,279 bytes, the embeddings need 1,280; make room, store"):
            encode_to_disk(encoder, passages, "passage", tmp_path)

    def full(file, vectors):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"vectors-00000-of-00003\.npy: cannot be written: No space left on device"):
        encode_to_disk(encoder, passages, "passage", tmp_path)


# Ends the process, as the third shard is on its way to the disk.
KILLED = """
import os, signal, sys
from eval import encode
from retromae_jax.retrieval import embeddings
embeddings.WINDOW = 4
calls, fsync = [], os.fsync
def killed(number):
    calls.append(number)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = killed
encode.main(sys.argv[1:])
"""
# On a slow disk, so that most of the time is spent in writing.
SLOW = """
import os, sys, time
from eval import encode
from retromae_jax.retrieval import embeddings
embeddings.WINDOW = 4
fsync = os.fsync
os.fsync = lambda number: (time.sleep(0.02), fsync(number))
encode.main(sys.argv[1:])
"""


def start(script, arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_is_gone_on_with(small_encoder_directory, passages, tmp_path):
    from eval import encode

    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    arguments = ["--model", small_encoder_directory, "--corpus", passages.path, "--dtype", "float16", "--output"]
    process = start(KILLED, [*arguments, killed])
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert sorted(path.name for path in killed.glob("vectors-*")) == [*NAMES[:2], f"{NAMES[2]}.part"]
    made = [(killed / name).stat().st_mtime_ns for name in NAMES[:2]]
    for directory in (killed, undisturbed):
        encode.main([*map(str, arguments), str(directory)])
    assert [(killed / name).stat().st_mtime_ns for name in NAMES[:2]] == made
    for name in (*NAMES, "ids.txt", "embeddings.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not list(killed.glob("*.part"))


@pytest.mark.long
def test_an_encoding_killed_again_and_again_ends_as_one_that_never_was(small_encoder_directory, tmp_path):
    corpus = write_corpus(tmp_path, 1600).path
    arguments = ["--model", small_encoder_directory, "--corpus", corpus, "--batch-size", "1", "--output"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process = start(SLOW, [*arguments, undisturbed])
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    rng, kills, in_writing, seen = random.Random(0), 0, 0, []
    while True:
        process = start(SLOW, [*arguments, killed])
        shards = len(list(killed.glob("*.npy")))
        while process.poll() is None and len(list(killed.glob("*.npy"))) < shards + 40:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        in_writing += any(killed.glob("*.part"))
        # What was there is there, as it was.
        there = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.npy")}
        assert all(there[name] == time for one in seen for name, time in one.items())
        seen.append(there)
    assert kills >= 6 and in_writing >= 3
    names = sorted(path.name for path in undisturbed.iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names and len(names) == 402
    for name in names:
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
