"""Training a cross-encoder end to end: tiny models, a few steps; then its export reranks."""

import json
import shutil

import jax
import numpy as np
import pytest
import sentence_transformers

from configs import rerank as recipe
from eval import bm25
from eval import rerank as reranking
from retromae_jax.checkpoints import huggingface
from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run
from retromae_jax.cross_encoder import CrossEncoder
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import TextEncoder
from retromae_jax.objectives.reranking import Reranking
from train.export import export
from train.rerank import rerank

WORDS = ["cats", "dogs", "apples", "ships", "stars", "rivers", "books", "horses"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Each query is a word, and its passage the one that has it."""
    directory = tmp_path_factory.mktemp("rerank") / "collection"
    directory.mkdir()
    texts = {
        "collection": [f"p{i}\tA longer text about {word} and nothing else." for i, word in enumerate(WORDS * 2)],
        "queries.train": [f"q{i}\twhat are {word}" for i, word in enumerate(WORDS)],
        "qrels.train": [f"q{i}\t0\tp{i}\t1\nq{i}\t0\tp{i + 8}\t1" for i in range(8)],
        "negatives": [f"q{i}\t" + ",".join(f"p{j}" for j in range(16) if j % 8 != i) for i in range(8)],
    }
    for name, lines in texts.items():
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture(scope="module")
def encoder(minilm_directory, tmp_path_factory):
    """A small random encoder's directory."""
    tokenizer = load_tokenizer(str(minilm_directory))
    bert = BertConfig(len(tokenizer), 32, 2, 2, 64)
    settings = EncoderSettings("cls", False, 64)
    weights = parameters.initialize(lambda rngs: TextEncoder(bert, settings, Computation(), rngs), seed=1)
    directory = tmp_path_factory.mktemp("encoder") / "encoder"
    huggingface.save_encoder(directory, bert, weights, tokenizer, settings)
    return directory


@pytest.fixture
def config(collection, encoder, tmp_path):
    return config_of(collection, encoder, tmp_path / "run")


def config_of(collection, init, workdir):
    config = recipe.get_config("tiny")
    config.init, config.tokenizer, config.workdir = str(init), "", str(workdir)
    config.collection, config.negatives = str(collection), (str(collection / "negatives.tsv"),)
    config.num_steps = 4
    config.log_every = config.checkpoint_every = 2
    return config


@pytest.fixture(scope="module")
def trained(collection, encoder, tmp_path_factory):
    """The directory of a finished run."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    rerank(config_of(collection, encoder, directory))
    return directory


def parameters_of(directory):
    run = Run(directory)
    values = jax.device_get(run.restore_parameters())
    run.close()
    return values


def losses_of(directory):
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_training_resumes_exports_and_reranks(trained, config, collection, tmp_path, capsys):
    run, exported = tmp_path / "run", tmp_path / "exported"
    expected, losses = parameters_of(trained), losses_of(trained)
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    assert line.keys() >= {"accuracy", "gradient_norm", "learning_rate", "queries_per_second"}
    assert 0 < line["model_flops_utilization"] < 1
    assert losses[0] == pytest.approx(np.log(config.group_size), abs=0.05)  # the first scores are about equal

    # Resumed, it equals the run that never stopped.
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints" / "4")
    rerank(config)
    assert "start fresh: classifier" in capsys.readouterr().err
    assert losses_of(run) == losses
    for name, value in parameters_of(run).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)

    export(str(run), exported)
    queries, passages = WORDS[:3], ["A text about dogs.", "Nothing", "apples " * 50]
    ours = CrossEncoder.from_pretrained(str(run))
    scores = ours.scores(queries, passages, batch_size=8)
    assert ours.max_length == config.max_length
    np.testing.assert_array_equal(CrossEncoder.from_pretrained(str(exported)).scores(queries, passages, 8), scores)
    theirs = sentence_transformers.CrossEncoder(str(exported), device="cpu")
    np.testing.assert_allclose(theirs.predict(list(zip(queries, passages, strict=True))), scores, atol=1e-5)

    bm25.main(f"--collection {collection} --split train --depth 10 --output {tmp_path / 'bm25'}".split())
    command = f"--model {exported} --collection {collection} --split train --run {tmp_path / 'bm25' / 'run.trec'}"
    reranking.main(f"{command} --output {tmp_path / 'reranked'} --depth 10".split())
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()[-3:]] == ["before", "exported", "gain"]
    written = {}
    for line in (tmp_path / "reranked" / "scores.tsv").read_text().splitlines():
        query, passage, score = line.split("\t")
        written[query, passage] = float(score)
    pair = theirs.predict([("what are cats", "A longer text about cats and nothing else.")])
    assert written["q0", "p0"] == pytest.approx(float(pair[0]), abs=1e-5)


def test_the_model_says_whether_it_learnt_with_titles(config, tmp_path):
    config.titles, config.num_steps = False, 2
    rerank(config)
    export(config.workdir, tmp_path / "exported")
    for model in (config.workdir, tmp_path / "exported"):
        assert CrossEncoder.from_pretrained(str(model)).settings.titles is False


def test_it_starts_from_encoders_and_from_cross_encoders(trained, minilm_directory):
    """What the first checkpoint would have; that of a run is said to the user in these words."""

    def opened(directory):
        source = open_model(str(directory))
        _, shapes = parameters.structure(Reranking(source.config, Computation()).model)
        return *source.parameters(shapes), len(shapes)

    _, report, tensors = opened(minilm_directory)
    # A pooler, where there is one, is what `transformers` takes too.
    assert str(report).startswith(f"loaded {tensors - 2} tensors; start fresh: classifier")
    assert report.fresh == ["classifier.output.bias", "classifier.output.kernel"]
    export(str(trained), trained.parent / "again")
    values = parameters_of(trained)
    for directory in (trained, trained.parent / "again"):
        loaded, report, tensors = opened(directory)
        assert str(report) == f"loaded {tensors} tensors"
        for name, value in values.items():
            np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_settings_that_make_no_sense_are_refused(config):
    config.group_size, config.max_length, config.collection = 1, 600, "nowhere"
    with pytest.raises(InputError) as caught:
        rerank(config)
    assert "group_size 1 is less than 2" in str(caught.value)
    assert "collection 'nowhere' is not there" in str(caught.value)
    assert "max_length 600 is not between 8 and the model's 512 positions" in str(caught.value)


@pytest.mark.long
def test_it_learns_to_rank(config, collection, minilm_directory, tmp_path):
    """From a real encoder, in a few steps: each query's passage scores above all others."""
    config.init, config.workdir = str(minilm_directory), str(tmp_path / "learned")
    config.num_steps, config.group_size, config.learning_rate = 30, 4, 1e-4
    config.log_every = config.checkpoint_every = 10
    rerank(config)
    losses = losses_of(tmp_path / "learned")
    assert losses[-1] < 0.3 * losses[0]
    # All passages, the relevant ones last.
    lines = [f"q{i} Q0 p{j} 0 {int(j % 8 != i)} x" for i in range(8) for j in range(16)]
    (tmp_path / "run.trec").write_text("\n".join(lines) + "\n")
    command = f"--model {tmp_path / 'learned'} --collection {collection} --split train --depth 16"
    arguments = f"{command} --run {tmp_path / 'run.trec'} --output {tmp_path / 'reranked'}"
    scores = reranking.evaluate(reranking.parse(arguments.split()))
    before = json.loads((tmp_path / "reranked" / "metrics.json").read_text())["before"]
    assert before["MRR@10"] == 0.0 and scores.means["MAP"] == 1.0
