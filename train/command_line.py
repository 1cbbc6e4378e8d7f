"""The command line that the training commands share: `--config FILE[:VARIANT] --config.key=value ...`."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags


def parse_config(command: str, keys: Mapping[str, tuple[object, str]], argv: Sequence[str] | None = None) -> ConfigDict:
    """Reads the config file and the overrides on the command line.

    Args:
        command: `__doc__` of the command's module; its text is the help.
        keys: table of the config's keys (`configs.defaults`), for the help.
        argv: arguments without the program's name; None takes `sys.argv`.

    Returns:
        The recipe's config, its keys locked.

    Raises:
        SystemExit: with the help (status 0 for `--help`, else 2), or with one line that names the mistake.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(_help(command, keys))
        raise SystemExit(0 if argv else 2)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    try:
        # The library prints the whole config to the terminal when a key is unknown: the message says enough.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            rest = values(["command", *argv])
        config = values.config
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError, SyntaxError) as error:
        raise SystemExit(f"error: {_one_line(error, argv)}") from None
    if len(rest) > 1:
        raise SystemExit(f"error: unexpected argument {rest[1]!r}; keys are set as --config.key=value")
    if config is None:
        raise SystemExit("error: --config FILE is missing, for example --config configs/demo.py")
    return config


def _one_line(error: Exception, argv: list[str]) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; --config takes a recipe such as configs/wiki.py"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = lines[-1] if "Did you mean" in lines[-1] else lines[0]
    return message.strip("\"'")


def _help(command: str, keys: Mapping[str, tuple[object, str]]) -> str:
    lines = [command.strip(), "", "Keys of the config, set in the file or as --config.key=value:"]
    for key, (default, meaning) in keys.items():
        shown = type(default).__name__ if isinstance(default, ConfigDict | tuple) else repr(default)
        lines += textwrap.wrap(f"{key} ({shown}): {meaning}", 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)
