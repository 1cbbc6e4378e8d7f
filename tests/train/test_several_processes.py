"""Two hosts, played by two processes with four devices each, against one process with eight."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import msmarco, wiki
from eval import beir, encode, mine, rerank
from eval.msmarco import evaluate, parse
from retromae_jax import hosts
from retromae_jax.checkpoints.huggingface import save_cross_encoder
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.parameters import initialize
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.objectives.reranking import Reranking
from retromae_jax.retrieval import embeddings
from tests.conftest import FAST_COMPILING
from train import demo_data
from train.export import export_run
from train.finetune import finetune
from train.prepare import prepare
from train.pretrain import pretrain

# Three steps each, all of which change the parameters, and a checkpoint after every one; the probe at both ends.
STEPS = {"num_steps": 3, "log_every": 1, "checkpoint_every": 1, "warmup_fraction": 0.0}
STEPS |= {"probe_collection": "animals", "probe_split": "test"}
DEVICES = """
import argparse
import jax
jax.config.update("jax_num_cpu_devices", {devices})
jax.config.update("jax_cpu_collectives_implementation", "gloo")
from retromae_jax import hosts
parser = argparse.ArgumentParser()
hosts.add_flags(parser)
hosts.start(parser.parse_args())
"""
STAGES = """
from tests.train import test_several_processes as stages
stages.run_stages({stages!r})
"""
DISAGREEING = """
import tempfile
from pathlib import Path
from retromae_jax.errors import InputError
for check in (
    lambda: hosts.check_same(f"batch_size {jax.process_index()}"),
    lambda: hosts.check_shared(Path(tempfile.mkdtemp()), "--config.workdir"),
):
    try:
        check()
    except InputError as error:
        print(error, flush=True)
hosts.check_same("batch_size 8")
hosts.check_shared(Path.cwd(), "--config.workdir")
while True:
    hosts.wait_for_all("forever")
"""


# The parts of gloo's message, each of which it prints as a whole.
GLOO = r"\[Gloo\] Rank |\d+| is connected to | peer ranks\. Expected number of connected peer ranks is : |\s"


def run_stages(stages):
    """Runs some of pretraining, fine-tuning, mining, scoring and encoding in the current directory."""
    if "pretrained" in stages:
        config = wiki.get_config("tiny")
        config.update(STEPS | {"workdir": "pretrained", "evaluate_every": 3})
        pretrain(config)
    if "finetuned" in stages:
        config = msmarco.get_config("tiny")
        # With this seed, two processes that counted for themselves would make different numbers of rows of each batch.
        rows = {"passage_max_length": 128, "shape_buckets": 64, "seed": 2}
        config.update(STEPS | {"workdir": "finetuned", "init": "pretrained"} | rows)
        finetune(config)
        export_run(config.workdir)
    if "published_batch" in stages:
        config = msmarco.get_config("tiny")
        sizes = {"batch_size": 128, "group_size": 8, "gradient_cache_chunk": 8 if jax.device_count() == 1 else 0}
        config.update(STEPS | {"workdir": "published_batch", "init": "pretrained"} | sizes)
        finetune(config)
    if "searched" in stages:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hosts, "part", lambda: hosts.wait_for_all("more to come"))
            animals = ["--collection", "animals", "--split", "test"]
            for searcher, output in ((["--bm25"], "mined_by_bm25.tsv"), (["--model", "finetuned"], "mined.tsv")):
                mine.mine(mine.parse([*animals, *searcher, "--output", output, "--from-rank", "1", "--to-rank", "5"]))
            pairs = ["--pairs", "mined.tsv", "--output", "scored"]
            rerank.evaluate(rerank.parse([*animals, *pairs, "--model", "cross_encoder"]))
            for _ in range(2):  # the second time, all is measured already
                beir.evaluate(beir.parse(["--model", "finetuned", "--dataset", "animals", "--output", "beir"]))
            on_devices = ["--model", "finetuned", "--search", "device", "--output", "found_by_devices"]
            evaluate(parse([*animals, *on_devices]))
    if "encoded" in stages:
        model = ["--model", "finetuned", "--output", "encoded"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embeddings, "WINDOW", 2)  # four shards
            encode.encode(encode.parse(["--model", "finetuned", "--corpus", "animals", "--output", "stored"]))
        evaluate(parse([*model, "--collection", "animals", "--split", "test", "--embeddings", "stored"]))


def start(directory, processes, devices, script, *flags):
    """Processes of a script in a directory, joined by the flags of a command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": FAST_COMPILING,
        "PJRT_NPROC": "16",  # with fewer threads than devices, collectives of gloo wait for each other forever
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]),
    }
    command = [sys.executable, "-c", DEVICES.format(devices=devices) + script, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []
    for process in range(processes):
        joined = ["--coordinator", address, "--processes", str(processes), "--process", str(process)]
        joined = joined if processes > 1 else []
        started.append(subprocess.Popen([*command, *joined], cwd=directory, env=environment, **pipes))
    return started


def finish(started):
    """What the processes wrote to stdout and stderr."""
    outputs = [process.communicate(timeout=240) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs


def metrics_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("per_second", "utilization"))} for line in lines]


def assert_same_metrics(found, expected, relative):
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for here, there in zip(found, expected, strict=True):
        for key, value in there.items():
            # The gain is a small difference of two losses of about 10.
            tolerance = 10 * relative if key.endswith("gain") else relative
            assert here[key] == pytest.approx(value, rel=relative, abs=tolerance), (key, there["step"])


def parameters_of(run_directory):
    run = Run(run_directory)
    values = {key: np.asarray(value) for key, value in run.restore_parameters().items()}
    run.close()
    return values


def assert_same_arrays(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=key)


@pytest.fixture(scope="module")
def data(tmp_path_factory, demo_packages):
    """A directory with what all stages read: the demo's data, token blocks of it, and a small collection."""
    directory = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        demo_data.make_demo_data(Path("build", "demo"))
        config = wiki.get_config("tiny")
        config.workers = 1
        prepare(config)
        Path("animals").mkdir()
        # Of an odd number, so that the shares differ.
        names = ["cat", "dog", "red deer", "great white shark", "crow", "owl", "tawny owl of the woods"]
        passages = "".join(f"{number}\tA {name} lives.\n" for number, name in enumerate(names))
        Path("animals", "collection.tsv").write_text(passages)
        Path("animals", "queries.test.tsv").write_text("q1\tthe cat lives\nq2\towls of the woods\nq3\tsharks\n")
        Path("animals", "qrels.test.tsv").write_text("q1\t0\t0\t1\nq2\t0\t5\t1\nq3\t0\t3\t1\n")
        tokenizer = load_tokenizer(config.tokenizer)
        bert = BertConfig(len(tokenizer), 32, 2, 2, 64)
        weights = initialize(Reranking(bert, Computation()).model, seed=1)
        save_cross_encoder(Path("cross_encoder"), bert, weights, tokenizer, EncoderSettings("cls", False, 32))
    return directory


def with_links(directory, data):
    """The directory, in which the stages can now run."""
    for path in data.iterdir():
        (directory / path.name).symlink_to(path)
    return directory


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Directories of all stages run on one process with eight devices (this one) and on two with four each; and what
    the two wrote."""
    one, two = (with_links(tmp_path_factory.mktemp(name), data) for name in ("one", "two"))
    stages = ("pretrained", "finetuned", "searched", "encoded")
    started = start(two, 2, 4, STAGES.format(stages=stages))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one)
        run_stages(stages)
    return one, two, finish(started)


@pytest.mark.parametrize("run", ["pretrained", "finetuned"])
def test_two_processes_train_as_one(runs, run, tmp_path):
    one, two, _ = runs
    assert_same_metrics(metrics_of(two / run), metrics_of(one / run), 1e-6)
    assert_same_arrays(parameters_of(two / run), parameters_of(one / run), 1e-6)
    assert [line["step"] for line in metrics_of(two / run) if "probe/nDCG@10" in line] == [0, 3]


def test_two_processes_export_as_one(runs, tmp_path):
    one, two, _ = runs
    exported = [directory / "finetuned" / "export" for directory in (one, two)]
    tensors = [load_file(directory / "model.safetensors") for directory in exported]
    assert_same_arrays(tensors[1], tensors[0], 1e-6)
    assert "| devices | 8 x cpu |" in (exported[1] / "README.md").read_text()


@pytest.mark.parametrize("output", ["encoded", "found_by_devices"])
def test_two_processes_encode_and_search_as_one(runs, output):
    one, two, _ = runs
    scores = []
    for run in (one, two):
        lines = [line.split() for line in (run / output / "run.trec").read_text().splitlines()]
        scores.append({(query, passage): float(score) for query, _, passage, _, score, _ in lines})
    assert len(scores[0]) == 3 * 7
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
    stored = [embeddings.Embeddings(run / "stored") for run in (one, two)]
    assert len(list((two / "stored").glob("vectors-*-of-00004.npy"))) == 4
    np.testing.assert_allclose(stored[1][:], stored[0][:], rtol=0, atol=1e-6)
    assert stored[1].ids == stored[0].ids
    # The shares that passed through files there are gone.
    files = [sorted(path.name for path in (run / output).iterdir()) for run in (one, two)]
    assert files[0] == files[1] == ["metrics.json", "per_query.jsonl", "report.html", "run.trec"]


def test_two_processes_mine_and_score_as_one(runs):
    one, two, _ = runs
    for name, queries in (("mined.tsv", 3), ("mined_by_bm25.tsv", 2)):
        lines = (one / name).read_text().splitlines()
        assert len(lines) == queries
        assert (two / name).read_text().splitlines() == lines
    scores = []
    for run in (one, two):
        lines = [line.split("\t") for line in (run / "scored" / "scores.tsv").read_text().splitlines()]
        scores.append({(query, passage): float(score) for query, passage, score in lines})
    # Each query's relevant passage, and those that were mined.
    assert len(scores[0]) == 3 + sum(line.count(",") + 1 for line in (one / "mined.tsv").read_text().splitlines())
    assert list(scores[1]) == list(scores[0])
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    # What passed through files there is gone.
    assert [path.name for path in (two / "scored").iterdir()] == ["scores.tsv"]
    assert [path.name for path in two.glob(".*")] == []


def test_two_processes_measure_datasets_as_one(runs):
    one, two, _ = runs
    (here, there) = (json.loads((run / "beir" / "animals" / "metrics.json").read_text()) for run in (one, two))
    assert there["metrics"] == here["metrics"]
    summaries = [json.loads((run / "beir" / "beir.json").read_text()) for run in (one, two)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["mean"] == {measure: here["metrics"][measure] for measure in ("nDCG@10", "Recall@100")}


def test_only_the_first_process_speaks(runs):
    (printed, said), (printed_by_second, said_by_second) = runs[2]
    for part in (
        "2 processes",
        "8 x cpu, 4 on each of 2 processes",
        "pretrain: finished",
        "finetune: finished",
        "run and scores",
        "animals: measured already in the same way",
    ):
        assert part in said
    assert "MRR@10" in printed
    # But for what gloo says, whose threads may print into each other's lines.
    assert re.sub(GLOO, "", printed_by_second) == ""
    for part in ("2 processes", "pretrain", "finetune", "encode", "run and scores"):
        assert part not in said_by_second


@pytest.mark.long
def test_a_run_goes_on_with_other_hosts_and_devices(runs, tmp_path):
    """A step on one process with eight devices, one on two with four each, one on a single device."""
    one, stages = runs[0], ("pretrained", "finetuned")
    moved = tmp_path / "moved"
    shutil.copytree(one, moved, symlinks=True)
    for stage in stages:
        shutil.rmtree(moved / stage / "checkpoints" / "2")
        shutil.rmtree(moved / stage / "checkpoints" / "3")
    for processes, devices, step in ((2, 4, 1), (1, 1, 2)):
        (_, said), *_ = finish(start(moved, processes, devices, STAGES.format(stages=stages)))
        assert said.count(f"3, from step {step} on") == 2
        for stage in stages:
            assert_same_metrics(metrics_of(moved / stage), metrics_of(one / stage), 1e-5)
            assert_same_arrays(parameters_of(moved / stage), parameters_of(one / stage), 1e-6)
            shutil.rmtree(moved / stage / "checkpoints" / "3")


def test_disagreement_is_refused_everywhere_and_the_loss_of_a_process_ends_the_others(tmp_path):
    lost_after = 5
    survivor, lost = start(tmp_path, 2, 1, DISAGREEING, "--lost-after", str(lost_after))
    for process in (survivor, lost):
        said = (line for line in process.stdout if line.startswith("process "))
        assert "process 1 has other settings or data than process 0" in next(said)
        assert "let --config.workdir name a directory that all hosts share" in next(said)
    lost.kill()
    killed = time.monotonic()
    _, errors = survivor.communicate(timeout=60)
    assert time.monotonic() - killed < 2 * lost_after
    assert survivor.returncode != 0
    assert f"the others end within {lost_after} s" in errors
    assert "Task 1 heartbeat timeout" in errors or "stopped sending heartbeats):\n1\n" in errors
    lost.communicate()


@pytest.mark.long
def test_the_published_batch_trains_alike_in_chunks_on_eight_devices_and_on_two_hosts(runs, data, tmp_path):
    """128 queries x 8 passages: on eight devices at once, on one in chunks of 8 rows, on two processes with four."""
    found = []
    for processes, devices in ((1, 8), (1, 1), (2, 4)):
        directory = tmp_path / f"{processes}x{devices}"
        directory.mkdir()
        with_links(directory, data)
        (directory / "pretrained").symlink_to(runs[0] / "pretrained")
        finish(start(directory, processes, devices, STAGES.format(stages=("published_batch",))))
        found.append((metrics_of(directory / "published_batch"), parameters_of(directory / "published_batch")))
    (expected_metrics, expected), *others = found
    for metrics, values in others:
        assert_same_metrics(metrics, expected_metrics, 1e-5)
        assert_same_arrays(values, expected, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("asked_by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(data, tmp_path, asked_by):
    script = STAGES.format(stages=("pretrained",)).replace("stages.run", "stages.STEPS['num_steps'] = 1000; stages.run")
    first, second = start(with_links(tmp_path, data), 2, 4, script)
    checkpoints = tmp_path / "pretrained" / "checkpoints"
    while not (checkpoints / "1").exists():
        assert first.poll() is None
        time.sleep(0.1)
    second.send_signal(asked_by)
    _, errors = first.communicate(timeout=120)
    second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (143, 143)
    last = max(int(path.name) for path in checkpoints.iterdir())
    assert f"stopped by a signal after step {last}" in errors
    assert metrics_of(tmp_path / "pretrained")[-1]["step"] == last < 1000


@pytest.mark.long
def test_a_directory_that_is_away_for_a_while_costs_two_processes_checkpoints_only(data, tmp_path):
    steps = 60
    script = STAGES.format(stages=("pretrained",)).replace(
        "stages.run", f"stages.STEPS['num_steps'] = {steps}; stages.run"
    )
    first, second = start(with_links(tmp_path, data), 2, 4, script)
    checkpoints, away = tmp_path / "pretrained" / "checkpoints", tmp_path / "away"
    while not (checkpoints / "2").exists():
        assert first.poll() is None
        time.sleep(0.1)
    checkpoints.rename(away)
    said = next(line for line in first.stderr if "could not be saved" in line)
    assert "No such file or directory" in said and "training goes on" in said
    away.rename(checkpoints)
    _, errors = first.communicate(timeout=240)
    second.communicate(timeout=240)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "pretrain: finished" in errors
    assert max(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal()) == steps
    assert [line["step"] for line in metrics_of(tmp_path / "pretrained") if "loss" in line] == list(range(1, steps + 1))
