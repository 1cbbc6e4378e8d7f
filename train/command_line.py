"""The command line that the training commands share: `--config FILE[:VARIANT] --config.key=value ...`.

Values are read as the type of the key's default; several strings are separated by commas
or written as a Python tuple."""

import argparse
import ast
import contextlib
import copy
import difflib
import importlib.util
import os
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from retromae_jax.errors import InputError


def parse_training(
    command: str, keys: Mapping[str, tuple[object, str]], argv: Sequence[str] | None = None
) -> tuple[ConfigDict, argparse.Namespace]:
    """Reads the command line of a training command: the config as `parse_config` does, and flags that the recipe does
    not decide.

    Returns:
        The config; and the flags, `profile` and those of `hosts.add_flags`.

    Raises:
        As `parse_config` does.
    """
    from retromae_jax import hosts  # imports JAX, which the workers of train.prepare must not

    parser = argparse.ArgumentParser(
        prog="", usage=argparse.SUPPRESS, add_help=False, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--profile", action="store_true", help="trace a few steps into WORKDIR/profile")
    hosts.add_flags(parser)
    try:
        flags, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(str(error).removeprefix("argument ")) from error
    return parse_config(command, keys, rest, parser.format_help()), flags


def parse_config(
    command: str, keys: Mapping[str, tuple[object, str]], argv: Sequence[str] | None = None, flags: str = ""
) -> ConfigDict:
    """Reads the config file and the overrides on the command line.

    Args:
        command: `__doc__` of the command's module; its text is the help.
        keys: table of the config's keys (`configs.defaults`), for the help.
        argv: arguments without the program's name; None takes `sys.argv`.
        flags: help of the command's other flags.

    Returns:
        The recipe's config, its keys locked.

    Raises:
        SystemExit: after the help, with status 0 for `--help` and 2 without arguments.
        InputError: if the file, a key or a value is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(_help(command, keys, flags))
        raise SystemExit(0 if argv else 2)
    recipe, overrides = split_recipe(argv)
    if not recipe:
        raise InputError("--config FILE is missing, for example --config configs/demo.py")
    config = ConfigDict({key: copy.deepcopy(default) for key, (default, _) in keys.items()}).lock()
    for key, value in load_recipe(recipe).items():
        if key not in keys:
            nearest = difflib.get_close_matches(key, keys, 1)
            hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
            raise InputError(f'{recipe}: the command has no setting "{key}"{hint}')
        try:
            config[key] = value
        except (TypeError, ValueError) as error:
            raise InputError(f"{recipe}: {key}: {_one_line(error)}") from error
    _override(config, overrides)
    return config


def split_recipe(argv: Sequence[str]) -> tuple[str, list[str]]:
    """What `--config FILE[:VARIANT]` names, empty where it is missing, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", default="")
    try:
        arguments, others = parser.parse_known_args(argv)
    except argparse.ArgumentError:
        return "", []
    return arguments.config, others


def _override(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Applies `--config.key=value` and `--config.key value` to the config."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, separator, value = argument.partition("=")
        if not name.startswith("--config."):
            raise InputError(f"unexpected argument {argument!r}; settings are given as --config.key=value")
        if not separator:
            if not rest:
                raise InputError(f"{name} needs a value: {name}=VALUE")
            value = rest.pop(0)
        *parents, key = name.removeprefix("--config.").split(".")
        try:
            owner = config
            for parent in parents:
                owner = owner[parent]
            # Each key is known, but for `model`'s, which are the fields of the model's sizes.
            with owner.unlocked() if parents == ["model"] else contextlib.nullcontext():
                owner[key] = _value(value, owner[key] if key in owner or not parents else None)
        except (KeyError, AttributeError, TypeError, ValueError, SyntaxError) as error:
            raise InputError(f"{name}={value}: {_one_line(error)}") from error


def _value(text: str, default: object) -> object:
    """Reads a value of the same type as the default; of any type where there is none."""
    if isinstance(default, str):
        return _expanded(text)
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    if isinstance(default, int | float):
        return type(default)(text)
    if isinstance(default, tuple) and not text.startswith("("):
        return tuple(_expanded(part) for part in text.split(",") if part)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if default is not None:
            raise
        return text


def _expanded(text: str) -> str:
    """A path in the home directory, which shells know at the beginning of an argument only, in full."""
    return os.path.expanduser(text) if text.startswith("~/") else text


def load_recipe(argument: str) -> Mapping:
    """The config that `FILE` or `FILE:VARIANT` describes: what the file's `get_config(variant)` returns."""
    file, _, variant = argument.partition(":")
    if not Path(file).is_file():
        # `configs` may be installed instead of lying here.
        installed = Path(__file__).parents[1] / file
        if not installed.is_file():
            raise InputError(f"config file {file} does not exist; --config takes a recipe such as configs/wiki.py")
        file = str(installed)
    spec = importlib.util.spec_from_file_location("recipe", file)
    if spec is None or spec.loader is None:
        raise InputError(f"config file {file} is no Python file; the name of a recipe ends in .py")
    try:
        recipe = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipe)
        config = recipe.get_config(variant) if variant else recipe.get_config()
    except SyntaxError as error:
        raise InputError(f"{file}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # a recipe is the user's code and may raise anything
        line = next((frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file), "")
        raise InputError(f"config file {file}:{line}: {_one_line(error)}") from error
    if not isinstance(config, ConfigDict | Mapping):
        raise InputError(
            f"config file {file}: get_config returns {type(config).__name__} instead of a ConfigDict; end it with "
            "`return config`"
        )
    return config


def _one_line(error: Exception) -> str:
    """The line of an error's message that helps: it names the nearest valid key, or else comes first."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    message = next((line for line in lines if "Did you mean" in line), lines[0] if lines else type(error).__name__)
    return message.strip("\"'")


def _help(command: str, keys: Mapping[str, tuple[object, str]], flags: str) -> str:
    lines = [
        command.strip(),
        "",
        "Keys of the config, with type and default. The file sets them, and so does --config.key=value; several values",
        "of one key are --config.key=one,two, and sizes of the model --config.model.hidden_size=768:",
    ]
    for key, (default, meaning) in keys.items():
        shown = "{}" if isinstance(default, ConfigDict) else repr(default)
        entry = f"{key} ({type(default).__name__}, {shown}): {meaning}"
        lines += textwrap.wrap(entry, 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join([*lines, "", flags] if flags else lines)
