"""The retrieval probe beside encoding and searching with the same parameters."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from retromae_jax import parallel
from retromae_jax.checkpoints.huggingface import save_encoder
from retromae_jax.checkpoints.train_state import TrainState
from retromae_jax.data.retrieval import load_collection
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import KINDS, TextEncoder
from retromae_jax.retrieval.metrics import score
from retromae_jax.retrieval.runs import make_run
from retromae_jax.retrieval.search import PassageIndex
from train.probe import MEASURES, Probe, _draw, best_step

WORDS = ["cats", "dogs", "apples", "ships", "stars", "rivers", "books", "horses", "clouds", "bread", "snow", "gold"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Each of twelve words has a query, a passage that answers it, and four that mention it."""
    directory = tmp_path_factory.mktemp("collection")
    passages = [f"p{i}\tA text of {i} words, about {WORDS[i % 12]} and {WORDS[i % 7]}." for i in range(60)]
    for name, lines in {
        "collection": passages,
        "queries.dev": [f"q{i}\twhat are {word}" for i, word in enumerate(WORDS)],
        "qrels.dev": [f"q{i}\t0\tp{i}\t1" for i in range(12)],
    }.items():
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return directory


def config_of(collection, **changes):
    values = {"seed": 1, "compute_dtype": "float32", "probe_passages": 100, "probe_split": "dev"}
    return ConfigDict({**values, "probe_collection": str(collection), **changes})


@pytest.mark.parametrize("mesh", [parallel.training_mesh(4), parallel.local_mesh()], ids=["split", "local"])
def test_it_measures_what_encoding_and_searching_do(collection, minilm_directory, tmp_path, mesh):
    tokenizer = load_tokenizer(str(minilm_directory))
    bert = BertConfig(len(tokenizer), 32, 2, 2, 64)
    settings = EncoderSettings("mean", True, 32, query_max_length=6, query_prompt="of ", passage_prompt="here: ")
    weights = parameters.initialize(lambda rngs: TextEncoder(bert, settings, Computation(), rngs), seed=1)
    weights = {name: np.asarray(value) for name, value in weights.items()}
    save_encoder(tmp_path / "encoder", bert, weights, tokenizer, settings)
    read = load_collection(collection, "dev")
    encoder = Encoder.from_pretrained(str(tmp_path / "encoder"))
    passages = PassageIndex(encoder.encode(list(read.passages.texts(True))))
    found = passages.search(encoder.encode(list(read.queries.values()), "query"), 10)
    expected = score(make_run(list(read.queries), read.passages.ids, *found), read.qrels, MEASURES).means
    assert 0 < expected["MRR@10"] < 1

    # The state has more than the encoder's, as that of pretraining has.
    state = TrainState(np.int32(0), weights | {"head.bias": np.zeros(len(tokenizer), np.float32)}, {})
    probe = Probe(config_of(collection), tokenizer, bert, settings, mesh)
    state = jax.device_put(state, parallel.state_sharding(mesh, state))
    measured = probe(state)
    assert measured == pytest.approx(expected, abs=1e-6)
    assert probe.cost(100, 0.0) == "12 queries, 60 passages, every 100 steps"
    assert probe.cost(100, 1e6).endswith(" more)")

    untied = dataclasses.replace(settings, untie_encoder=True)
    both = {f"{kind}.{name}": value for kind in KINDS for name, value in weights.items()}
    probe = Probe(config_of(collection), tokenizer, bert, untied, mesh)
    state = TrainState(np.int32(0), both, {})
    assert probe(jax.device_put(state, parallel.state_sharding(mesh, state))) == measured


def test_what_is_searched_follows_from_the_seed_and_is_bounded():
    relevant = [np.array([i, 1000 + i]) for i in range(300)] + [np.array([], int), np.arange(400)]
    config = config_of("", probe_passages=200)
    queries, passages = _draw(relevant, 5000, config, np.random.default_rng(3))
    assert len(queries) == 50 and 300 not in queries and 301 not in queries
    assert len(passages) == len(set(passages)) == 200 and set(np.concatenate([relevant[q] for q in queries])) <= set(
        passages
    )
    again = _draw(relevant, 5000, config, np.random.default_rng(3))
    np.testing.assert_array_equal(again[0], queries)
    np.testing.assert_array_equal(again[1], passages)
    assert set(_draw(relevant, 5000, config, np.random.default_rng(4))[0]) != set(queries)
    # A small collection is searched as a whole.
    assert list(_draw(relevant[:3], 60, config, np.random.default_rng(3))[1]) == [*range(60), 1000, 1001, 1002]


def test_a_split_without_queries_to_probe_is_refused(collection, minilm_directory):
    (collection / "qrels.none.tsv").write_text("q0\t0\tp0\t0\n")
    (collection / "queries.none.tsv").write_text("q0\twhat are cats\n")
    tokenizer = load_tokenizer(str(minilm_directory))
    with pytest.raises(InputError, match=r"split none: no query whose relevant passages are at most half"):
        Probe(
            config_of(collection, probe_split="none"),
            tokenizer,
            BertConfig(len(tokenizer), 32, 2, 2, 64),
            EncoderSettings("cls", False, 32),
            parallel.local_mesh(),
        )


def test_the_best_step_is_the_first_of_those_that_scored_highest():
    lines = ['{"step": 0, "loss": 3}', '{"step": 2, "probe/nDCG@10": 0.5}', '{"step": 4, "probe/nDCG@10": 0.5}']
    rows = [json.loads(line) for line in [*lines, '{"step": 6, "probe/nDCG@10": 0.25}']]
    assert best_step(rows) == (2, 0.5, 6, 0.25)
    assert best_step(rows).told() == "nDCG@10 0.5000 at step 2, the best; 0.2500 at step 6"
    assert best_step(rows[:1]) is None
