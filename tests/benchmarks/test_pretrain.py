"""The benchmark's machinery: processes, rounds, tables; nothing is timed."""

import json

import pytest

from benchmarks.pretrain import host_costs, main, summary
from benchmarks.rounds import compare
from benchmarks.texts import load_texts
from benchmarks.worker import PretrainingTask
from retromae_jax.data.tokenization import load_tokenizer
from retromae_jax.errors import InputError
from tests.conftest import FAST_COMPILING

SENTENCE = "the heart pumps blood through the body and cardiomyopathy weakens its muscle"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[start:] + WORDS * (start % 3)) for start in range(7)]


@pytest.fixture
def data(tmp_path):
    """A directory like the benchmark's, with the file of `medquad` and `full` only."""
    (tmp_path / "medquad").mkdir()
    lines = [json.dumps({"_id": str(n), "title": "", "text": text}) for n, text in enumerate([*TEXTS, "", "Two words"])]
    (tmp_path / "medquad" / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_texts_are_whole_or_cut_where_a_row_ends(data, minilm_directory):
    tokenizer = load_tokenizer(str(minilm_directory))
    found = load_texts("medquad", data, 14, tokenizer, 512, seed=0)
    assert found[:7] == found[7:]
    assert sorted(found[:7]) == sorted(TEXTS)
    for text in load_texts("medquad", data, 7, tokenizer, 12, seed=0):
        whole = next(one for one in TEXTS if one.startswith(text))
        assert tokenizer(text)["input_ids"][:11] == tokenizer(whole)["input_ids"][:11]


def test_texts_of_the_full_set_fill_a_row(data, minilm_directory):
    tokenizer = load_tokenizer(str(minilm_directory))
    found = load_texts("full", data, 5, tokenizer, 40, seed=0)
    lengths = [len(tokenizer(text)["input_ids"]) for text in found]
    assert all(40 <= length < 45 for length in lengths)  # the word at the row's end is whole


def test_missing_texts_are_named(data, minilm_directory, capsys):
    with pytest.raises(InputError, match=r"wikitext2_train.txt: the texts 'wikitext' do not exist; --data"):
        load_texts("wikitext", data, 1, load_tokenizer(str(minilm_directory)), 64, seed=0)
    with pytest.raises(SystemExit):
        main(["--data", str(data / "nowhere"), "--systems", "retromae_jax", "--tokenizer", str(minilm_directory)])
    assert "--data DIR names the directory" in capsys.readouterr().err


@pytest.mark.long
def test_systems_train_on_the_same_texts_in_turns(minilm_directory, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILING)  # one device
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    task = PretrainingTask(
        texts=TEXTS[:6],
        sizes=sizes,
        tokenizer=str(minilm_directory),
        dtype="float32",
        batch_size=3,
        max_length=32,
        threads=1,
        seed=0,
    )
    results = compare(task, ["retromae_jax", "masked_lm"], rounds=2)
    ours, floor = results
    assert (ours["system"], floor["system"]) == ("retromae_jax", "masked_lm")
    for one, losses in ((ours, 2), (floor, 1)):
        assert len(one["tokens_per_second"]) == 2 and min(one["tokens_per_second"]) > 0
        assert one["loss"] == pytest.approx([losses * 10.33] * 2, rel=0.05)  # log of the vocabulary's size
        assert one["peak_megabytes"] > 50
    # A ratio is taken within each round.
    baseline = {**floor, "system": "pretense", "seconds": [2.0, 1.5]}
    row, _ = summary([{**ours, "seconds": [1.0, 0.5], "tokens_per_second": [600.0, 1200.0]}, baseline])
    assert (row["tokens/s"], row["least"], row["most"], row["speed ratio"]) == (900, 600, 1200, 2.5)
    assert [cost["tokenized before: texts/s of one core"] == "-" for cost in host_costs(results)] == [False, True]
