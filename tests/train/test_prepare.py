"""Preparing text: the same result however many processes work and however often it is killed."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from configs import defaults
from retromae_jax.data.blocks import TokenBlocks
from retromae_jax.errors import InputError
from train import prepare as module
from train.prepare import prepare

REPOSITORY = Path(__file__).parents[2]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *(f"word{number}" for number in range(50)), ".", "[", "]", "sep"]

# What models' directories say of themselves.
TRANSFORMER = {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
ENCODER = {"pooling": "cls", "normalize": False, "max_length": 16}
RUN = {"command": "pretrain", "model": {}, "encoder": ENCODER, "config": {}, "data": {}}


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """A word tokenizer, saved with truncation and padding switched on, as some are."""
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    made.enable_truncation(4)
    made.enable_padding(length=4)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    directory = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(directory)
    return directory


@pytest.fixture
def config(tmp_path, tokenizer_directory) -> ConfigDict:
    """Of 60 documents, 4 empty, in two files."""
    generator = random.Random(0)
    documents = [
        " ".join(
            " ".join(f"Word{generator.randrange(50)}" for _ in range(generator.randrange(1, 12))) + "."
            for _ in range(generator.randrange(1, 9))
        )
        for _ in range(60)
    ]
    for number in (3, 4, 30, 59):
        documents[number] = " \n" * (number % 2)
    for name, part in (("a.jsonl", documents[:40]), ("b.jsonl", documents[40:])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    made = defaults.pretraining()
    made.sources = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    made.data = str(tmp_path / "blocks")
    made.tokenizer = str(tokenizer_directory)
    made.block_length = 18
    made.workers = 1
    return made


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "CHARACTERS_PER_PART", 2000)


def contents(directory: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def prepared_elsewhere(config: ConfigDict, **changes) -> Path:
    other = config.copy_and_resolve_references()
    other.data = f"{config.data}-elsewhere-{len(changes)}"
    other.update(changes)
    prepare(other)
    return Path(other.data)


def error_of(config: ConfigDict) -> str:
    with pytest.raises(InputError) as caught:
        prepare(config)
    return str(caught.value)


def documents_of(config: ConfigDict) -> list[list[str]]:
    """The words of each document."""
    lines = [line for source in config.sources for line in Path(source).read_text().splitlines()]
    return [json.loads(line)["text"].lower().replace(".", " .").split() for line in lines]


def words_of(config: ConfigDict) -> list[str]:
    return [word for words in documents_of(config) for word in words]


def test_blocks_hold_the_text(config, capfd):
    prepare(config)
    blocks = TokenBlocks(config.data)
    assert [WORDS[token] for i in range(len(blocks)) for token in blocks[i]] == words_of(config)
    assert blocks.lengths.max() <= 16
    # Sentences have at most 12 tokens, so each block ends with one.
    assert {WORDS[blocks[i][-1]] for i in range(len(blocks))} == {"."}
    settings = blocks.settings
    assert settings["counts"] == {
        "documents": 60,
        "empty": 4,
        "blocks": len(blocks),
        "tokens": len(words_of(config)),
        "dropped_tokens": 0,
        "longest": int(blocks.lengths.max()),
    }
    assert settings["vocabulary_size"] == len(WORDS)
    assert settings["block_length"] == 18
    assert settings["sources"] == list(config.sources)
    assert len(list(Path(config.data).glob("*.arrow"))) > 3
    assert not Path(f"{config.data}.partial").exists()
    shown = capfd.readouterr().err
    assert f"60         4               {len(blocks)}" in shown
    assert config.data in shown


def test_blocks_tell_their_documents(config):
    prepare(config)
    blocks = TokenBlocks(config.data)
    documents = blocks.documents()
    for number, words in enumerate(documents_of(config)):
        here = np.flatnonzero(documents == number)
        assert [WORDS[token] for block in here.tolist() for token in blocks[block]] == words
    assert datasets.load_from_disk(config.data)["document"][:] == documents.tolist()
    with pytest.raises(InputError, match="does not tell which blocks are of one document"):
        TokenBlocks(prepared_elsewhere(config, pack_documents=True)).documents()


@pytest.mark.parametrize(
    ("init", "files"),
    [
        ("~/model", {"config.json": {"model_type": "bert"}}),
        ("~/model/encoder", {"modules.json": [TRANSFORMER], "0_Transformer/config.json": {"model_type": "bert"}}),
        ("~/run", {"run.json": RUN}),
        ("~/run/checkpoints/1000", {"../../run.json": RUN}),
    ],
)
def test_the_tokenizer_is_the_one_training_finds(config, tokenizer_directory, tmp_path, monkeypatch, init, files):
    from retromae_jax.checkpoints.loading import open_model
    from retromae_jax.data.tokenization import fingerprint, load_tokenizer

    monkeypatch.setenv("HOME", str(tmp_path))
    model = Path(init).expanduser()
    model.mkdir(parents=True)
    for name, content in files.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(json.dumps(content))
    shutil.copytree(tokenizer_directory, open_model(init, weights=False).tokenizer, dirs_exist_ok=True)
    config.tokenizer, config.init = "", init
    prepare(config)
    settings = TokenBlocks(config.data).settings
    assert settings["tokenizer"] == init
    assert settings["tokenizer_fingerprint"] == fingerprint(load_tokenizer(str(tokenizer_directory)))


def test_processes_and_packing(config):
    reference = prepared_elsewhere(config)
    config.workers = 2
    prepare(config)
    assert contents(config.data) == contents(reference)
    packed = TokenBlocks(prepared_elsewhere(config, pack_documents=True, workers=1))
    apart = TokenBlocks(config.data)
    assert len(packed) < len(apart)
    assert packed.lengths.sum() == apart.lengths.sum()


def test_special_tokens_in_the_text_are_text(config, tmp_path):
    Path(config.sources[0]).write_text('{"text": "Word1 [SEP] word2"}\n')
    config.sources = config.sources[:1]
    prepare(config)
    assert [WORDS[token] for token in TokenBlocks(config.data)[0]] == ["word1", "[", "sep", "]", "word2"]


# Started again.


class Killed(BaseException):
    """Stands in for SIGKILL: no handler runs that a killed process would not run."""


def kill_at(monkeypatch, step: int, after: bool) -> Callable[[], int]:
    """Dies before or after file operation number `step`; returns how many there were."""
    done = 0

    def watched(operation):
        def run(*args, **kwargs):
            nonlocal done
            done += 1
            if done == step and not after:
                raise Killed
            operation(*args, **kwargs)
            if done == step:
                raise Killed

        return run

    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(os, "rename", watched(os.rename))
    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    monkeypatch.setattr(module, "write_blocks", watched(module.write_blocks))
    monkeypatch.setattr(module, "write_description", watched(module.write_description))
    return lambda: done


def test_killed_at_any_step_it_ends_alike(config, monkeypatch):
    reference = contents(prepared_elsewhere(config))
    with monkeypatch.context() as context:
        steps = kill_at(context, 0, after=False)
        prepare(config)
    assert contents(config.data) == reference
    assert steps() > 15
    for step in range(1, steps() + 1):
        for after in (False, True):
            shutil.rmtree(config.data)
            with monkeypatch.context() as context, pytest.raises(Killed):
                kill_at(context, step, after)
                prepare(config)
            # Nothing, or all of it.
            assert not Path(config.data).exists() or contents(config.data) == reference
            prepare(config)
            assert contents(config.data) == reference
            assert not Path(f"{config.data}.partial").exists()


def kill_half_way(config, monkeypatch) -> None:
    with monkeypatch.context() as context, pytest.raises(Killed):
        kill_at(context, 8, after=True)
        prepare(config)


def test_finished_parts_are_not_made_again(config, monkeypatch, capfd):
    reference = contents(prepared_elsewhere(config))
    kill_half_way(config, monkeypatch)
    made = {path.name: path.stat().st_mtime_ns for path in Path(f"{config.data}.partial/blocks").iterdir()}
    finished = len(list(Path(f"{config.data}.partial/counts").iterdir()))
    assert finished >= 2
    prepare(config)
    assert f"{finished} of {len(reference) - 3} parts were there from before" in capfd.readouterr().err
    kept = [name for name, time in made.items() if (Path(config.data) / name).stat().st_mtime_ns == time]
    assert len(kept) >= finished


def test_text_that_changed_in_between_is_made_again(config, monkeypatch):
    kill_half_way(config, monkeypatch)
    lines = Path(config.sources[0]).read_text().splitlines(keepends=True)
    Path(config.sources[0]).write_text("".join(lines[5:10]))
    Path(config.sources[1]).write_text("")
    prepare(config)
    assert contents(config.data) == contents(prepared_elsewhere(config))


def test_documents_are_numbered_anew_when_there_is_one_more_before_them(config, monkeypatch):
    kill_half_way(config, monkeypatch)
    source = Path(config.sources[0])
    first, *rest = source.read_text().splitlines(keepends=True)
    # Two where one was, of the same size: the parts after the first hold the same documents as before.
    parts = json.loads(first)["text"].split(" ", 1)
    source.write_text("".join([*(json.dumps({"text": part}) + "\n" for part in parts), *rest]))
    prepare(config)
    assert contents(config.data) == contents(prepared_elsewhere(config))


def test_text_that_changed_and_changed_back(config, monkeypatch):
    reference = contents(prepared_elsewhere(config))
    kill_half_way(config, monkeypatch)
    source = Path(config.sources[0])
    text = source.read_text()
    source.write_text("".join(text.splitlines(keepends=True)[5:]))
    # Killed when the first part has its new blocks, but not its new counts.
    with monkeypatch.context() as context, pytest.raises(Killed):
        kill_at(context, 2, after=True)
        prepare(config)
    source.write_text(text)
    prepare(config)
    assert contents(config.data) == reference


def test_killed_process_leaves_no_workers(config, tmp_path):
    config.workers = 2
    script = tmp_path / "run.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from ml_collections import ConfigDict\n"
        "from train import prepare\n"
        "def die_after_a_part(self, number):\n"
        "    if os.listdir(self.directory / 'counts'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {}\n"
        "if __name__ == '__main__':\n"
        "    config, tokenizer = json.load(sys.stdin)\n"
        "    prepare.CHARACTERS_PER_PART = 500\n"
        "    prepare.PartMaker.counts = die_after_a_part\n"
        "    prepare._tokenizer_and_settings = lambda config: tokenizer\n"
        "    prepare.prepare(ConfigDict(config))\n"
    )
    # The pipe of its output is closed when the last process that holds it has ended: workers hold it too.
    killed = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps([config.to_dict(), module._tokenizer_and_settings(config)]),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert killed.returncode == -9, killed.stderr
    assert not Path(config.data).exists()
    prepare(config)
    assert contents(config.data) == contents(prepared_elsewhere(config))


def test_finished_directory_is_left_as_it_is(config, capfd):
    prepare(config)
    before = contents(config.data)
    capfd.readouterr()
    Path(config.sources[0]).unlink()
    prepare(config)
    assert capfd.readouterr().err == f"{config.data} is finished; remove it to make it anew\n"
    assert contents(config.data) == before


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("block_length", 20, "block_length 18, not 20"),
        ("pack_documents", True, "pack_documents False, not True"),
        ("text_field", "body", "text_field text, not body"),
    ],
)
def test_other_settings_in_a_directory(config, monkeypatch, key, value, shown):
    kill_half_way(config, monkeypatch)
    partial = f"{config.data}.partial"
    other = config.copy_and_resolve_references()
    other[key] = value
    assert error_of(other) == f"{partial}: was made with {shown}; remove it or choose another --config.data"
    prepare(config)
    assert error_of(other) == f"{config.data}: was made with {shown}; remove it or choose another --config.data"


def test_directory_of_something_else(config):
    Path(config.data).mkdir()
    (Path(config.data) / "thesis.txt").write_text("mine")
    assert "exists and was not made by train.prepare" in error_of(config)
    assert contents(config.data) == {"thesis.txt": b"mine"}
    (Path(config.data) / "thesis.txt").unlink()
    prepare(config)  # an empty directory will do
    assert len(TokenBlocks(config.data)) > 0


def test_two_at_once(config):
    partial = Path(f"{config.data}.partial")
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another train.prepare is at work there" in error_of(config)
    prepare(config)


# Bad input.


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_line_stops_it_and_can_be_mended(config, workers):
    path = Path(config.sources[1])
    good = path.read_text()
    path.write_text(good + "{broken\n")
    config.workers = workers
    assert error_of(config).startswith(f"{path}:21: no valid JSON")
    assert not Path(config.data).exists()
    path.write_text(good)
    config.workers = 1
    prepare(config)
    assert contents(config.data) == contents(prepared_elsewhere(config))


def test_nothing_but_empty_documents(config):
    for source in config.sources:
        Path(source).write_text('{"text": " "}\n')
    assert "2 documents, all empty; mend `sources` or `text_field`" in error_of(config)
    assert not Path(config.data).exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("block_length", 2, "block_length 2 leaves no room"),
        ("workers", -1, "workers -1 is negative"),
        ("data", "", "data is empty"),
        ("tokenizer", "", "tokenizer and init are empty"),
        ("tokenizer", "./nowhere", "nowhere"),
        ("sources", ("./nowhere.jsonl",), "nowhere.jsonl: this file or folder does not exist"),
        ("sources", (), "sources are empty"),
        ("data", "/dev/null/blocks", "/dev/null"),
    ],
)
def test_bad_settings(config, key, value, reason):
    config[key] = value
    assert reason in error_of(config)


# The command.


@pytest.fixture
def command_line(config, tmp_path) -> list[str]:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from configs import defaults\n\n\ndef get_config():\n    return defaults.pretraining()\n")
    keys = ("sources", "data", "tokenizer", "block_length")
    return [f"--config={recipe}", "--config.workers=2", *(f"--config.{key}={config[key]}" for key in keys)]


def test_command(config, command_line):
    # As `python -m train.prepare`, then asked whether it imported JAX: workers would each hold an accelerator.
    script = (
        "import runpy, sys\n"
        "runpy.run_module('train.prepare', run_name='__main__', alter_sys=True)\n"
        "print('jax' in sys.modules)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, *command_line], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "False\n"
    assert "tokens per block" in finished.stderr
    assert "60         4" in finished.stderr
    assert contents(config.data).keys() == {"data-00000.arrow", "dataset_info.json", "state.json", "prepare.json"}


def test_command_refuses(config, command_line, monkeypatch, capfd):
    Path(config.data).mkdir()
    (Path(config.data) / "thesis.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["train.prepare", *command_line])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    shown = capfd.readouterr().err
    assert shown.startswith(f"error: {config.data}: exists and was not made by train.prepare; remove it")
    assert shown.count("\n") == 1
