import re

import pytest

from configs import defaults
from retromae_jax.data.text import COMPRESSIONS, READERS
from retromae_jax.errors import InputError
from train.command_line import parse_config, parse_training

DOCUMENTATION = """Pretrains something.

    python -m train.pretrain --config configs/demo.py
"""


def parse(*argv):
    return parse_config(DOCUMENTATION, defaults.PRETRAINING, argv)


def test_file_variant_and_overrides():
    config = parse("--config", "configs/wiki.py", "--config.batch_size=512", "--config.sources=a.txt,b.txt")
    assert config.batch_size == 512
    assert config.sources == ("a.txt", "b.txt")
    assert config.block_length == 512
    tiny = parse(
        "--config=configs/wiki.py:tiny",
        "--config.init",
        "runs/wiki",
        "--config.pack_documents=false",
        "--config.model.hidden_size=64",
        "--config.learning_rate=1e-3",
        "--config.model.hidden_act='relu'",
        "--config.model.model_type=xlm-roberta",
    )
    assert (tiny.block_length, tiny.init, tiny.pack_documents) == (32, "runs/wiki", False)
    assert (tiny.model.hidden_size, tiny.model.hidden_act, tiny.learning_rate) == (64, "relu", 0.001)
    assert tiny.model.model_type == "xlm-roberta"


def test_paths_in_the_home_directory_are_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = parse("--config=configs/wiki.py", "--config.sources=~/a.txt,b.txt", "--config.probe_collection", "~/c")
    assert (config.sources, config.probe_collection) == (("/home/me/a.txt", "b.txt"), "/home/me/c")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config=configs/wiki.py", "--config.batch_sise=3"], 'Did you mean "batch_size" instead of "batch_sise"?'),
        (["--config=configs/wiki.py", "--config.batch_size=many"], "invalid literal for int"),
        (["--config=configs/wiki.py", "--config.pack_documents=2"], "must be true or false"),
        (["--config=configs/wiki.py", "--config.sources=(a"], "was never closed"),
        (["--config=configs/wiki.py", "--config.seed"], "--config.seed needs a value"),
        (["--config=configs/wiki.py", "--config.optimizer.seed=2"], "optimizer"),
        (["--config=configs/wiki.py:huge"], "unknown variant 'huge'; the only one is `tiny`"),
        (["--config=configs/none.py"], "config file configs/none.py does not exist"),
        (["--config=configs/wiki.py", "--learning_rate=1"], "unexpected argument '--learning_rate=1'"),
        (["--config=configs/wiki.py", "more"], "unexpected argument 'more'"),
        (["--config.batch_size=3"], "--config FILE is missing"),
        (["--config"], "--config FILE is missing"),
    ],
)
def test_mistakes_end_in_one_clear_line(argv, message):
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_recipe_is_named_with_its_line(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def get_config():\n    return (\n")
    with pytest.raises(InputError, match=r"recipe\.py:2: "):
        parse(f"--config={recipe}")


def test_a_recipe_returns_its_config(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from configs import defaults\n\n\ndef get_config():\n    config = defaults.pretraining()\n")
    with pytest.raises(InputError, match=r"recipe\.py: get_config returns NoneType instead of a ConfigDict; end it"):
        parse(f"--config={recipe}")


def test_recipes_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/wiki.py:tiny").workdir == "runs/wiki_tiny"


def test_a_recipe_is_a_python_file(tmp_path):
    recipe = tmp_path / "recipe.txt"
    recipe.write_text("batch_size: 3\n")
    with pytest.raises(InputError, match=r"recipe\.txt is no Python file"):
        parse(f"--config={recipe}")


def test_a_recipe_may_leave_keys_out_but_not_invent_any(tmp_path):
    recipe = tmp_path / "recipe.py"
    source = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({})\n"
    recipe.write_text(source.format("{'batch_size': 7}"))
    config = parse(f"--config={recipe}")
    assert (config.batch_size, config.block_length) == (7, 512)
    with pytest.raises(InputError, match="Did you mean"):
        parse(f"--config={recipe}", "--config.bach_size=3")
    recipe.write_text(source.format("{'bach_size': 7}"))
    with pytest.raises(InputError, match='the command has no setting "bach_size"; did you mean "batch_size"'):
        parse(f"--config={recipe}")


@pytest.mark.parametrize("argv, status", [(["--help"], 0), ([], 2)])
def test_help_lists_every_key_with_type_default_and_meaning(argv, status, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(*argv)
    assert exit_.value.code == status
    printed = capsys.readouterr().out
    assert printed.startswith("Pretrains something.")
    for key in defaults.PRETRAINING:
        assert f"  {key} (" in printed
    assert "batch_size (int, 256): texts in one optimizer step" in printed
    assert "sources (tuple, ()): where text comes from" in printed
    for suffix in (*READERS, *COMPRESSIONS):
        assert re.search(rf"\{suffix}\b", printed)


def test_every_recipe_has_a_tiny_variant_of_the_same_keys():
    pretraining = ("wiki", "msmarco_pretrain", "dupmae", "masked_lm", "condenser", "cocondenser", "demo")
    finetuning = ("msmarco", "msmarco_distill", "msmarco_dupmae", "beir", "demo_finetune", "stages_finetune")
    for recipe, keys in {
        **dict.fromkeys(pretraining, defaults.PRETRAINING),
        **dict.fromkeys(finetuning, defaults.FINETUNING),
        **dict.fromkeys(("rerank", "stages_rerank"), defaults.RERANKING),
    }.items():
        for variant in ("", ":tiny"):
            config = parse_config(DOCUMENTATION, keys, [f"--config=configs/{recipe}.py{variant}"])
            assert set(config) == set(keys)


def test_training_commands_have_flags_that_no_recipe_decides(capsys):
    keys = defaults.FINETUNING
    line = "--profile --config configs/msmarco.py --coordinator host0:1234 --config.seed=7 --processes=2 --process 1"
    config, flags = parse_training(DOCUMENTATION, keys, line.split())
    assert config.seed == 7
    assert (flags.profile, flags.coordinator, flags.processes, flags.process) == (True, "host0:1234", "2", "1")
    config, flags = parse_training(DOCUMENTATION, keys, ["--config=configs/msmarco.py"])
    assert not flags.profile and flags.coordinator is None
    with pytest.raises(InputError, match="--lost-after: soon is not 1 or more"):
        parse_training(DOCUMENTATION, keys, ["--config=configs/msmarco.py", "--lost-after", "soon"])
    with pytest.raises(InputError, match="unexpected argument '--proc"):
        parse_training(DOCUMENTATION, keys, ["--config=configs/msmarco.py", "--proc=1"])
    with pytest.raises(SystemExit):
        parse_training(DOCUMENTATION, keys, ["--help"])
    printed = capsys.readouterr().out
    assert (
        "  --coordinator HOST:PORT" in printed and "  --profile" in printed and "  temperature (float, 1.0)" in printed
    )
