"""--help of every command: what it is for, each option's meaning, and its default."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    f"{package}.{path.stem}"
    for package in ("train", "eval")
    for path in (ROOT / package).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_meaning_and_default_of_every_option(command, monkeypatch, capsys):
    parsers = []

    def format_help(parser):
        parsers.append(parser)
        return original(parser)

    module, original = importlib.import_module(command), argparse.ArgumentParser.format_help
    monkeypatch.setattr(argparse.ArgumentParser, "format_help", format_help)
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as exit_:
        module.main()
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert module.__doc__.strip().splitlines()[0] in printed
    assert f"python -m {command}" in printed
    assert "usage:" not in printed or printed.startswith(f"usage: python -m {command} ")
    for option in (action for parser in parsers for action in parser._actions):
        assert option.help, option
        # What is not given has a default, and the help says so, unless that is nothing.
        if option.default not in (None, False, [], argparse.SUPPRESS):
            assert "default: " in option.help, option
