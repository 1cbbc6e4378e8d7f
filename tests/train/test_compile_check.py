"""Training steps compiled for TPUs by their real compiler, on this CPU; how they compute is tested elsewhere."""

import importlib.util
import json

import pytest

from configs import msmarco, rerank, wiki
from retromae_jax.chips import topology, tpu_topology
from retromae_jax.errors import InputError
from retromae_jax.models.bert import BertConfig
from tests.conftest import missing
from train.compile_check import PUBLISHED, check, main, remedy, sizes_of

# Small, and of the shapes that the attention kernels are for.
SMALL = BertConfig(1000, 128, 1, 2, 256, max_position_embeddings=128)


@pytest.fixture(scope="module")
def slice_of_four():
    if importlib.util.find_spec("libtpu") is None:
        missing("the TPU compiler is not installed (`make test` installs it)")
    return tpu_topology("v5e:2x2")


def pretraining(**changes):
    config = wiki.get_config()
    config.update(block_length=128, batch_size=16, init="")
    config.update(changes)
    return config


def test_a_pretraining_step_sums_gradients_and_exchanges_nothing_else_of_size(slice_of_four):
    report = check(pretraining(), SMALL, slice_of_four)
    assert report["fits"] and report["chips"] == 4 and report["tokens_per_chip"] == 4 * 128
    exchanges = report["exchanges"]
    gradients = 4 * report["parameters"]
    # The gradients of embeddings come twice: of words also from the vocabulary head, of positions from the decoder.
    assert gradients < exchanges["all-reduce"]["bytes"] < gradients + 1.2 * 4 * 1000 * 128
    one_number_a_token = 4 * report["tokens_per_chip"] * 4
    assert sum(e["bytes"] for kind, e in exchanges.items() if kind != "all-reduce") < 128 * one_number_a_token
    # Neither logits of all tokens nor anything of the whole batch's attention.
    assert report["largest_array_bytes"] < 4 * 4 * 128 * 1000
    assert 0 < report["arithmetic_seconds"] < report["estimated_seconds"]
    # XLA counts loops once, and more than products otherwise.
    assert 0.2 < report["xla_flops_per_chip"] / report["model_flops_per_chip"] < 2


def test_a_fine_tuning_step_gathers_passages(slice_of_four):
    config = msmarco.get_config()
    config.update(batch_size=8, group_size=2, query_max_length=16, passage_max_length=32)
    report = check(config, SMALL, slice_of_four)
    assert report["fits"] and report["tokens_per_chip"] == 2 * 16 + 4 * 32
    assert report["exchanges"]["all-reduce"]["bytes"] > 4 * report["parameters"]
    assert "all-gather" in report["exchanges"]


@pytest.mark.long
def test_a_reranking_step_exchanges_gradients_only(slice_of_four):
    config = rerank.get_config()
    config.update(batch_size=8, group_size=2, max_length=32)
    report = check(config, SMALL, slice_of_four)
    assert report["fits"] and report["tokens_per_chip"] == 4 * 32
    assert report["exchanges"].keys() == {"all-reduce"}


@pytest.mark.long
@pytest.mark.parametrize("objective", ["retromae", "dupmae"])
def test_chips_of_a_pod_do_no_more_than_those_of_a_host(slice_of_four, objective):
    """BERT-base with 32 texts of 512 tokens a chip."""
    reports = {}
    for name, devices in (("host", slice_of_four), ("pod", tpu_topology("v5e:16x16"))):
        config = wiki.get_config()
        config.update(batch_size=32 * devices.size, objective=objective)
        reports[name] = check(config, BertConfig(num_hidden_layers=2), devices)
    assert reports["pod"]["fits"]
    assert reports["pod"]["xla_flops_per_chip"] == pytest.approx(reports["host"]["xla_flops_per_chip"], rel=0.1)
    assert reports["pod"]["peak_memory"] < 1.1 * reports["host"]["peak_memory"]
    gradients = 4 * reports["pod"]["parameters"]
    assert reports["pod"]["exchanges"].keys() <= {"all-reduce", "all-to-all"}
    assert reports["pod"]["exchanges"]["all-reduce"]["bytes"] < 2.5 * gradients


def report_of(**changes):
    report = {"fits": False, "chips": 8, "parameters": 110e6, "peak_memory": 24 * 2**30, "memory_of_chip": 16 * 2**30}
    return report | changes


def test_a_step_that_does_not_fit_says_by_how_much_and_what_mends_it():
    line = remedy(report_of(), pretraining())
    assert "needs 24.0 GiB of 16.0 GiB, 8.8 GiB too much" in line
    assert "--config.remat=true" in line and "--config.accumulation_parts=2" in line and "fsdp" not in line
    assert "--config.fsdp=8" in remedy(report_of(parameters=560e6), pretraining())
    assert "remat" not in remedy(report_of(), pretraining(remat=True))
    assert "--texts-per-chip" in remedy(report_of(), msmarco.get_config())


def test_sizes_come_without_a_download(tmp_path):
    assert sizes_of(wiki.get_config(), "") == BertConfig()
    large = sizes_of(wiki.get_config(), "FacebookAI/xlm-roberta-large")
    assert (large.hidden_size, large.num_hidden_layers, large.vocab_size, large.max_length) == (1024, 24, 250002, 512)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 384}))
    assert sizes_of(wiki.get_config(), str(tmp_path)).hidden_size == 384
    with pytest.raises(InputError, match="sizes of 'somebody/model' are not known here; give --init a directory or"):
        sizes_of(wiki.get_config(), "somebody/model")
    assert all(config.hidden_size % 128 == 0 for config in PUBLISHED.values())


def test_the_command(slice_of_four, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "train.compile_check.check",
        lambda config, *_: report_of(chip="TPU v5 lite", tokens_per_chip=config.batch_size // 4 * config.block_length),
    )

    def error_of(*arguments):
        with pytest.raises(SystemExit):
            main(arguments)
        return capsys.readouterr()

    arguments = ("--config", "configs/wiki.py", "--topology", "v5e:2x2")
    printed = error_of(*arguments, "--texts-per-chip", "16", "--output", str(tmp_path / "report.json"))
    assert "DOES NOT FIT" in printed.out and "needs 24.0 GiB of 16.0 GiB" in printed.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["texts_per_chip"] == 16 and report["tokens_per_chip"] == 16 * 512
    assert "slices are named like v5e:16x16" in error_of("--config", "configs/wiki.py", "--topology", "v9:2x2").err
    for recipe in (("--config", "configs/wiki.py"), ("--config=configs/msmarco.py",)):
        assert "--topology is missing" in error_of(*recipe).err
    monkeypatch.undo()
    assert "6 rows do not divide over 4 devices" in error_of(*arguments, "--config.batch_size=6").err


def test_gpus_need_their_compiler():
    if importlib.util.find_spec("jax_plugins") is not None:
        missing("JAX's CUDA plugin is installed")
    with pytest.raises(InputError, match="pip install --no-deps 'jax-cuda13-plugin"):
        topology("h100:8")
