"""The training commands end to end on the demo's text: tiny models, a few steps."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import Dataset

from configs import (
    cocondenser,
    condenser,
    demo,
    demo_finetune,
    dupmae,
    masked_lm,
    msmarco,
    msmarco_distill,
    msmarco_dupmae,
    msmarco_pretrain,
    wiki,
)
from eval import mine
from eval import msmarco as measured
from retromae_jax import hosts, tracking
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.data.retrieval import load_collection, load_passages
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.encoder import Encoder, Encoders
from retromae_jax.errors import InputError
from retromae_jax.models import lexical
from retromae_jax.models.bert import Computation
from retromae_jax.retrieval.encode import encode_texts
from retromae_jax.training import pretraining_step
from tests.small import compilations
from train import demo_data
from train.export import export
from train.finetune import finetune, together
from train.prepare import prepare
from train.pretrain import _open_source, pretrain

# Pretraining recipes, and what a plain encoder lacks of their models.
PRETRAINING = {
    wiki: "decoder, head",
    msmarco_pretrain: "decoder, head",
    dupmae: "decoder, head",
    masked_lm: "head",
    condenser: "condenser_head, head",
    cocondenser: "condenser_head, head",
}
FINETUNING = (msmarco, msmarco_distill, msmarco_dupmae, demo_finetune)
RECIPES = {recipe.__name__.split(".")[-1]: recipe for recipe in (*PRETRAINING, demo, *FINETUNING)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, demo_packages):
    """A directory with the demo's data under build/demo."""
    directory = tmp_path_factory.mktemp("work")
    demo_data.make_demo_data(directory / "build" / "demo")
    return directory


@pytest.fixture(autouse=True)
def in_directory(directory, monkeypatch):
    monkeypatch.chdir(directory)


def tiny(recipe, **changes):
    config = RECIPES[recipe].get_config("tiny")
    config.update(changes)
    return config


def parameters_of(run_directory, step=None):
    run = Run(run_directory)
    assert step is None or run.checkpoints.steps()[-1] == step
    values = jax.device_get(run.restore_parameters())
    run.close()
    return values


def metrics_of(run_directory):
    lines = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_per_second", "_utilization"))} for line in lines]


@pytest.fixture(scope="module")
def compiled_programs():
    """Names of the programs that the run of `pretrained` compiled."""
    return []


@pytest.fixture(scope="module")
def pretrained(directory, compiled_programs):
    """The directory of a finished tiny pretraining run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        config = tiny("wiki", workdir="pretrained", workers=1)
        prepare(config)
        with compilations() as names:
            pretrain(config)
    compiled_programs += names
    return directory / "pretrained"


def test_steps_and_measurements_are_compiled_once(pretrained, compiled_programs):
    """Batches have one shape here, and a state that a step made enters the next as the first one did."""
    assert [name for name in compiled_programs if name in ("jit(step)", "jit(evaluate)")] == [
        "jit(evaluate)",
        "jit(step)",
    ]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.long
def test_options_reach_the_step_and_leave_the_run_as_it_is(pretrained, tmp_path, monkeypatch):
    steps = []

    def spied(objective, graph, optimizer, seed, parts):
        steps.append((objective.computation, parts))
        return pretraining_step(objective, graph, optimizer, seed, parts)

    monkeypatch.setattr("train.pretrain.pretraining_step", spied)
    common = {"batch_size": 16, "num_steps": 2, "log_every": 1, "checkpoint_every": 2, "validation_blocks": 12}
    changes = {
        "plain": {},
        "other": {"accumulation_parts": 2, "remat": True, "pack_rows": False, "attention": "plain"},
        "bfloat16": {"compute_dtype": "bfloat16"},
    }
    logs = {}
    for name, changed in changes.items():
        pretrain(tiny("wiki", workdir=str(tmp_path / name), **common, **changed))
        logs[name] = metrics_of(tmp_path / name)
    assert steps == [
        (Computation(jnp.dtype("float32"), remat=False, attention="cached"), 1),
        (Computation(jnp.dtype("float32"), remat=True, attention="plain"), 2),
        (Computation(jnp.dtype("bfloat16"), remat=False, attention="cached"), 1),
    ]
    for name, tolerance in (("other", 1e-5), ("bfloat16", 0.02)):
        for found, expected in zip(logs[name], logs["plain"], strict=True):
            assert found["step"] == expected["step"] and found.keys() == expected.keys()
            for key in (key for key in expected if key.endswith("loss")):
                # Held-out batches are as large as parts, and the mean over them is not quite that over labels.
                share = 10 if key.startswith("held_out") else 1
                assert found[key] == pytest.approx(expected[key], rel=share * tolerance), key
    assert logs["bfloat16"] != logs["plain"]


def test_continued_pretraining_starts_from_all_that_is_there(pretrained, tmp_path, capsys):
    export(str(pretrained), tmp_path / "exported")
    last = metrics_of(pretrained)[-1]
    for init in (str(pretrained), str(tmp_path / "exported")):
        run = tmp_path / f"from_{Path(init).name}"
        pretrain(tiny("wiki", init=init, workdir=str(run), num_steps=1))
        assert "loaded" in capsys.readouterr().err
        first = metrics_of(run)[0]
        assert first["step"] == 0 and first["held_out/loss"] == pytest.approx(last["held_out/loss"], rel=1e-6)
    # A plain encoder has neither decoder nor head.
    shutil.rmtree(tmp_path / "exported" / "masked_lm")
    pretrain(tiny("wiki", init=str(tmp_path / "exported"), workdir=str(tmp_path / "fresh"), num_steps=1))
    assert "start fresh: decoder, head" in capsys.readouterr().err
    assert metrics_of(tmp_path / "fresh")[0]["held_out/loss"] != pytest.approx(last["held_out/loss"], rel=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        # Its spans and its heads are what `pretrained` has not.
        recipe if recipe == "cocondenser" else pytest.param(recipe, marks=pytest.mark.long)
        for recipe in RECIPES
        if RECIPES[recipe] in PRETRAINING
    ],
)
def test_every_pretraining_resumes_exports_and_continues(recipe, tmp_path):
    run, exported = tmp_path / "run", tmp_path / "exported"
    text = Path("build/demo/text.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "text.jsonl").write_text("".join(text[:300]), encoding="utf-8")
    config = tiny(recipe, workdir=str(run), data=str(tmp_path / "blocks"), workers=1)
    config.update(sources=(str(tmp_path / "text.jsonl"),), num_steps=2)
    config.update(log_every=1, evaluate_every=2, checkpoint_every=1)
    prepare(config)
    pretrain(config)
    expected, log = parameters_of(run, step=2), metrics_of(run)
    assert log[-1]["held_out/loss"] < log[0]["held_out/loss"]

    # Resumed, it equals the run that never stopped.
    shutil.rmtree(run / "checkpoints" / "2")
    if recipe == "masked_lm":  # and measuring on the way changes nothing
        config.update(probe_collection="build/demo/collection", probe_every=2, probe_passages=200)
    pretrain(config)
    assert_same(parameters_of(run, step=2), expected)
    probed = [line for line in metrics_of(run) if "probe/nDCG@10" in line]
    assert [line["step"] for line in probed] == ([2] if recipe == "masked_lm" else [])
    assert [line for line in metrics_of(run) if line not in probed] == log

    # Pretraining that starts from its export has all of it, decoder and heads included.
    export(str(run), exported)
    loaded, report = _open_source(str(exported)).parameters(expected)
    assert_same(loaded, expected)
    assert str(report) == f"loaded {len(expected)} tensors"

    # Of an encoder that is no more than that, the rest starts fresh.
    shutil.rmtree(exported / "masked_lm")
    _, report = _open_source(str(exported)).parameters(expected)
    assert f"start fresh: {PRETRAINING[RECIPES[recipe]]}" in str(report)


def test_pretraining_logs_what_the_user_looks_for(pretrained):
    lines = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out/reconstruction_gain" in line]
    assert [line["step"] for line in training] == [3, 6]
    assert [line["step"] for line in held_out] == [0, 3, 6]
    assert training[0].keys() >= {"encoder_loss", "decoder_accuracy", "learning_rate", "tokens_per_second"}
    assert all(0 < line["model_flops_utilization"] < 1 for line in training)
    assert training[1]["loss"] < training[0]["loss"] < 2 * np.log(30522) * 1.01
    assert list((pretrained / "tensorboard").iterdir())


def test_settings_that_make_no_sense_are_refused(pretrained, tmp_path, monkeypatch):
    changes = {"batch_size": 0, "log_every": 0, "encoder_mask_probability": 1.5, "data": "nowhere"}
    with pytest.raises(InputError) as error:
        pretrain(tiny("wiki", workdir=str(tmp_path / "never"), **changes))
    for problem in ("batch_size 0 is less than 1", "log_every 0 is less than 1", "encoder_mask_probability 1.5"):
        assert problem in str(error.value)
    with pytest.raises(InputError, match="checkpoint_every 4 is not a multiple of log_every 3"):
        pretrain(tiny("wiki", workdir=str(tmp_path / "never"), checkpoint_every=4))
    monkeypatch.setattr(tracking, "missing", sorted)
    changes = {"trackers": ("comet", "wandb"), "probe_collection": "nowhere", "probe_passages": 5, "attention": "cudnn"}
    with pytest.raises(InputError) as error:
        pretrain(tiny("wiki", workdir=str(tmp_path / "never"), **changes))
    for problem in (
        "trackers 'comet' is unknown; known are wandb, mlflow",
        "trackers wandb: the package is not installed; pip install wandb",
        "probe_collection 'nowhere' is not there; probe_passages 5 is less than 100",
        "attention 'cudnn' is for NVIDIA's GPUs, and the devices are cpu; take `auto`",
    ):
        assert problem in str(error.value)
    config = tiny("wiki", workdir=str(tmp_path / "never"))
    config.model.hiden_size = 64
    with pytest.raises(InputError, match="no size 'hiden_size'; did you mean 'hidden_size'"):
        pretrain(config)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"choose another --config\.workdir"):
        pretrain(tiny("wiki", workdir=str(tmp_path / "file")))
    with pytest.raises(InputError, match="gs://bucket/wiki is an address, not a directory; mount"):
        pretrain(tiny("wiki", workdir="gs://bucket/wiki"))


def test_other_data_under_the_same_name_are_refused(pretrained, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(pretrained, resumed)
    description = json.loads((resumed / "run.json").read_text())
    description["data"]["blocks"] += 1
    (resumed / "run.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="number of blocks"):
        pretrain(tiny("wiki", workdir=str(resumed)))


def test_blocks_of_other_making_with_ids_beyond_the_vocabulary_are_refused(tmp_path):
    Dataset.from_dict({"token_ids": [[5, 6, 40000]] * 40}).save_to_disk(tmp_path / "blocks")
    with pytest.raises(InputError, match="holds token ids from 5 to 40000"):
        pretrain(tiny("wiki", data=str(tmp_path / "blocks"), workdir=str(tmp_path / "never")))


def test_cocondenser_wants_documents(pretrained, tmp_path):
    with pytest.raises(InputError, match=r"does not tell which blocks .* make it again .*pack_documents=False"):
        pretrain(tiny("cocondenser", data="data/wiki_tiny", workdir=str(tmp_path / "never")))
    Dataset.from_dict({"token_ids": [[5] * 20] * 15, "document": range(15)}).save_to_disk(tmp_path / "few")
    with pytest.raises(InputError, match="has 15 documents; validation_blocks 8 and batch_size 8 need at least 16"):
        pretrain(tiny("cocondenser", data=str(tmp_path / "few"), workdir=str(tmp_path / "never")))


def test_other_settings_in_the_same_directory_are_refused(pretrained):
    with pytest.raises(InputError, match=r"learning_rate \(there 0.0001, here 0.1\)"):
        pretrain(tiny("wiki", workdir=str(pretrained), learning_rate=0.1))


def test_blocks_of_another_vocabulary_are_refused(pretrained, tmp_path):
    other = tmp_path / "blocks"
    shutil.copytree("data/wiki_tiny", other)
    settings = json.loads((other / "prepare.json").read_text())
    (other / "prepare.json").write_text(json.dumps(settings | {"tokenizer_fingerprint": "0" * 16}))
    with pytest.raises(InputError, match="whose vocabulary is not that of"):
        pretrain(tiny("wiki", data=str(other), workdir=str(tmp_path / "run")))


def test_all_problems_are_reported_at_once(pretrained, tmp_path):
    config = tiny("wiki", workdir=str(tmp_path / "never"), block_length=4096, compute_dtype="float8", batch_size=80000)
    with pytest.raises(InputError, match="4 problem") as error:
        pretrain(config)
    for problem in (
        "block_length 4096 is not between 3 and the model's",
        "block_length 4096 is more than the 2048 tokens that can be masked",
        "compute_dtype 'float8'",
        "validation_blocks 8 and batch_size 80000",
    ):
        assert problem in str(error.value)
    config.update(data="nowhere", tokenizer="./no_tokenizer", learning_rate=float("nan"), decoder_query="raw")
    config.update(fsdp=0, accumulation_parts=0, seed=-1, objective="none")
    with pytest.raises(InputError, match="8 problem") as error:
        pretrain(config)
    for problem in (
        "nowhere: token blocks do not exist",
        "model directory './no_tokenizer' does not exist",
        "learning_rate nan is not above 0",
        "decoder_query 'raw' is unknown; known are position, embedded",
        "objective 'none' is unknown",
        "fsdp 0 is less than 1; accumulation_parts 0 is less than 1; seed -1 is less than 0",
    ):
        assert problem in str(error.value)
    assert not (tmp_path / "never").exists()
    with pytest.raises(InputError, match="batch_size 9 does not divide over 8 devices"):
        pretrain(tiny("wiki", workdir=str(tmp_path / "never"), batch_size=9))


def test_fine_tuning_starts_from_the_run_resumes_and_exports(pretrained, tmp_path, capsys, monkeypatch):
    config = tiny("msmarco", init=str(pretrained), workdir=str(tmp_path / "run"))
    finetune(config, profile=True)
    expected = parameters_of(tmp_path / "run", step=6)
    (trace,) = (tmp_path / "run" / "profile" / "process_0").glob("plugins/profile/*/*.xplane.pb")
    assert b"finetune" in trace.read_bytes()
    assert f"profile: steps 4 to 6 are in {tmp_path / 'run' / 'profile'}" in capsys.readouterr().err
    start = parameters_of(pretrained)
    assert expected.keys() == {name for name in start if name.startswith("bert.")}
    moved = max(float(np.max(np.abs(expected[name] - start[name]))) for name in expected)
    assert 0 < moved < 1e-3

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    with pytest.raises(InputError, match=r"--profile needs 6 steps, and .* has 3 to go"):
        finetune(config, profile=True)
    with monkeypatch.context() as patch:
        patch.setattr(hosts.StopSignals, "are_given", lambda signals, step: step == 4)
        with pytest.raises(SystemExit) as stopped:
            finetune(config)
    assert stopped.value.code == 143
    assert "finetune: stopped by a signal after step 4" in capsys.readouterr().err
    finetune(config)
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [3, 4, 6]
    for name, value in parameters_of(tmp_path / "run", step=6).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)

    export(str(tmp_path / "run"), tmp_path / "exported")
    texts = ["An encoder.", "Something else entirely"]
    from_run = encode_texts(Encoder.from_pretrained(str(tmp_path / "run")), texts, "passage")
    from_export = encode_texts(Encoder.from_pretrained(str(tmp_path / "exported")), texts, "passage")
    np.testing.assert_array_equal(from_run, from_export)
    assert not (tmp_path / "exported" / "masked_lm").exists()


def test_prompts_are_trained_exported_and_evaluated(pretrained, tmp_path, monkeypatch):
    """The token ids that training sees of a query and its passage are those that evaluation sees of them."""
    texts = {"query_prompt": "find: ", "passage_prompt": "read: ", "titles": True, "title_separator": " [SEP] "}
    steps = {"num_steps": 1, "log_every": 1, "checkpoint_every": 1, "query_max_length": 12, "passage_max_length": 20}
    config = tiny("msmarco", init=str(pretrained), workdir=str(tmp_path / "run"), **texts, **steps)
    config.collection = str(tmp_path / "animals")
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "corpus.tsv").write_text("".join(f"{n}\tPets\tcat number {n}\n" for n in range(8)))
    (tmp_path / "animals" / "queries.train.tsv").write_text("".join(f"q{n}\tthe cat {n}\n" for n in range(8)))
    (tmp_path / "animals" / "qrels.train.tsv").write_text("".join(f"q{n}\t0\t{n}\t1\n" for n in range(8)))
    seen = set()

    def recorded(query_ids, query_lengths, passage_ids, passage_lengths):
        for ids, lengths in ((query_ids, query_lengths), (passage_ids, passage_lengths)):
            seen.update(tuple(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True))
        return together(query_ids, query_lengths, passage_ids, passage_lengths)

    monkeypatch.setattr("train.finetune.together", recorded)
    finetune(config)
    export(str(tmp_path / "run"), tmp_path / "exported")
    from_run, encoder = (Encoder.from_pretrained(str(tmp_path / name)) for name in ("run", "exported"))
    assert (encoder.settings, encoder.digest) == (from_run.settings, from_run.digest)
    assert (encoder.settings.max_length_of("query"), encoder.settings.max_length_of("passage")) == (12, 20)
    evaluated = set()

    def embed(token_ids, lengths):
        evaluated.update(tuple(row[:length].tolist()) for row, length in zip(token_ids, lengths, strict=True))
        return np.zeros((len(lengths), encoder.dimension))

    encoder.embed = embed
    settings, passages = encoder.settings, load_passages(config.collection)
    encode_texts(encoder, [f"the cat {n}" for n in range(8)], "query")
    encode_texts(encoder, passages.texts(settings.titles, settings.title_separator), "passage")
    assert len(evaluated) == 16 and seen == evaluated
    words = encoder.tokenizer.decode(max(evaluated, key=len))
    assert words.startswith("[CLS] read : pets [SEP] cat number") and words.endswith("[SEP]")

    with pytest.raises(InputError, match=r"passage_prompt takes 6 tokens, .* and passage_max_length is 6; there is no"):
        finetune(tiny("msmarco", init=str(pretrained), passage_prompt="so long a prompt", passage_max_length=6))


def test_distillation_learns_from_a_teachers_scores(pretrained, tmp_path):
    def recipe(name, **changes):
        steps = {"num_steps": 2, "log_every": 1, "checkpoint_every": 2}
        return tiny("msmarco_distill", init=str(pretrained), workdir=str(tmp_path / name), **steps, **changes)

    options = {"gradient_cache_chunk": 1, "matryoshka_dims": (32, 8), "distillation_loss": "kl_batchmean"}
    finetune(recipe("run", contrastive_weight=0.5, **options))
    lines = metrics_of(tmp_path / "run")
    assert len(lines) == 2
    for line in lines:
        assert line["distillation_loss"] > 0
        assert line["loss"] == pytest.approx(line["distillation_loss"] + 0.5 * line["contrastive_loss"], rel=1e-5)
    # A group of 8 has random passages, which nobody scored.
    with pytest.raises(InputError, match=r"teacher_scores: .* random passages .* set --config\.missing_scores"):
        finetune(recipe("never", group_size=8))
    with pytest.raises(InputError, match="no query is left"):
        finetune(recipe("never", group_size=8, missing_scores="drop_query"))
    finetune(recipe("dropped", group_size=8, missing_scores="drop_passage"))
    # The random passages are in the contrastive loss alone, which is of 8 instead of 2 passages for each query.
    dropped, whole = (metrics_of(tmp_path / name)[0]["contrastive_loss"] for name in ("dropped", "run"))
    assert dropped > whole + 0.2
    with pytest.raises(InputError, match="7 problem") as error:
        wrong = {"group_size": 1, "missing_scores": "drop", "matryoshka_dims": (33,), "distillation_loss": "kl"}
        finetune(recipe("never", negatives=("none.tsv",), temperature=0.0, attention="none", **wrong))
    assert "attention 'none' is unknown" in str(error.value)
    assert "negatives 'none.tsv' is not there" in str(error.value)
    assert "temperature 0.0 is not above 0" in str(error.value)
    assert "matryoshka_dims 33 is not a number between 1 and the model's hidden_size 32" in str(error.value)
    assert "group_size 1 is too small to learn from teacher_scores" in str(error.value)


@pytest.mark.long
def test_untied_lexical_embeddings_are_trained_resumed_exported_and_searched(pretrained, tmp_path, capsys):
    """DupMAE's embeddings, here also with an encoder each for queries and passages."""
    steps = {"num_steps": 2, "log_every": 1, "checkpoint_every": 1, "untie_encoder": True, "gradient_cache_chunk": 1}
    config = tiny("msmarco_dupmae", init=str(pretrained), workdir=str(tmp_path / "run"), **steps)
    finetune(config)
    assert "start fresh: passage.projection, query.projection" in capsys.readouterr().err
    expected = parameters_of(tmp_path / "run", step=2)
    assert {name.partition(".")[0] for name in expected} == {"query", "passage"}
    table = "bert.embeddings.word_embeddings.embedding"
    assert np.max(np.abs(expected[f"query.{table}"] - expected[f"passage.{table}"])) > 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    finetune(config)
    assert_same(parameters_of(tmp_path / "run", step=2), expected)

    export(str(tmp_path / "run"), tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir() if path.is_dir()} == {"passage", "query"}
    texts = ["An encoder.", "Something else entirely"]
    for kind in ("query", "passage"):
        from_run = getattr(Encoders.from_pretrained(str(tmp_path / "run")), kind)
        from_export = Encoder.from_pretrained(str(tmp_path / "exported" / kind))
        assert from_run.dimension == 16 + 2 * 16
        np.testing.assert_array_equal(
            encode_texts(from_run, texts, "passage"), encode_texts(from_export, texts, "passage")
        )
    # The next round begins with both encoders as they are.
    for source in (open_model(str(tmp_path / "run")), open_model(str(tmp_path / "exported"))):
        assert source.has_head()
        loaded, report = source.parameters(expected)
        assert_same({name: np.asarray(value) for name, value in loaded.items()}, expected)
        assert report.fresh == []

    collection = tmp_path / "animals"
    collection.mkdir()
    (collection / "collection.tsv").write_text("a\tcats purr\nb\tdogs bark\nc\tapples fall\n")
    (collection / "queries.dev.tsv").write_text("q\tdo cats purr\nr\tdo apples fall\n")
    (collection / "qrels.dev.tsv").write_text("q\t0\ta\t1\nr\t0\tc\t1\n")
    model = f"--model {tmp_path / 'exported'} --collection {collection} --split dev --batch-size 8"
    measured.main(f"{model} --output {tmp_path / 'scores'}".split())
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["settings"]["lexical_top_k"] == 16
    lines = map(str.split, (tmp_path / "scores" / "run.trec").read_text().splitlines())
    found = {(query, passage): float(score) for query, _, passage, _, score, _ in lines}
    assert len(found) == 6
    query, passage = (
        np.asarray(lexical.expand(jnp.asarray(encode_texts(encoder, [text], "passage")), 16, 30522))
        for encoder, text in zip(
            Encoders.from_pretrained(str(tmp_path / "exported")), ("do cats purr", "dogs bark"), strict=True
        )
    )
    assert found["q", "b"] == pytest.approx(float(query[0] @ passage[0]), rel=1e-5)
    mine.main(f"{model} --output {tmp_path / 'negatives.tsv'} --from-rank 1".split())
    assert len((tmp_path / "negatives.tsv").read_text().splitlines()) == 2


def test_lexical_embeddings_want_a_model_with_a_head_and_settings_that_fit(pretrained, tmp_path):
    export(str(pretrained), tmp_path / "exported")
    settings = {"init": str(tmp_path / "exported"), "workdir": str(tmp_path / "never")}
    with pytest.raises(InputError, match=r"masked-language-model head, which .*exported has not; start from a pretra"):
        finetune(tiny("msmarco_dupmae", **settings))
    with pytest.raises(InputError, match="lexical_top_k goes neither with normalize nor with matryoshka_dims"):
        finetune(tiny("msmarco_dupmae", normalize=True, **settings))
    with pytest.raises(InputError, match="lexical_top_k 30523 is more than the model's 30,522 words"):
        finetune(tiny("msmarco_dupmae", lexical_top_k=30523, **settings))
    with pytest.raises(InputError, match="matryoshka_dims 9 is not a number between 1 and projection 8"):
        finetune(tiny("msmarco", projection=8, matryoshka_dims=(9,), **settings))


@pytest.mark.long
def test_fine_tuning_on_prepared_token_ids_is_that_on_their_texts(pretrained, tmp_path):
    """Of a collection as the original code's preprocess.py leaves it: token ids without special tokens."""
    steps = {"init": str(pretrained), "num_steps": 2, "log_every": 1, "checkpoint_every": 2, "group_size": 1}
    finetune(tiny("msmarco", workdir=str(tmp_path / "texts"), titles=False, **steps))

    tokenizer = load_tokenizer("build/demo/checkpoint")
    collection = load_collection("build/demo/collection", "train")
    passages = dict(zip(collection.passages.ids.to_pylist(), collection.passages.texts(False), strict=True))
    for name, texts in (("corpus", passages), ("train_query", collection.queries)):
        ids = tokenizer(list(texts.values()), add_special_tokens=False)["input_ids"]
        Dataset.from_dict({"id": list(texts), "input_ids": ids}).save_to_disk(tmp_path / name)
        mapping = "".join(f"{key}\t{row}\n" for row, key in enumerate(texts))
        (tmp_path / name / "mapping_id.txt").write_text(mapping)
    judged = [f"{query}\t{passage}\n" for query, grades in collection.qrels.items() for passage in grades]
    (tmp_path / "train_qrels.txt").write_text("".join(judged))
    finetune(tiny("msmarco", workdir=str(tmp_path / "ids"), **steps | {"collection": str(tmp_path)}))
    assert metrics_of(tmp_path / "ids") == metrics_of(tmp_path / "texts")

    with pytest.raises(InputError, match=r"query_prompt and passage_prompt stand before texts, and .* holds token ids"):
        prompted = {"collection": str(tmp_path), "passage_prompt": "passage: "}
        finetune(tiny("msmarco", workdir=str(tmp_path / "never"), **steps | prompted))
    Dataset.from_dict({"input_ids": [[40000]] * len(passages)}).save_to_disk(tmp_path / "corpus")
    mapping = "".join(f"{key}\t{row}\n" for row, key in enumerate(passages))
    (tmp_path / "corpus" / "mapping_id.txt").write_text(mapping)
    with pytest.raises(InputError, match="holds token ids from 40000 to 40000"):
        finetune(tiny("msmarco", workdir=str(tmp_path / "never"), **steps | {"collection": str(tmp_path)}))


@pytest.mark.long
def test_numbers_gone_wrong_end_the_run_and_their_origin_is_found(pretrained, tmp_path):
    """With such a learning rate, the second step makes parameters whose losses are not finite."""
    config = tiny("wiki", workdir=str(tmp_path), learning_rate=1e38, skipped_steps_allowed=1, evaluate_every=6)
    with pytest.raises(InputError, match="not finite in 2 steps in a row, up to step 4") as error:
        pretrain(config)
    with np.load(tmp_path / "batch_of_step_4.npz") as batch:
        assert batch["items"].shape == (8,) and {"items", "token_ids", "lengths"} <= set(batch)
        assert f"its items in the data are {', '.join(map(str, batch['items']))}" in str(error.value)
    assert metrics_of(tmp_path)[-1]["skipped_steps"] == 1
    # What was saved has the parameters from before the first step that was skipped.
    assert all(np.isfinite(value).all() for value in parameters_of(tmp_path, step=3).values())
    config.debug_nans = True
    with pytest.raises(FloatingPointError, match="nan") as origin:
        pretrain(config)
    frames = {Path(frame.path).name for frame in origin.traceback}
    assert frames & {"bert.py", "linear.py", "plain.py", "cross_entropy.py", "masked_lm.py"}


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["wiki", "dupmae", "cocondenser", "msmarco"])
def test_looking_for_nans_finds_none_where_none_are(pretrained, tmp_path, recipe):
    config = tiny(recipe, workdir=str(tmp_path), debug_nans=True, num_steps=3)
    if recipe == "cocondenser":
        config.data = str(tmp_path / "blocks")
        prepare(config)
    elif recipe != "msmarco":
        config.data = "data/wiki_tiny"
    (finetune if recipe == "msmarco" else pretrain)(config)
    assert metrics_of(tmp_path)[-1]["step"] == 3


def test_a_run_without_checkpoints_says_so(pretrained, tmp_path):
    for name in ("run.json", "tokenizer"):
        source = pretrained / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    with pytest.raises(InputError, match="the run has no checkpoint yet"):
        Encoder.from_pretrained(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "tokenizer"]  # reading makes nothing


def test_runs_from_before_there_were_model_types_are_berts(pretrained, tmp_path):
    description = json.loads((pretrained / "run.json").read_text())
    assert description["model"].pop("model_type") == "bert"
    (tmp_path / "run.json").write_text(json.dumps(description))
    assert open_model(str(tmp_path)).config == open_model(str(pretrained)).config


def test_only_runs_are_exported(pretrained, tmp_path):
    export(str(pretrained), tmp_path / "exported")
    with pytest.raises(InputError, match="is not the directory of a training run"):
        export(str(tmp_path / "exported"), tmp_path / "again")
