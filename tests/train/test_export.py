"""Exports and their model cards: what the card says, whose code is run; a checkpoint of one's choice; pushing."""

import json
import logging
import re
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from retromae_jax.checkpoints.loading import open_model
from retromae_jax.checkpoints.train_state import Run, TrainState
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.encoder import Encoder
from retromae_jax.errors import InputError
from retromae_jax.models import parameters
from retromae_jax.models.bert import BertConfig, Computation
from retromae_jax.models.lexical import unpack
from retromae_jax.models.pooling import EncoderSettings
from retromae_jax.models.text_encoder import TextEncoder, UntiedEncoders
from retromae_jax.objectives import OBJECTIVES
from retromae_jax.objectives.reranking import Reranking
from train import export as command
from train.export import export
from train.model_card import About, base_of

QUERIES = ["how do whales breathe"]
PASSAGES = ["Whales come up for air, because they have lungs.", "An apple falls from its tree."]
ENCODERS = {
    "plain": EncoderSettings("cls", False, 24),
    "mean_normalized": EncoderSettings("mean", True, 24),
    "projected": EncoderSettings("cls", True, 24, projection=8),
    "lexical": EncoderSettings("cls", False, 24, projection=8, lexical_top_k=12),
    "untied": EncoderSettings("cls", False, 24, untie_encoder=True),
    "untied_projected": EncoderSettings(
        "mean", True, 24, 8, untie_encoder=True, query_max_length=6, query_prompt="query: ", passage_prompt="passage: "
    ),
}
# These have what the others have; the others are in `make test-long`.
SHORT = ("untied_projected", "cross_encoder", "retromae")
KINDS = [
    pytest.param(kind, marks=() if kind in SHORT else pytest.mark.long)
    for kind in (*ENCODERS, "cross_encoder", *OBJECTIVES)
]


def make_run(directory, kind, tokenizer, steps=(3,), **config):
    """A run's directory as its training command leaves it, but with random parameters, other ones at each step."""
    bert = BertConfig(len(tokenizer), 32, 2, 2, 64)
    settings, name = ENCODERS.get(kind, ENCODERS["plain"]), "finetune"
    if kind in OBJECTIVES:
        extra = {"head_layers": 1, "skip_from": 1} if "condenser" in kind else {}
        name, build = "pretrain", OBJECTIVES[kind](bert, None, **extra).model
        config["objective"] = kind
    elif kind == "cross_encoder":
        name, build = "rerank", Reranking(bert, Computation()).model
    else:
        model = UntiedEncoders if settings.untie_encoder else TextEncoder

        def build(rngs):
            return model(bert, settings, Computation(), rngs)

    weights = parameters.initialize(build, seed=1)
    run = Run(directory, len(steps))
    run.begin(name, bert, settings, {"init": "", **config}, {"queries": 1234, "passages": 9}, tokenizer)
    for step in steps:
        noise = np.random.default_rng(step)
        moved = {key: np.asarray(x) + 0.1 * noise.standard_normal(x.shape, np.float32) for key, x in weights.items()}
        run.save_last(TrainState(np.int32(step), moved, {"m": np.zeros(2)}))
    run.close()
    log = [{"step": 0, "probe/nDCG@10": 0.2}, {"step": steps[0], "loss": 2.5, "probe/nDCG@10": 0.5}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    beat = {"arguments": ["--config", "configs/it.py", "--config.seed=1"], "num_steps": 9}
    beat |= {"devices": "8 x TPU v4", "seconds": 7500.0}
    (directory / "heartbeat.json").write_text(json.dumps(beat))
    return directory


@pytest.fixture(scope="module")
def tokenizer(minilm_directory):
    return load_tokenizer(str(minilm_directory))


@pytest.fixture
def run(tmp_path, tokenizer):
    return make_run(tmp_path / "run", "plain", tokenizer, steps=(3, 6))


def card_of(directory):
    return huggingface_hub.ModelCard.load(directory / "README.md")


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_of_code_in_a_card_runs_and_says_the_same(kind, tokenizer, tmp_path, caplog):
    directory = tmp_path / "exported"
    export(str(make_run(tmp_path / "run", kind, tokenizer)), directory)
    blocks = re.findall(r"### (.*?)\n\n```python\n(.*?)```", card_of(directory).text, re.DOTALL)
    texts = re.search(r"```python\n(.*?)```", card_of(directory).text, re.DOTALL)[1]
    scores = {}
    with caplog.at_level(logging.WARNING):
        for name, code in blocks:
            namespace = {}
            exec(texts + code, namespace)
            scores[name] = np.sort(np.asarray(namespace.get("scores", namespace.get("words"))).ravel())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    ours = scores.pop("retromae_jax")
    words = scores.pop("The masked language model, with transformers", None)
    assert (words is not None) == (kind in OBJECTIVES) and len(scores) == 3 and len(ours) == 2
    if kind == "lexical":  # other libraries know the dense part alone
        encoder = Encoder.from_pretrained(str(directory))
        query, passage = (unpack(encoder.encode(texts), 12)[0] for texts in (QUERIES, PASSAGES))
        ours = np.sort((query @ passage.T).ravel())
    for name, found in scores.items():
        np.testing.assert_allclose(found, ours, atol=1e-5 * max(1, np.max(np.abs(ours))), err_msg=name)
    if kind != "cross_encoder":
        assert np.all(in_bfloat16(directory) > 0.9999)


def in_bfloat16(directory):
    """Cosines of our vectors in bfloat16 with sentence-transformers' in float32."""
    ours = Encoder.from_pretrained(str(directory), compute_dtype="bfloat16").encode(PASSAGES)
    folder = directory / "passage" if (directory / "passage").is_dir() else directory
    theirs = SentenceTransformer(str(folder), device="cpu").encode_document(PASSAGES)
    ours = ours[:, : theirs.shape[1]]  # without a lexical part
    return np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def test_a_card_tells_the_runs_story(run, tmp_path):
    about = About("me/whale-finder", True, ["en", "de"], "apache-2.0", ["microsoft/ms_marco"])
    export(str(run), tmp_path / "exported", about)
    card = card_of(tmp_path / "exported")
    assert card.data.to_dict() == {
        "language": ["en", "de"],
        "license": "apache-2.0",
        "library_name": "sentence-transformers",
        "tags": ["sentence-transformers", "feature-extraction", "retromae"],
        "datasets": ["microsoft/ms_marco"],
        "pipeline_tag": "sentence-similarity",
    }
    for told in (
        "# whale-finder",
        "a vector of 32 numbers",
        'SentenceTransformer("me/whale-finder")',
        "python -m train.finetune --config configs/it.py --config.seed=1",
        "| starts from | random weights |",
        "| data | 1,234 queries, 9 passages |",
        "| step | 6 of 9 |",
        "| devices | 8 x TPU v4 |",
        "| time | 2 h 05 min |",
        "| retrieval probe | nDCG@10 0.5000 at step 3, the best |",
        "![losses by optimizer step](curves.png)",
    ):
        assert told in card.text, told
    picture = (tmp_path / "exported" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000
    # The next export replaces all of it.
    export(str(run), tmp_path / "exported")
    card = card_of(tmp_path / "exported")
    assert card.data.to_dict().keys() == {"library_name", "tags", "pipeline_tag"}


def test_scores_of_evaluations_are_in_the_table_and_in_the_hubs_form(run, tmp_path):
    evaluation = tmp_path / "scores"
    evaluation.mkdir()
    description = {"collection": "data/msmarco", "split": "dev", "queries": 6980}
    description["metrics"] = {"MRR@10": 0.40004, "Recall@1000": 0.75}
    description["intervals"] = {"MRR@10": [0.39, 0.41], "Recall@1000": [0.74, 0.77]}
    (evaluation / "metrics.json").write_text(json.dumps(description))
    export(str(run), tmp_path / "exported", About("whales", evaluations=[evaluation]))
    card = card_of(tmp_path / "exported")
    assert "| msmarco | dev | 6,980 | 0.4000 ± 0.0100 | 0.7500 ± 0.0150 |" in card.text
    assert card.data.model_name == "whales"
    (result, other) = card.data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_split) == ("information-retrieval", "msmarco", "dev")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("mrr@10", "MRR@10", 0.4)
    assert (other.metric_name, other.metric_value) == ("Recall@1000", 0.75)
    (evaluation / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"metrics\.json: not the scores of an evaluation command"):
        export(str(run), tmp_path / "exported", About("whales", evaluations=[evaluation]))


def test_what_a_model_began_with_is_found_through_runs_and_exports(tokenizer, tmp_path, monkeypatch):
    cached = tmp_path / "cached.md"
    cached.write_text("---\nlicense: mit\nlanguage: en\n---\n")
    monkeypatch.setattr("train.model_card.try_to_load_from_cache", lambda name, file: str(cached))
    first = make_run(tmp_path / "first", "retromae", tokenizer, init="google-bert/bert-base-uncased")
    assert base_of(str(first)).name == "google-bert/bert-base-uncased"
    export(str(first), tmp_path / "exported")
    monkeypatch.undo()
    second = make_run(tmp_path / "second", "plain", tokenizer, init=str(tmp_path / "exported" / "masked_lm"))
    third = make_run(tmp_path / "third", "plain", tokenizer, init=str(second))
    export(str(third), tmp_path / "exported_third", About("third", language=["fr"]))
    found = card_of(tmp_path / "exported_third").data.to_dict()
    assert found["base_model"] == "google-bert/bert-base-uncased" and found["license"] == "mit"
    assert found["language"] == ["fr"]
    # Of a copied directory, nobody knows the name; its card may be broken.
    for name in ("exported/export.json", "exported/README.md"):
        (tmp_path / name).unlink()
    assert base_of(str(tmp_path / "exported")) == base_of("") == (None, None)
    (tmp_path / "exported" / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_of(str(tmp_path / "exported")).name is None


def test_any_checkpoint_of_a_run_is_a_model(run, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "3"
    export(str(checkpoint), tmp_path / "third")
    export(str(run), tmp_path / "newest")
    said = capsys.readouterr().err
    best = f"retrieval probe: nDCG@10 0.5000 at step 3, the best; it is {checkpoint}; exported is step "
    assert f"{best}3" in said and f"{best}6" in said
    assert "| step | 3 of 9 |" in card_of(tmp_path / "third").text
    for exported, opened in ((tmp_path / "third", checkpoint), (tmp_path / "newest", run)):
        np.testing.assert_array_equal(
            Encoder.from_pretrained(str(exported)).encode(PASSAGES),
            Encoder.from_pretrained(str(opened)).encode(PASSAGES),
        )
    name = "bert.embeddings.layer_norm.bias"
    third, sixth = (open_model(str(run / "checkpoints" / step)) for step in ("3", "6"))
    biases = [np.asarray(one.parameters({name: np.zeros(32)})[0][name]) for one in (third, sixth)]
    assert np.all(biases[0] != biases[1])
    assert not third.has_head()
    (checkpoint / "parameters" / "_METADATA").unlink()
    with pytest.raises(InputError, match=r"the run has no checkpoint yet|none of the checkpoints can be read"):
        export(str(checkpoint), tmp_path / "never")
    for name in ("nowhere", str(tmp_path / "newest"), str(run / "checkpoints")):
        with pytest.raises(InputError, match="is not the directory of a training run, or of a checkpoint"):
            export(name, tmp_path / "never")


def test_a_full_disk_is_told_with_the_command_to_go_on(run, small_disk):
    with pytest.raises(InputError, match=r"cannot be written: .*No space left on device.*start train\.export --from"):
        export(str(run), small_disk / "exported")


def test_pushing_wants_a_token_before_any_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    arguments = ["train.export", "--from", str(run), "--to", str(tmp_path / "exported")]
    for more, status, told in (
        (["--push-to-hub", "me/it"], 2, "error: there is no token for the Hugging Face Hub; set HF_TOKEN"),
        (["--public"], 2, "--public goes with --push-to-hub"),
    ):
        monkeypatch.setattr(sys, "argv", arguments + more)
        with pytest.raises(SystemExit) as stopped:
            command.main()
        assert stopped.value.code == status and told in capsys.readouterr().err
    assert not Path(tmp_path / "exported").exists()
